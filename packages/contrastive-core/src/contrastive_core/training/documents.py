"""Read JSON, YAML and CSV files of unknown origin in bounded memory and time.

Whatever the parsers raise (damage, nesting beyond the recursion limit, integers of thousands of digits, aliases that
multiply, cells without end) becomes one error that names the file.
"""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contrastive_core.errors import UserError
from contrastive_core.text import size

if TYPE_CHECKING:
    import yaml

#: What reading and parsing text can raise.
UNREADABLE = (OSError, ValueError, RecursionError, OverflowError, MemoryError, csv.Error)

#: What interpreting the content of a document can raise as well. Every reader of a format catches these.
DAMAGED = (*UNREADABLE, KeyError, IndexError, TypeError, AttributeError)

_LARGEST = 256 << 20
_DEEPEST = 100
_NODES = 1_000_000


def read_text(path: Path, *, largest: int = _LARGEST) -> str:
    """Read the text of a UTF-8 file, with or without byte order mark.

    Raises:
        UserError: The file cannot be read, is not UTF-8, or is larger than so many bytes.
    """
    try:
        with path.open("rb") as file:
            content = file.read(largest + 1)
        if len(content) <= largest:
            return content.decode("utf-8-sig")
    except UNREADABLE as error:
        raise UserError(f"{path}: cannot be read ({_reason(error)}); expected a text file in UTF-8") from error
    raise UserError(f"{path}: is larger than {size(largest)}, which no file of this kind is; is it the right one?")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: The file cannot be read or is not JSON.
    """
    text = read_text(path)
    try:
        return json.loads(text)
    except UNREADABLE as error:
        raise UserError(f"{path}: is not readable as JSON ({_reason(error)}); restore it from a copy") from error


def read_yaml(path: Path) -> Any:
    """Read a YAML file of plain values.

    Raises:
        UserError: The file cannot be read, is not YAML, is nested deeper than 100 levels, or its aliases stand for
            more than a million values.
    """
    import yaml  # noqa: PLC0415 - command lines import this module before they know what to do

    text = read_text(path)
    try:
        return _load_yaml(text)
    except (*UNREADABLE, yaml.YAMLError) as error:
        raise UserError(f"{path}: is not readable as YAML ({_reason(error)}); restore it from a copy") from error


def _load_yaml(text: str) -> Any:
    import yaml  # noqa: PLC0415

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
    try:
        return [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if row]
    except UNREADABLE as error:
        raise UserError(f"{path}: is not readable as a table ({_reason(error)}); restore it from a copy") from error


def _reason(error: BaseException) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return " ".join(str(error).split())[:300] or type(error).__name__
