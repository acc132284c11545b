"""Read lists and tables written by people and spreadsheets: columns, paths and missing values."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path

from contrastive_core.errors import UserError
from contrastive_core.text import some_of

_MISSING = frozenset({"", "nan", "<na>", "n/a", "null"})  # written by other programs for missing values
_WHOLE = re.compile(r"-?\d+(?:\.0+)?")
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")
_STRONG_SEPARATOR = re.compile(r"\s*[|;]\s*")
_SEPARATOR = re.compile(r"\s*[|;,]\s*")
_WEAK_SEPARATOR = re.compile(r"\s*[/+&]\s*|\s+")  # also within the name of a class
_LIST = re.compile(r"""\[\s*['"].*['"]\s*\]""")
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


def is_missing(text: str) -> bool:
    """Return whether a cell denotes a missing value: empty, ``nan``, ``<NA>``, ``n/a`` or ``null``."""
    return text.strip().lower() in _MISSING


def whole_numbers(labels: Sequence[str]) -> list[str]:
    """Remove the decimals of labels if all of them are whole numbers or missing.

    pandas writes the numbers 0, 1 and 2 as 0.0, 1.0 and 2.0 if others in the column are missing.

    >>> whole_numbers(["2.0", "", "10.0"]), whole_numbers(["1.0", "1.5"])
    (['2', '', '10'], ['1.0', '1.5'])
    """
    if all(is_missing(label) or _WHOLE.fullmatch(label) for label in labels):
        return [label.partition(".")[0] for label in labels]
    return list(labels)


def similar_names(names: Iterable[str]) -> list[str]:
    """Describe names that differ only in case, spaces, underscores, hyphens, invisible characters or leading zeros.

    >>> similar_names(["long jump", "Long_Jump", "1_0", "10"])
    ['classes with nearly the same name: Long_Jump and long jump; they are different classes']
    """
    spellings: dict[str, list[str]] = {}
    for name in sorted({*names}):
        visible = "".join(c for c in unicodedata.normalize("NFKC", name) if unicodedata.category(c) != "Cf")
        # Not between digits, where they may be signs or decimals.
        key = re.sub(r"(?<=[^\W\d_])[\s_-]+|[\s_-]+(?=[^\W\d_])", "", visible).casefold()
        key = (key.lstrip("0") or "0") if key.isdecimal() else key
        text = "".join(c if unicodedata.category(c) != "Cf" else f"\\u{ord(c):04x}" for c in name)
        spellings.setdefault(key, []).append(text)
    groups = [" and ".join(group) for group in spellings.values() if len(group) > 1]
    return [f"classes with nearly the same name: {some_of(groups)}; they are different classes"] if groups else []


def joined_names(labels: Set[str]) -> list[str]:
    """Describe labels that list several classes.

    These are ``a|b`` beside ``a`` or ``c|b``, ``a b`` beside ``a`` and ``b``, and ``['a', 'b']``.

    >>> joined_names({"run;indoor", "jump;indoor", "salt and pepper"})[0][:46]
    "labels such as 'jump;indoor' join several clas"
    """
    parts = Counter(part for label in labels for part in {*_SEPARATOR.split(label)})
    combinations = sorted(
        label
        for label in labels
        if {*_SEPARATOR.split(label)} & (labels - {label})
        or any(parts[part] > 1 for part in {*_STRONG_SEPARATOR.split(label)} - {label})
        or (len(tokens := {*_WEAK_SEPARATOR.split(label)}) > 1 and tokens <= labels)
        or _LIST.fullmatch(label)
    )
    if not combinations:
        return []
    return [
        f"labels such as {combinations[0]!r} join several classes; each combination is used as a class of its own, "
        "because only one class is predicted"
    ]


def column_names(header: Sequence[str]) -> list[str]:
    """Write the names of a table's columns in lower case and with underscores.

    >>> column_names(["Path", "Class Name ", "is-valid"])
    ['path', 'class_name', 'is_valid']
    """
    return [re.sub(r"[\s_-]+", "_", name.strip().lower()) for name in header]


def stated_separator(line: str) -> str:
    """Return the separator that a line ``sep=;`` states, which spreadsheets write above a table; else an empty string.

    >>> stated_separator("sep=;"), stated_separator("path;class")
    (';', '')
    """
    line = line.strip("\r\n")
    return line[4] if len(line) == len("sep=;") and line.lower().startswith("sep=") else ""


def with_row_numbers(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Add the column of row numbers that R writes, and pandas with tabs, without a name in the header.

    >>> with_row_numbers(["path", "label"], [["1", "a.png", "cat"], ["7", "b.png", "dog"]])
    ['', 'path', 'label']
    >>> with_row_numbers(["path", "label"], [["a", "b.png", "cat"]])
    ['path', 'label']
    """
    numbers = [row[0] for row in rows if len(row) == len(header) + 1 and row[0].isdigit()]
    return ["", *header] if rows and len({*numbers}) == len(rows) else list(header)


def find_columns(
    file: Path, columns: Sequence[str], meanings: Mapping[str, Sequence[str]]
) -> tuple[dict[str, int], list[str]]:
    """Find the columns of a table by their meanings.

    Args:
        file: Path of the table, for error messages.
        columns: Names of its columns, as `column_names` writes them.
        meanings: Possible column names of each meaning, in order of preference.

    Returns:
        Position of the column of each meaning that occurs, and sentences about columns that are ignored because a
        preferred column has the same meaning.

    Raises:
        UserError: A column occurs twice.
    """
    duplicates = sorted({name for name in columns if name and columns.count(name) > 1})
    if duplicates:
        raise UserError(f"{file}: found the column {duplicates[0]} twice, expected it once; remove or rename one")
    positions, notes = {}, []
    for meaning, names in meanings.items():
        matches = [name for name in names if name in columns]
        if matches:
            positions[meaning] = columns.index(matches[0])
        if len(matches) > 1 and meaning != "path":
            notes.append(f"of the columns {' and '.join(matches)}, {matches[0]} is used as the {meaning}")
    return positions, notes


def local_path(path: str, folder: Path) -> str:
    """Convert a path in a list to the form of this computer.

    Backslashes become slashes, and accents are composed or decomposed (NFC, NFD), unless a file with exactly that name
    exists. Each folder may have its own form, such as those of files from macOS in a folder of another system.

    Args:
        path: Path in the list.
        folder: Folder to which the path is relative.
    """
    if path.isascii() and "\\" not in path:
        return path
    posix_path = path.replace("\\", "/")
    spellings = (path, posix_path, unicodedata.normalize("NFC", posix_path), unicodedata.normalize("NFD", posix_path))
    for spelling in spellings:
        if (folder / spelling).exists():
            return spelling
    prefix = ""
    for part in posix_path.split("/"):
        forms = [prefix + form for form in (part, *(unicodedata.normalize(form, part) for form in ("NFC", "NFD")))]
        prefix = next((form for form in forms if (folder / form).exists()), forms[0]) + "/"
    return prefix.removesuffix("/")


_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def safe_cell(text: str, *, path: bool = False) -> str:
    """Escape text that a spreadsheet could read as a formula: ``./`` before a path, an apostrophe before other text.

    >>> safe_cell("=1+1"), safe_cell("-clip.mp4", path=True), safe_cell("cat")
    ("'=1+1", './-clip.mp4', 'cat')
    """
    if text.startswith(_FORMULA):
        return f"./{text}" if path else f"'{text}"
    return text


def plain_cell(text: str) -> str:
    """Undo `safe_cell` for text that is not a path.

    >>> plain_cell("'=1+1"), plain_cell("'quoted'")
    ('=1+1', "'quoted'")
    """
    return text[1:] if text.startswith("'") and text[1:].startswith(_FORMULA) else text


def check_local(file: Path, paths: Iterable[tuple[int, str]]) -> None:
    """Raise an error for addresses such as ``https://`` and ``s3://``, and for paths on a Windows drive elsewhere.

    Args:
        file: Path of the list, for the error message.
        paths: Line number and path of each row.

    Raises:
        UserError: A path is not on this computer.
    """
    remote, drives = [], []
    for line, path in paths:
        if is_address(path):
            remote.append((line, path))
        elif _DRIVE.match(path) and Path("/").anchor == "/":
            drives.append((line, path))
    for entries, what, advice in (
        (remote, "addresses", "download the files, and list their paths"),
        (drives, "paths on a Windows drive", "make them relative to the list"),
    ):
        if entries:
            line, path = entries[0]
            more = f" and {len(entries) - 1} more" if len(entries) > 1 else ""
            raise UserError(
                f"{file}: found {what} ({path}, line {line}{more}), expected paths on this computer; {advice}"
            )


def is_address(path: str) -> bool:
    """Return whether a path is an address such as ``https://host/file`` or ``s3://bucket/file``."""
    return _ADDRESS.match(path) is not None
