"""Read JSON, YAML and CSV files of unknown origin in bounded memory and time.

Whatever the parsers raise (damage, nesting beyond the recursion limit, integers of thousands of digits, aliases that
multiply, cells without end) becomes one error that names the file.
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

if TYPE_CHECKING:
    import yaml


@contextmanager
def reading(path: Path | str, problem: str, remedy: str) -> Iterator[None]:
    """Turn whatever is raised while a file is read into one error that names the file.

    Libraries raise what a damaged file leads them to, down to SyntaxError (NumPy) and AssertionError, so that no list
    of classes is complete; what interprets the content raises KeyError, TypeError and the like.

    Args:
        path: The file or folder.
        problem: What is wrong then: "is not readable as JSON".
        remedy: What to do: "restore it from a copy".

    Raises:
        UserError: ``path: problem (reason); remedy``. A UserError from inside stays, with the path in front if it names
            none.
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
    """The message of an error in one printable line of at most 300 characters."""
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
"""Bytes read at once: `read` takes memory for all that it is asked for."""
_DEEPEST = 100
_NODES = 1_000_000


def read_text(path: Path, *, largest: int = _LARGEST, expected: str = "a text file") -> str:
    """Read the text of a file in UTF-8, or in UTF-16 with a byte order mark; lines end in a line feed.

    Args:
        path: The file.
        largest: Largest size in bytes.
        expected: What the file should be, for the message: "a CSV file".

    Raises:
        UserError: The file cannot be read, is not text, or is larger than that.
    """
    with reading(path, "cannot be read as text in UTF-8", f"expected {expected}; save it again as UTF-8"):
        content = bytearray()
        with path.open("rb") as file:
            while len(content) <= largest and (more := file.read(min(_PIECE, largest + 1 - len(content)))):
                content += more
        if len(content) <= largest:
            is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
            text = content.decode("utf-16" if is_utf16 else "utf-8-sig")
            if "\0" in text:
                raise ValueError("it holds null bytes")
            return text.replace("\r\n", "\n").replace("\r", "\n")
    raise UserError(f"{path}: is larger than {size(largest)}, which no file of this kind is; is it the right one?")


def to_json_lines(head: Mapping[str, object], lists: Mapping[str, Sequence[object] | Mapping[str, object]]) -> bytes:
    """Return a JSON object that is read and compared line by line: a line per entry of the head and of every list."""
    lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
    for name, listed in lists.items():
        opening, closing = "{}" if isinstance(listed, Mapping) else "[]"
        if isinstance(listed, Mapping):
            entries = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in listed.items()]
        else:
            entries = [json.dumps(entry) for entry in listed]
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


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file with one JSON object a line; a last line that a kill has cut short is left out.

    Raises:
        UserError: The file cannot be read, or a line is no JSON object.
    """
    lines = read_text(path).split("\n")[:-1]
    with reading(path, "is damaged", "expected one JSON object per line; restore it from a copy"):
        records = [json.loads(line) for line in lines]
        if not all(isinstance(record, dict) for record in records):
            raise ValueError("a line is no object")
    return records


def read_yaml(path: Path) -> Any:
    """Read a YAML file of plain values.

    Raises:
        UserError: The file cannot be read, is not YAML, is nested deeper than 100 levels, or its aliases stand for
            more than a million values.
    """
    text = read_text(path)
    with reading(path, "is not readable as YAML", "restore it from a copy"):
        return _load_yaml(text)


def _load_yaml(text: str) -> Any:
    import yaml  # noqa: PLC0415 - command lines import this module before they know what to do

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
            raise ValueError(f"its aliases stand for more than {_NODES:,} values")
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _expanded(node: yaml.Node, known: dict[int, int]) -> int:
    """Count the values of a node, with aliases expanded."""
    if id(node) in known:
        if not known[id(node)]:
            raise ValueError("an alias stands for the value it is in")
        return known[id(node)]
    known[id(node)] = 0
    inside = node.value if isinstance(node.value, list) else []
    parts = [part for item in inside for part in (item if isinstance(item, tuple) else (item,))]
    known[id(node)] = 1 + sum(_expanded(part, known) for part in parts)
    return known[id(node)]


def read_rows(path: Path, *, delimiter: str = ",") -> list[list[str]]:
    """Read the rows of a CSV file, each a list of cells; empty lines are skipped.

    Raises:
        UserError: The file cannot be read, or a cell is longer than 131,072 characters.
    """
    text = read_text(path)
    with reading(path, "is not readable as a table", "restore it from a copy"):
        return [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if row]
