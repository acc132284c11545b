"""Read TensorFlow checkpoints without TensorFlow: ``NAME.index`` and ``NAME.data-00000-of-00001``.

This is the format of `tf.compat.v1.train.Saver` (version 2 of it), of `tf.train.Checkpoint` and of the folder
``variables`` of a SavedModel: TensorFlow's "tensor bundle". The index is a table in LevelDB's format (version 1: data
blocks of sorted keys, an index block, a footer of 48 bytes) whose values are protocol buffers; every block and tensor
has a CRC-32C checksum. A checkpoint of TensorFlow 2 also contains the tree of objects, whose attributes refer to
tensors. Nothing in the files is run; every length is compared with the file it points into, and every checksum is
verified.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from math import isqrt
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from contrastive_core.errors import UserError
from contrastive_core.training.documents import read_text

Buffer = bytes | memoryview


class DamagedError(ValueError):
    """The bytes do not follow the format."""


def varint(data: Buffer, at: int) -> tuple[int, int]:
    """Read the unsigned integer of up to 64 bits at `at`; return it and its end."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise DamagedError("ends inside a number")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >= 1 << 64:
                break
            return value, at
    raise DamagedError("a number of more than 64 bits")


def take(data: Buffer, at: int, count: int) -> tuple[bytes, int]:
    """Read `count` bytes at `at`; return them and their end."""
    if count > len(data) - at:
        raise DamagedError(f"ends {at + count - len(data)} bytes too early")
    return bytes(data[at : at + count]), at + count


def fields(message: Buffer) -> Iterator[tuple[int, int | bytes]]:
    """Yield the fields of a protocol buffer message: number, and an integer or the bytes of a string or message."""
    at = 0
    while at < len(message):
        tag, at = varint(message, at)
        number, kind = tag >> 3, tag & 7
        value: int | bytes
        if kind == 0:
            value, at = varint(message, at)
        elif kind == 2:
            length, at = varint(message, at)
            value, at = take(message, at, length)
        elif kind in (1, 5):
            raw, at = take(message, at, 8 if kind == 1 else 4)
            value = int.from_bytes(raw, "little")
        else:
            raise DamagedError(f"a field of unknown kind {kind}")
        yield number, value


def number(value: int | bytes) -> int:
    """Return the value of a field that must be a non-negative number."""
    if isinstance(value, bytes) or value >= 1 << 63:
        raise DamagedError("a field that must be a number of at least 0 has another value")
    return value


def content(value: int | bytes) -> bytes:
    """Return the value of a field that must be a string or a message."""
    if isinstance(value, int):
        raise DamagedError("a field that must be a string or a message is a number")
    return value


def text(value: int | bytes) -> str:
    """Return the value of a field that must be printable UTF-8 text."""
    try:
        name = content(value).decode()
    except UnicodeDecodeError as error:
        raise DamagedError("a name that is not UTF-8") from error
    if not name.isprintable():
        raise DamagedError("a name with control characters")
    return name


Words = NDArray[np.uint32]

_POLYNOMIAL = 0x82F63B78
_BLOCK = 1 << 24
_MASK_DELTA = 0xA282EAD8


def _byte_table() -> Words:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, table >> 1 ^ np.uint32(_POLYNOMIAL), table >> 1).astype(np.uint32)
    return table


_TABLE = _byte_table()


def crc32c(data: bytes | memoryview) -> int:
    """Compute the CRC-32C checksum; that of ``b"123456789"`` is 0xE3069283."""
    octets = np.frombuffer(data, np.uint8)
    state = np.array([0xFFFFFFFF], np.uint32)
    for start in range(0, len(octets), _BLOCK):
        block = octets[start : start + _BLOCK]
        state = _apply(_zeros(len(block)), state) ^ _remainder(block)
    return int(state[0]) ^ 0xFFFFFFFF


def masked_crc32c(data: bytes | memoryview) -> int:
    """Compute the checksum as TensorFlow and LevelDB store it, masked so that checksums of checksums stay effective."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + _MASK_DELTA) & 0xFFFFFFFF


def _remainder(octets: NDArray[np.uint8]) -> Words:
    """Compute the state after the bytes, from state 0.

    The bytes are cut into lanes of equal length that advance together. Because the state is linear in the bytes (over
    GF(2)), two neighbours are joined by advancing the first over as many zero bytes as the second is long.
    """
    length = min(1024, isqrt(len(octets)) + 1)
    lanes = 1 << (-(-len(octets) // length) - 1).bit_length()
    # Zero bytes in front leave state 0 as it is.
    buffer = np.zeros(lanes * length, np.uint8)
    buffer[len(buffer) - len(octets) :] = octets
    state = np.zeros(lanes, np.uint32)
    for column in np.ascontiguousarray(buffer.reshape(lanes, length).T):
        state = _TABLE[(state ^ column) & 0xFF] ^ (state >> 8)
    move = _zeros(length)
    while len(state) > 1:
        state = _apply(move, state[0::2]) ^ state[1::2]
        move = _apply(move, move)
    return state


@lru_cache(256)  # the lengths of a network's tensors recur
def _zeros(count: int) -> Words:
    """Return the effect of `count` zero bytes on a state: a 32 x 32 matrix over GF(2), by the images of single bits."""
    bits = np.uint32(1) << np.arange(32, dtype=np.uint32)
    power, result = _TABLE[bits & 0xFF] ^ (bits >> 8), bits
    while count:
        if count & 1:
            result = _apply(power, result)
        power = _apply(power, power)
        count >>= 1
    return result


def _apply(matrix: Words, states: Words) -> Words:
    out = np.zeros_like(states)
    for bit, image in enumerate(matrix):
        out ^= (states >> np.uint32(bit) & np.uint32(1)) * image
    return out


_FOOTER, _MAGIC = 48, (0xDB4775248B80FB57).to_bytes(8, "little")
_TRAILER = 5  # a byte for the compression, four for the checksum


def is_table(data: bytes) -> bool:
    """Return whether the bytes end with the footer of a table."""
    return len(data) >= _FOOTER and data.endswith(_MAGIC)


def read_table(data: bytes) -> dict[bytes, bytes]:
    """Read all entries of a table.

    Raises:
        DamagedError: It is not a table, a checksum is wrong, or it is compressed, which checkpoints are not.
    """
    if not is_table(data):
        raise DamagedError("it does not end with the footer of a table; it is truncated, or another kind of file")
    footer = data[-_FOOTER:]
    _, at = _handle(footer, 0)  # handle of the meta-index block, which TensorFlow leaves empty
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
        raise DamagedError("it refers to a block outside itself")
    block, end = take(data, offset, size)
    compression = data[end]
    stored = int.from_bytes(data[end + 1 : end + _TRAILER], "little")
    if masked_crc32c(data[offset : end + 1]) != stored:
        raise DamagedError(f"the checksum of the block at byte {offset} does not match")
    if compression != 0:
        raise DamagedError(f"a block is compressed (kind {compression}), unlike those of TensorFlow's checkpoints")
    return block


def _entries(block: bytes) -> list[tuple[bytes, bytes]]:
    """Return the entries of a block; a key is stored as the length shared with the previous one, and the rest."""
    if len(block) < 4:
        raise DamagedError("a block is too short")
    restarts = int.from_bytes(block[-4:], "little")
    end = len(block) - 4 - 4 * restarts
    if end < 0:
        raise DamagedError("a block is too short")
    entries: list[tuple[bytes, bytes]] = []
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
        entries.append((key, value))
    return entries


_STRING = 7
_DTYPES = {
    1: torch.float32,
    2: torch.float64,
    3: torch.int32,
    4: torch.uint8,
    5: torch.int16,
    6: torch.int8,
    9: torch.int64,
    10: torch.bool,
    14: torch.bfloat16,
    19: torch.float16,
}


@dataclass(frozen=True)
class Entry:
    """Position of a tensor in the data files."""

    dtype: int = 0
    shape: tuple[int, ...] = ()
    shard: int = 0
    offset: int = 0
    size: int = 0
    crc: int = 0
    partitioned: bool = False


class TensorBundle:
    """Tensors of a checkpoint by name; content is read on access.

    Args:
        source: Name of the checkpoint without suffix, one of its files, a folder with one checkpoint or with a file
            ``checkpoint`` that names the latest, or a SavedModel.

    Raises:
        UserError: There is no checkpoint, or it is damaged.
    """

    def __init__(self, source: Path) -> None:
        self.prefix = find_bundle(source)
        self.index = self.prefix.with_name(f"{self.prefix.name}.index")
        try:
            table = read_table(self.index.read_bytes())
            self.shards = _shards(table.pop(b"", b""))
            # A name that begins with a zero byte is a slice of a partitioned tensor.
            names = {name: text(name) for name in table if not name.startswith(b"\0")}
            self.entries = {names[name]: _entry(table[name]) for name in names}
        except DamagedError as error:
            raise UserError(
                f"{self.index} is damaged or not a TensorFlow checkpoint: {error}. Fetch it again"
            ) from error

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor without reading it."""
        return self.entries[name].shape

    def tensor(self, name: str) -> Tensor:
        """Read one tensor and verify its checksum.

        Raises:
            UserError: Its file is missing or damaged, or its type is not one of weights.
        """
        entry = self.entries[name]
        dtype = _DTYPES.get(entry.dtype)
        if dtype is None or entry.partitioned:
            kind = "partitioned over several entries" if entry.partitioned else f"of TensorFlow's type {entry.dtype}"
            raise UserError(f"{self.prefix}: {name} is {kind}; expected a whole tensor of numbers")
        if entry.size != math.prod(entry.shape) * dtype.itemsize:
            raise UserError(
                f"{self.index} is damaged: {name} of shape {list(entry.shape)} is said to take {entry.size} bytes"
            )
        raw = self._bytes(name, entry)
        if masked_crc32c(raw) != entry.crc:
            raise UserError(
                f"{self._shard(entry)} is damaged: the checksum of {name} does not match. Fetch the file again"
            )
        if not raw:
            return torch.zeros(entry.shape, dtype=dtype)
        return torch.frombuffer(bytearray(raw), dtype=dtype).reshape(entry.shape)

    def string(self, name: str) -> bytes:
        """Read a tensor that is one string."""
        entry = self.entries[name]
        if entry.dtype != _STRING or entry.shape or entry.partitioned:
            raise UserError(f"{self.index} is damaged: {name} is not a single string")
        raw = self._bytes(name, entry)
        try:
            length, at = varint(raw, 0)
            checksum, at = take(raw, at, 4)
            value, end = take(raw, at, length)
        except DamagedError as error:
            raise UserError(f"{self._shard(entry)} is damaged: {name} {error}. Fetch the file again") from error
        # The checksums cover the length as a fixed-size number, not as it is stored.
        fixed = length.to_bytes(4 if length < 1 << 32 else 8, "little")
        whole = masked_crc32c(fixed + checksum + value)
        if end != len(raw) or checksum != masked_crc32c(fixed).to_bytes(4, "little") or whole != entry.crc:
            raise UserError(
                f"{self._shard(entry)} is damaged: the checksum of {name} does not match. Fetch the file again"
            )
        return value

    def _shard(self, entry: Entry) -> Path:
        return self.prefix.with_name(f"{self.prefix.name}.data-{entry.shard:05d}-of-{self.shards:05d}")

    def _bytes(self, name: str, entry: Entry) -> bytes:
        path = self._shard(entry)
        if entry.shard >= self.shards or not path.is_file():
            raise UserError(f"{path} is missing beside {self.index.name}; it contains {name}")
        size = path.stat().st_size
        if entry.offset + entry.size > size:
            raise UserError(
                f"{path} has {size} bytes; {name} is stored at {entry.offset} to {entry.offset + entry.size}. "
                "It is truncated: fetch it again"
            )
        with path.open("rb") as file:
            file.seek(entry.offset)
            return file.read(entry.size)


def is_bundle(source: Path) -> bool:
    """Return whether a folder or files named after `source` exist, which `find_bundle` could read."""
    return source.is_dir() or source.suffix == ".index" or source.with_name(f"{source.name}.index").is_file()


def find_bundle(source: Path) -> Path:
    """Return the name without suffix of the checkpoint that a path denotes.

    Raises:
        UserError: There is no checkpoint, or more than one.
    """
    if source.is_dir():
        return _in_folder(source)
    name = re.sub(r"\.(index|data-\d{5}-of-\d{5}|meta)$", "", source.name)
    if source.with_name(f"{name}.index").is_file():
        return source.with_name(name)
    if source.is_file() and is_table(source.read_bytes()):
        raise UserError(
            f"{source} is a TensorFlow checkpoint of the first version (one file); expected the current version, with "
            ".index and .data files. Load it in TensorFlow and save it with tf.compat.v1.train.Saver()"
        )
    raise UserError(f"{source}: expected a TensorFlow checkpoint, {name}.index and {name}.data-00000-of-00001")


def _in_folder(folder: Path) -> Path:
    if (folder / "variables" / "variables.index").is_file():
        return folder / "variables" / "variables"
    checkpoints = {path.stem: path.with_suffix("") for path in sorted(folder.glob("*.index"))}
    latest = folder / "checkpoint"
    if len(checkpoints) != 1 and latest.is_file():
        text = ""
        with contextlib.suppress(UserError):  # too large, or not text: the checkpoints are listed below
            text = read_text(latest)
        match = re.search(r'^model_checkpoint_path: "(.*)"', text, re.MULTILINE)
        # Only its name: the folder may have been moved since.
        name = Path(match[1]).name if match else ""
        if name in checkpoints:
            return checkpoints[name]
    if len(checkpoints) == 1:
        return next(iter(checkpoints.values()))
    raise UserError(
        f"{folder} holds {len(checkpoints) or 'no'} TensorFlow checkpoints (*.index)"
        + (
            f", {', '.join(sorted(checkpoints)[:4])}; name one of them"
            if checkpoints
            else "; name a checkpoint, or the file of a PyTorch one"
        )
    )


def _shards(header: bytes) -> int:
    header_fields = dict(fields(header))
    if number(header_fields.get(2, 0)) != 0:
        raise DamagedError("it was written on a big-endian machine")
    shards = number(header_fields.get(1, 0))
    if not 1 <= shards < 100_000:
        raise DamagedError(f"it states {shards} data files")
    return shards


def _entry(message: bytes) -> Entry:
    entry_fields = dict(fields(message))
    shape = []
    for tag, value in fields(content(entry_fields.get(2, b""))):
        if tag == 2:
            shape.append(number(dict(fields(content(value))).get(1, 0)))
    # TensorFlow allows 254 dimensions; a tensor of weights has four, and torch must be able to count the elements.
    if len(shape) > 8 or math.prod(max(size, 1) for size in shape) >= 1 << 48:
        raise DamagedError("a tensor of an impossible shape")
    return Entry(
        dtype=number(entry_fields.get(1, 0)),
        shape=tuple(shape),
        shard=number(entry_fields.get(3, 0)),
        offset=number(entry_fields.get(4, 0)),
        size=number(entry_fields.get(5, 0)),
        crc=number(entry_fields.get(6, 0)),
        partitioned=7 in entry_fields,
    )


KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"


@dataclass
class Node:
    """Object of a checkpoint: its object attributes and, for a variable, the name of its tensor."""

    children: dict[str, int] = field(default_factory=dict)
    tensor: str | None = None


class ObjectGraph:
    """Objects of a checkpoint; a variable may have several paths, but its tensor is stored once.

    Raises:
        UserError: The checkpoint is damaged.
    """

    def __init__(self, bundle: TensorBundle) -> None:
        self.nodes: list[Node] = []
        try:
            for kind, value in fields(bundle.string(KEY)):
                if kind == 1:
                    self.nodes.append(_node(content(value)))
            if any(child >= len(self.nodes) for node in self.nodes for child in node.children.values()):
                raise DamagedError("an object refers to an attribute that does not exist")
        except DamagedError as error:
            raise UserError(f"{bundle.prefix}: the tree of its objects is damaged: {error}. Fetch it again") from error

    def with_child(self, name: str) -> Node | None:
        """Return the first object with an attribute of that name."""
        return next((node for node in self.nodes if name in node.children), None)

    def child(self, node: Node, *path: str) -> Node | None:
        """Return the object at the end of a path of attributes."""
        for name in path:
            if name not in node.children:
                return None
            node = self.nodes[node.children[name]]
        return node

    def tensor(self, node: Node, *path: str) -> str | None:
        """Return the tensor name of the variable at the end of a path of attributes."""
        child = self.child(node, *path)
        return None if child is None else child.tensor


def _node(message: bytes) -> Node:
    node = Node()
    for kind, value in fields(message):
        if kind == 1:
            reference = dict(fields(content(value)))
            node.children[text(reference.get(2, b""))] = number(reference.get(1, 0))
        elif kind == 2:
            attribute = dict(fields(content(value)))
            if text(attribute.get(1, b"")) == "VARIABLE_VALUE":
                node.tensor = text(attribute.get(3, b""))
    return node
