"""The description of a format that the fuzzer tries: valid examples, a reader, and what protects the content."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.fuzz.damage import Kind


@dataclass(frozen=True)
class Format:
    """How a format is tried.

    Attributes:
        name: What the table calls it.
        make: Writes a valid example into an empty folder and returns the files of which one is damaged.
        read: Reads what lies in the folder, as the package does, and returns what it holds as text.
        examples: Names of the examples; `make` gets one.
        kind: Structure of the files.
        has_checksum: Whether the format has checksums, so that to read something else is a silent difference.
        sign: Makes the checksums fit the damaged content, to reach the code behind them.
        header: Bytes at the beginning that half of the changes fall into.
    """

    name: str
    make: Callable[[Path, str], Sequence[Path]]
    read: Callable[[Path], str]
    examples: Sequence[str] = ("",)
    kind: Kind = "bytes"
    has_checksum: bool = False
    sign: Callable[[Path], None] | None = None
    header: int = 512


def digest(*values: Any) -> str:
    """A hash of values, by their text; of arrays and tensors by type, shape and bytes."""
    found = hashlib.sha256()
    for value in values:
        found.update(_encoded(value))
    return found.hexdigest()


def _encoded(value: Any) -> bytes:
    if isinstance(value, dict):
        return b"".join(_encoded(part) for item in sorted(value.items(), key=repr) for part in item)
    if isinstance(value, list | tuple):
        return b"".join(map(_encoded, value)) + b"]"
    if hasattr(value, "detach"):
        value = value.detach().float().numpy() if value.dtype.is_floating_point else value.detach().numpy()
    if hasattr(value, "tobytes") and hasattr(value, "shape"):
        return f"{value.dtype}{value.shape}".encode() + bytes(value.tobytes())
    return repr(value).encode("utf-8", "backslashreplace")
