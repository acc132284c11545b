"""Read JSON, YAML and CSV files of unknown origin in bounded memory and time.

Every exception of the parsers becomes one error that names the file. Causes include damaged files, nesting beyond the
recursion limit, integers of thousands of digits, aliases that multiply, and cells without end.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contrastive_core.errors import UserError
from contrastive_core.text import size
from contrastive_core.training.files import check_regular

if TYPE_CHECKING:
    import yaml


@contextmanager
def reading(path: Path | str, problem: str, remedy: str) -> Iterator[None]:
    """Convert every exception raised while a file is read into one error that names the file.

    For damaged files, libraries raise exceptions of many classes, including SyntaxError (NumPy) and AssertionError, so
    that no list of classes would be complete. Code that interprets the content raises KeyError, TypeError and others.

    Args:
        path: File or folder.
        problem: Predicate of the error message, such as "is not readable as JSON".
        remedy: What the user should do, such as "restore it from a copy".

    Raises:
        UserError: ``path: problem (reason); remedy``. A UserError raised inside the block is passed on, preceded by the
            path if its message does not name it.
    """
    try:
        yield
    except UserError as error:
        if str(path) in str(error):
            raise
        raise UserError(f"{path}: {error}") from error
    except Exception as error:
        raise UserError(f"{path}: {problem} ({reason(error)}); {remedy}") from error


def reason(error: BaseException) -> str:
    """Return the message of an exception as one printable line of at most 300 characters."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split())[:300]
    if isinstance(error, KeyError):
        text = f"{text} is missing"
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text) or type(error).__name__


_LARGEST = 256 << 20
_PIECE = 1 << 20
"""Number of bytes to read at once, because `read` allocates memory for the requested number."""
_DEEPEST = 100
_NODES = 1_000_000


def read_text(path: Path, *, largest: int = _LARGEST, expected: str = "a text file") -> str:
    """Read a text file in UTF-8, or in UTF-16 with a byte order mark, and convert line ends to line feeds.

    Args:
        path: File to read.
        largest: Largest accepted size in bytes.
        expected: Expected kind of file for error messages, such as "a CSV file".

    Raises:
        UserError: The file cannot be read, is not text, or is larger than `largest` bytes.
    """
    with reading(path, "cannot be read as text in UTF-8", f"expected {expected}; save it again as UTF-8"):
        if not path.exists():
            raise UserError(f"{path}: cannot be read, because there is no such file; expected {expected}")
        if not str(path).startswith("/dev/"):  # a pipe from the shell, as in <(command), is intended
            check_regular(path, what="a text file")
        content = bytearray()
        with path.open("rb") as file:
            while len(content) <= largest and (more := file.read(min(_PIECE, largest + 1 - len(content)))):
                content += more
        if len(content) <= largest:
            is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
            text = content.decode("utf-16" if is_utf16 else "utf-8-sig")
            if "\0" in text:
                raise ValueError("it contains null bytes")
            return text.replace("\r\n", "\n").replace("\r", "\n")
    raise UserError(
        f"{path}: is larger than {size(largest)}, expected a smaller file; check that this is the right file"
    )


def to_json_lines(head: Mapping[str, object], lists: Mapping[str, Sequence[object] | Mapping[str, object]]) -> bytes:
    """Return a JSON object with one line per entry of the head and of every list, so that it is easy to compare."""
    lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
    for name, collection in lists.items():
        opening, closing = "{}" if isinstance(collection, Mapping) else "[]"
        if isinstance(collection, Mapping):
            entries = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in collection.items()]
        else:
            entries = [json.dumps(entry) for entry in collection]
        inside = "\n  " + ",\n  ".join(entries) + "\n " if entries else ""
        lines.append(f" {json.dumps(name)}: {opening}{inside}{closing}")
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: The file cannot be read or is not JSON.
    """
    text = read_text(path)
    with reading(path, "is not readable as JSON", "restore it from a copy"):
        return json.loads(text)


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that contains an object.

    Raises:
        UserError: The file cannot be read, is not JSON, or contains another value.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: contains a {type(content).__name__}; expected a JSON object (in braces)")
    return content


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Read a file with one JSON object per line; an incomplete last line, left by a killed process, is ignored.

    Raises:
        UserError: The file cannot be read, or a line is not a JSON object.
    """
    lines = read_text(path).split("\n")[:-1]
    with reading(path, "is damaged", "expected one JSON object per line; restore it from a copy"):
        records = [json.loads(line) for line in lines]
        if not all(isinstance(record, dict) for record in records):
            raise ValueError("a line is not an object")
    return records


def read_yaml(path: Path) -> Any:
    """Read a YAML file of plain values.

    Raises:
        UserError: The file cannot be read, is not YAML, is nested deeper than 100 levels, or has aliases that expand to
            more than a million values.
    """
    text = read_text(path)
    with reading(path, "is not readable as YAML", "restore it from a copy"):
        return _load_yaml(text)


def _load_yaml(text: str) -> Any:
    import yaml  # noqa: PLC0415 - command lines import this module to parse their flags

    class Loader(yaml.SafeLoader):
        depth = 0

        def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
            self.depth += 1
            if self.depth > _DEEPEST:
                raise ValueError(f"nested deeper than {_DEEPEST} levels")
            node: yaml.Node | None = super().compose_node(parent, index)
            self.depth -= 1
            return node

    loader = Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _expanded(node, {}) > _NODES:
            raise ValueError(f"its aliases expand to more than {_NODES:,} values")
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _expanded(node: yaml.Node, counts: dict[int, int]) -> int:
    """Count the values of a node, with aliases expanded."""
    if id(node) in counts:
        if not counts[id(node)]:
            raise ValueError("an alias refers to the value that contains it")
        return counts[id(node)]
    counts[id(node)] = 0
    inside = node.value if isinstance(node.value, list) else []
    parts = [part for item in inside for part in (item if isinstance(item, tuple) else (item,))]
    counts[id(node)] = 1 + sum(_expanded(part, counts) for part in parts)
    return counts[id(node)]


def read_rows(path: Path, *, delimiter: str = ",") -> list[list[str]]:
    """Read the rows of a CSV file, each a list of cells; empty lines are skipped.

    Raises:
        UserError: The file cannot be read, or a cell is longer than 131,072 characters.
    """
    text = read_text(path)
    with reading(path, "is not readable as a table", "restore it from a copy"):
        return [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if row]
