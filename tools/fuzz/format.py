"""Describe a format for the fuzzer: valid examples, a reader, and the protection of the content."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.fuzz.damage import Kind


@dataclass(frozen=True)
class Format:
    """Format that the fuzzer tries.

    Attributes:
        name: Name of the format in the table.
        make: Function that writes a valid example to an empty folder and returns the files of which one is damaged.
        read: Function that reads the folder as the package does and returns its content as text.
        examples: Names of the examples, one of which is passed to `make`.
        kind: Structure of the files.
        has_checksum: Whether the format has checksums, so that reading changed content is a failure.
        sign: Function that updates the checksums to match damaged content, to test the code behind them.
        header: Number of initial bytes in which half of the changes are made.
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
    """Return a hash of values by their text, and of arrays and tensors by type, shape and bytes."""
    hasher = hashlib.sha256()
    for value in values:
        hasher.update(_encode(value))
    return hasher.hexdigest()


def _encode(value: Any) -> bytes:
    if isinstance(value, dict):
        return b"".join(_encode(child) for item in sorted(value.items(), key=repr) for child in item)
    if isinstance(value, list | tuple):
        return b"".join(map(_encode, value)) + b"]"
    if hasattr(value, "detach"):
        value = value.detach().float().numpy() if value.dtype.is_floating_point else value.detach().numpy()
    if hasattr(value, "tobytes") and hasattr(value, "shape"):
        return f"{value.dtype}{value.shape}".encode() + bytes(value.tobytes())
    return repr(value).encode("utf-8", "backslashreplace")
