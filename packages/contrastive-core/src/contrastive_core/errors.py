"""Exception for errors that the user can correct."""

from __future__ import annotations

from pathlib import Path

_CONTROLS = (*range(32), *range(127, 160), 0x2028, 0x2029)
_DIRECTIONS = (*range(0x202A, 0x202F), *range(0x2066, 0x206A))
UNPRINTABLE = frozenset(map(chr, (*_CONTROLS, *_DIRECTIONS)))
"""Control characters, also those that end a line, and characters that change the direction of text, which can disguise
a name."""
_ESCAPES = {ord(letter): letter.encode("unicode_escape").decode() for letter in UNPRINTABLE - {"\n", "\t"}}
_LONGEST = 2000


class UserError(Exception):
    """Error in the user's input.

    The message names the file or argument and states what was found, what was expected and what to do. Command lines
    print it without a traceback. Because a message can quote the content of a file, control characters are escaped and
    lines of more than 2,000 characters are shortened.
    """

    def __init__(self, message: str) -> None:
        super().__init__("\n".join(map(_shortened, message.translate(_ESCAPES).split("\n"))))


def without_path(error: Exception, path: Path) -> str:
    """Return the message of an error about a file without the path of its folder."""
    return str(error).replace(f"{path}: ", "").replace(str(path), path.name).replace(f"{path.parent}/", "")


def _shortened(line: str) -> str:
    if len(line) <= _LONGEST:
        return line
    length = _LONGEST // 2 - 50
    return f"{line[:length]} ... ({len(line) - 2 * length:,} characters) ... {line[-length:]}"
