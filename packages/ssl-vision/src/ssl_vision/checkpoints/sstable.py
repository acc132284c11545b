"""TensorFlow's tables, the format of a checkpoint's ``.index`` file: sorted keys in blocks with checksums.

The format is LevelDB's, version 1: data blocks, an index block that says where they are, and a footer of 48 bytes.
"""

from __future__ import annotations

from ssl_vision.checkpoints.crc32c import masked_crc32c
from ssl_vision.checkpoints.wire import DamagedError, take, varint

_FOOTER, _MAGIC = 48, (0xDB4775248B80FB57).to_bytes(8, "little")
_TRAILER = 5  # a byte for the compression, four for the checksum


def is_table(data: bytes) -> bool:
    """Whether the bytes end as a table does."""
    return len(data) >= _FOOTER and data.endswith(_MAGIC)


def read_table(data: bytes) -> dict[bytes, bytes]:
    """All entries of a table.

    Raises:
        DamagedError: it is no table, a checksum does not hold, or it is compressed, as no checkpoint is.
    """
    if not is_table(data):
        raise DamagedError("it does not end with the mark of a table; it is cut off, or another kind of file")
    footer = data[-_FOOTER:]
    _, at = _handle(footer, 0)  # of the block on the blocks, which TensorFlow leaves empty
    index, _ = _handle(footer, at)
    table: dict[bytes, bytes] = {}
    last = None
    for _, handle in _entries(_block(data, *index)):
        for key, value in _entries(_block(data, *_handle(handle, 0)[0])):
            if last is not None and key <= last:
                raise DamagedError("its keys are not in order")
            table[key] = value
            last = key
    return table


def _handle(data: bytes, at: int) -> tuple[tuple[int, int], int]:
    offset, at = varint(data, at)
    size, at = varint(data, at)
    return (offset, size), at


def _block(data: bytes, offset: int, size: int) -> bytes:
    if offset + size + _TRAILER > len(data) - _FOOTER:
        raise DamagedError("it points at a block outside itself")
    block, end = take(data, offset, size)
    compression = data[end]
    stored = int.from_bytes(data[end + 1 : end + _TRAILER], "little")
    if masked_crc32c(data[offset : end + 1]) != stored:
        raise DamagedError(f"the checksum of the block at byte {offset} does not hold")
    if compression != 0:
        raise DamagedError(f"a block is compressed (kind {compression}), as TensorFlow's checkpoints are not")
    return block


def _entries(block: bytes) -> list[tuple[bytes, bytes]]:
    """The entries of a block. A key is stored as what it shares with the one before and the rest."""
    if len(block) < 4:
        raise DamagedError("a block is too short")
    restarts = int.from_bytes(block[-4:], "little")
    end = len(block) - 4 - 4 * restarts
    if end < 0:
        raise DamagedError("a block is too short")
    found: list[tuple[bytes, bytes]] = []
    at, key = 0, b""
    while at < end:
        shared, at = varint(block, at)
        rest, at = varint(block, at)
        length, at = varint(block, at)
        if shared > len(key) or at + rest + length > end:
            raise DamagedError("an entry reaches outside its block")
        tail, at = take(block, at, rest)
        value, at = take(block, at, length)
        key = key[:shared] + tail
        found.append((key, value))
    return found
