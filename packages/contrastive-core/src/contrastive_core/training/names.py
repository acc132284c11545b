"""Check names that come from data: of cases, classes, patients, structures and archive members."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from contrastive_core.errors import UNPRINTABLE, UserError

#: Devices on Windows, whatever the ending.
_DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?", re.IGNORECASE)
#: A file system takes 255 bytes; endings and temporary names are added to a name.
_LONGEST = 200


def check_file_name(name: str, *, what: str, source: object) -> str:
    """Return the name if an output file can have it.

    Args:
        name: Name to check.
        what: Kind of thing named, such as "case".
        source: File that the name comes from, for the message.

    Raises:
        UserError: It is empty, too long, hidden or reserved, or holds a separator or a control character.
    """
    check_label(name, what=what, source=source)
    if "/" in name or "\\" in name:
        problem = "holds a path separator"
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
    raise UserError(f"{source}: the {what} {name!r} {problem}, so no file can be named after it; rename it there")


def as_file_name(text: str, *, otherwise: str) -> str:
    """A file name that resembles free text, such as the description of a DICOM series or the name of a data set.

    Args:
        text: The text; letters, digits, points and underscores of it are kept, all else becomes a dash.
        otherwise: The name where nothing of the text can be kept.

    >>> as_file_name("../t2 tse (axial)", otherwise="series")
    't2-tse-axial'
    """
    name = re.sub(r"[^\w.]+", "-", text).strip("-.")
    name = os.fsencode(name)[:_LONGEST].decode(errors="ignore").rstrip("-.")
    return f"{otherwise}-{name}" if _DEVICES.fullmatch(name) else name or otherwise


def check_labels(names: Iterable[str], *, what: str, source: object) -> None:
    """Check several names, see `check_label`.

    Raises:
        UserError: One of them is none.
    """
    for name in names:
        check_label(name, what=what, source=source)


def check_label(name: str, *, what: str, source: object) -> str:
    """Return the name if it can be shown in tables and reports.

    Raises:
        UserError: It is not text, is empty, or holds control characters or characters that reverse the text direction.
    """
    if not isinstance(name, str):
        raise UserError(
            f"{source}: the {what} {name!r} is a {type(name).__name__}; expected text. Put it in quotes there"
        )
    if not name.strip():
        raise UserError(f"{source}: a {what} has no name; name it there")
    if UNPRINTABLE.intersection(name):
        raise UserError(f"{source}: the {what} {name!r} holds control characters; rename it there")
    return name


def check_relative_path(path: str, *, what: str, source: object) -> str:
    """Return a relative path with forward slashes if it stays inside its folder and every part is a valid file name.

    Raises:
        UserError: It is absolute, leads outside, or has a part that is not a valid file name.
    """
    for part in path.split("/"):
        check_file_name(part, what=what, source=source)
    return path


def inside(folder: Path, path: Path) -> bool:
    """Return whether a path, with all links resolved, is below a folder."""
    return path.resolve().is_relative_to(folder.resolve())
