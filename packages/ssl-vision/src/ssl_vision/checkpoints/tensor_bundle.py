"""TensorFlow checkpoints read without TensorFlow: ``NAME.index`` and ``NAME.data-00000-of-00001``.

This is the format of `tf.compat.v1.train.Saver` (version 2 of it), of `tf.train.Checkpoint` and of the folder
``variables`` of a SavedModel: TensorFlow's "tensor bundle". Nothing in the files is run; every length is compared with
the file it points into, and the content of every tensor read with its checksum.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from contrastive_core.errors import UserError
from ssl_vision.checkpoints.crc32c import masked_crc32c
from ssl_vision.checkpoints.sstable import is_table, read_table
from ssl_vision.checkpoints.wire import DamagedError, content, fields, number, take, text, varint

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
    """Where a tensor lies."""

    dtype: int = 0
    shape: tuple[int, ...] = ()
    shard: int = 0
    offset: int = 0
    size: int = 0
    crc: int = 0
    partitioned: bool = False


class TensorBundle:
    """The tensors of a checkpoint by name; content is read when it is asked for.

    Args:
        source: the checkpoint's name without ending, one of its files, or a folder that holds one checkpoint or says in
            a file ``checkpoint`` which is the latest; a SavedModel too.

    Raises:
        UserError: there is none, or it is damaged.
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
            raise UserError(f"{self.index} is damaged or no TensorFlow checkpoint: {error}. Fetch it again") from error

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""
        return self.entries[name].shape

    def tensor(self, name: str) -> Tensor:
        """One tensor, checked against its checksum.

        Raises:
            UserError: its file is missing or damaged, or it is of a kind that holds no weights.
        """
        entry = self.entries[name]
        dtype = _DTYPES.get(entry.dtype)
        if dtype is None or entry.partitioned:
            what = "partitioned over several entries" if entry.partitioned else f"of TensorFlow's type {entry.dtype}"
            raise UserError(f"{self.prefix}: {name} is {what}; expected a whole tensor of numbers")
        if entry.size != math.prod(entry.shape) * dtype.itemsize:
            raise UserError(
                f"{self.index} is damaged: {name} of shape {list(entry.shape)} is said to take {entry.size} bytes"
            )
        raw = self._bytes(name, entry)
        if masked_crc32c(raw) != entry.crc:
            raise UserError(
                f"{self._shard(entry)} is damaged: the checksum of {name} does not hold. Fetch the file again"
            )
        if not raw:
            return torch.zeros(entry.shape, dtype=dtype)
        return torch.frombuffer(bytearray(raw), dtype=dtype).reshape(entry.shape)

    def string(self, name: str) -> bytes:
        """The content of a tensor that is one string."""
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
        # The checksums are over the length as a fixed number, not as it is stored.
        fixed = length.to_bytes(4 if length < 1 << 32 else 8, "little")
        whole = masked_crc32c(fixed + checksum + value)
        if end != len(raw) or checksum != masked_crc32c(fixed).to_bytes(4, "little") or whole != entry.crc:
            raise UserError(
                f"{self._shard(entry)} is damaged: the checksum of {name} does not hold. Fetch the file again"
            )
        return value

    def _shard(self, entry: Entry) -> Path:
        return self.prefix.with_name(f"{self.prefix.name}.data-{entry.shard:05d}-of-{self.shards:05d}")

    def _bytes(self, name: str, entry: Entry) -> bytes:
        path = self._shard(entry)
        if entry.shard >= self.shards or not path.is_file():
            raise UserError(f"{path} is missing beside {self.index.name}; {name} lies in it")
        size = path.stat().st_size
        if entry.offset + entry.size > size:
            raise UserError(
                f"{path} has {size} bytes; {name} lies at {entry.offset} to {entry.offset + entry.size}. "
                "It is cut off: fetch it again"
            )
        with path.open("rb") as file:
            file.seek(entry.offset)
            return file.read(entry.size)


def is_bundle(source: Path) -> bool:
    """Whether there is something that `find_bundle` looks at: a folder, or files named after `source`."""
    return source.is_dir() or source.suffix == ".index" or source.with_name(f"{source.name}.index").is_file()


def find_bundle(source: Path) -> Path:
    """The name without ending of the checkpoint meant by a path.

    Raises:
        UserError: there is none there, or more than one.
    """
    if source.is_dir():
        return _in_folder(source)
    name = re.sub(r"\.(index|data-\d{5}-of-\d{5}|meta)$", "", source.name)
    if source.with_name(f"{name}.index").is_file():
        return source.with_name(name)
    if source.is_file() and is_table(source.read_bytes()):
        raise UserError(
            f"{source} is a TensorFlow checkpoint of the first version (one file); expected one of today's, with "
            ".index and .data files. Load it in TensorFlow and save it with tf.compat.v1.train.Saver()"
        )
    raise UserError(f"{source}: expected a TensorFlow checkpoint, {name}.index and {name}.data-00000-of-00001")


def _in_folder(folder: Path) -> Path:
    if (folder / "variables" / "variables.index").is_file():
        return folder / "variables" / "variables"
    found = {path.stem: path.with_suffix("") for path in sorted(folder.glob("*.index"))}
    latest = folder / "checkpoint"
    if len(found) != 1 and latest.is_file():
        said = re.search(r'^model_checkpoint_path: "(.*)"', latest.read_text(errors="replace"), re.MULTILINE)
        # Only its name: the folder was somewhere else when this was written.
        name = Path(said[1]).name if said else ""
        if name in found:
            return found[name]
    if len(found) == 1:
        return next(iter(found.values()))
    raise UserError(
        f"{folder} holds {len(found) or 'no'} TensorFlow checkpoints (*.index)"
        + (
            f", {', '.join(sorted(found)[:4])}; name one of them"
            if found
            else "; name a checkpoint, or the file of a PyTorch one"
        )
    )


def _shards(header: bytes) -> int:
    said = dict(fields(header))
    if number(said.get(2, 0)) != 0:
        raise DamagedError("it was written on a big-endian machine")
    shards = number(said.get(1, 0))
    if not 1 <= shards < 100_000:
        raise DamagedError(f"it says that it has {shards} data files")
    return shards


def _entry(message: bytes) -> Entry:
    said = dict(fields(message))
    shape = []
    for field, value in fields(content(said.get(2, b""))):
        if field == 2:
            shape.append(number(dict(fields(content(value))).get(1, 0)))
    # TensorFlow allows 254 dimensions; a tensor of weights has four, and torch must be able to count the elements.
    if len(shape) > 8 or math.prod(max(size, 1) for size in shape) >= 1 << 48:
        raise DamagedError("a tensor of a shape that none has")
    return Entry(
        dtype=number(said.get(1, 0)),
        shape=tuple(shape),
        shard=number(said.get(3, 0)),
        offset=number(said.get(4, 0)),
        size=number(said.get(5, 0)),
        crc=number(said.get(6, 0)),
        partitioned=7 in said,
    )
