"""Check names that come from data, such as those of cases, classes, patients, structures and archive members."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable

from contrastive_core.errors import UNPRINTABLE, UserError

#: Names of devices on Windows, with any ending.
_DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?", re.IGNORECASE)
_DRIVE = re.compile(r"[A-Za-z]:")  # there, a path that is joined to a folder leaves it
#: File systems allow 255 bytes; endings and parts of temporary names are appended to a name.
_LONGEST = 200
_LONGEST_PART, _LONGEST_PATH = 255, 4000


def check_file_name(name: str, *, what: str, source: object) -> str:
    """Return the name if it is a valid name for an output file.

    Args:
        name: Name to check.
        what: Kind of object that has the name, such as "case".
        source: File that the name comes from, for the error message.

    Raises:
        UserError: The name is empty, too long, hidden or reserved, begins with a drive letter, or contains a separator
            or a control character.
    """
    check_label(name, what=what, source=source)
    if "/" in name or "\\" in name:
        problem = "contains a path separator"
    elif _DRIVE.match(name) or (os.name == "nt" and ":" in name):
        problem = "names a drive or a stream of a file on Windows"
    elif name.startswith("."):
        problem = "begins with a dot"
    elif name.endswith((".", " ")) or name.startswith(" "):
        problem = "begins or ends with a space, or ends with a dot"
    elif _DEVICES.fullmatch(name):
        problem = "is reserved on Windows"
    elif len(os.fsencode(name)) > _LONGEST:
        problem = f"is longer than {_LONGEST} bytes"
    else:
        return name
    raise UserError(f"{source}: the {what} {name!r} {problem}, so it cannot be used as a file name; rename it there")


def as_file_name(text: str, *, otherwise: str) -> str:
    """Convert free text, such as the description of a DICOM series, to a file name.

    Args:
        text: Free text. Letters, digits, points and underscores are kept; other characters become dashes.
        otherwise: File name if no character of the text can be kept.

    >>> as_file_name("../t2 tse (axial)", otherwise="series")
    't2-tse-axial'
    """
    name = re.sub(r"[^\w.]+", "-", text).strip("-.")
    name = os.fsencode(name)[:_LONGEST].decode(errors="ignore").rstrip("-.")
    return f"{otherwise}-{name}" if _DEVICES.fullmatch(name) else name or otherwise


def check_labels(names: Iterable[str], *, what: str, source: object) -> None:
    """Check several names with `check_label`.

    Raises:
        UserError: One of the names is not valid.
    """
    for name in names:
        check_label(name, what=what, source=source)


def check_label(name: str, *, what: str, source: object) -> str:
    """Return the name if it can be shown in tables and reports.

    Raises:
        UserError: The name is not text in UTF-8, is empty, or contains control characters or characters that change the
            direction of text.
    """
    if not isinstance(name, str):
        raise UserError(
            f"{source}: the {what} {name!r} is a {type(name).__name__}, expected text; put it in quotes there"
        )
    if not name.strip():
        raise UserError(f"{source}: a {what} has an empty name; give it a name there")
    if UNPRINTABLE.intersection(name):
        raise UserError(f"{source}: the {what} {name!r} contains control characters; rename it there")
    if any("\ud800" <= letter <= "\udfff" for letter in name):  # how Python stands in for bytes that are not UTF-8
        if _is_utf8_on_disk(name):
            raise UserError(
                f"{source}: the {what} {name!r} cannot be read, because the locale has no UTF-8 (file names are "
                f"{sys.getfilesystemencoding()}); set the environment variable PYTHONUTF8=1"
            )
        raise UserError(f"{source}: the {what} {name!r} is not text in UTF-8; rename it there")
    return name


def _is_utf8_on_disk(name: str) -> bool:
    """Return whether a file name that Python could not decode is UTF-8, which the locale does not use."""
    try:
        return bool(name.encode(sys.getfilesystemencoding(), "surrogateescape").decode("utf-8"))
    except UnicodeError:
        return False


def check_path(path: str, *, what: str, source: object) -> str:
    """Return a path from a table or list unless no file system accepts it; it may lead to any folder.

    Raises:
        UserError: The path contains a null character or is too long.
    """
    if "\0" in path:
        raise UserError(f"{source}: the {what} {path[:100]!r} contains a null character; restore the file from a copy")
    longest = max(map(len, map(os.fsencode, re.split(r"[/\\]", path))))
    if longest > _LONGEST_PART or len(path) > _LONGEST_PATH:
        raise UserError(
            f"{source}: the {what} {path[:50]!r}... has {len(path):,} characters, more than a file system accepts; "
            "correct the path"
        )
    return path
