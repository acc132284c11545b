"""The encodings under TensorFlow's checkpoint files: varints and protocol buffers, read with every bound checked."""

from __future__ import annotations

from collections.abc import Iterator

Buffer = bytes | memoryview


class DamagedError(ValueError):
    """Bytes that are not what the format asks for."""


def varint(data: Buffer, at: int) -> tuple[int, int]:
    """The unsigned integer of up to 64 bits that begins at `at`, and where it ends."""
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
    """`count` bytes from `at` on, and where they end."""
    if count > len(data) - at:
        raise DamagedError(f"ends {at + count - len(data)} bytes too early")
    return bytes(data[at : at + count]), at + count


def fields(message: Buffer) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a protocol buffer message: its number with an integer, or with the bytes of a string or message."""
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
    """The value of a field that must be a number, not negative."""
    if isinstance(value, bytes) or value >= 1 << 63:
        raise DamagedError("a field that must be a number of at least 0 is not")
    return value


def content(value: int | bytes) -> bytes:
    """The value of a field that must be a string or a message."""
    if isinstance(value, int):
        raise DamagedError("a field that must be a string or a message is a number")
    return value


def text(value: int | bytes) -> str:
    """The value of a field that must be UTF-8 text, fit for a message on a terminal."""
    try:
        name = content(value).decode()
    except UnicodeDecodeError as error:
        raise DamagedError("a name that is not UTF-8") from error
    if not name.isprintable():
        raise DamagedError("a name with control characters")
    return name
