"""Read CSV and TSV files with named columns."""

from __future__ import annotations

import csv
import io
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from contrastive_core.errors import UserError
from contrastive_core.text import some_of
from contrastive_core.training.documents import read_text, reading
from contrastive_core.training.tables import stated_separator, with_row_numbers


def read_table(file: Path, *, needed: Sequence[str] = (), named_by: str = "") -> list[dict[str, str]]:
    """Read a table as one dictionary per row, from column name to cell.

    Column names are converted to lower case, spaces around cells are removed, and accents are composed (NFC), except in
    the paths of the columns ``image`` and ``label``.

    Args:
        file: File with tabs as separators if its name ends in .tsv. Otherwise the separator is that of Excel's first
            line ``sep=;``, or the one in the line of column names: comma, semicolon or tab.
        needed: Required columns.
        named_by: Prefix of columns whose remaining name keeps its case, such as ``image_`` in ``image_T2``.

    Raises:
        UserError: The file does not exist or is not a table in UTF-8, a column is missing, or rows differ in length.
    """
    text = _text(file)
    first, _, rest = text.partition("\n")
    separator = stated_separator(first)
    if separator:
        text, first = rest, rest.partition("\n")[0]
    default = next((mark for mark in (",", ";", "\t") if mark in first), ",")
    delimiter = separator or ("\t" if file.suffix.lower() == ".tsv" else default)
    with reading(file, "cannot be read as a table", "export it again"):
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
        columns = [_column(name.strip(), named_by) for name in next(reader, [])]
        cells = [(reader.line_num + bool(separator), row) for row in reader if any(map(str.strip, row))]
    columns = with_row_numbers(columns, [row for _, row in cells])
    missing = [name for name in needed if name not in columns]
    if missing:
        raise UserError(
            f"{file}: found the columns {', '.join(columns) or '(none)'}; expected {', '.join(missing)} as well"
        )
    wrong = [str(line) for line, row in cells if len(row) != len(columns)]
    if wrong:
        raise UserError(
            f"{file}: the number of cells in line {some_of(wrong)} differs "
            f"from the number of columns, {len(columns)}; put quotes around values that contain the separator"
        )
    return [{name: _cell(cell, name) for name, cell in zip(columns, row, strict=True)} for _, row in cells]


def _cell(cell: str, column: str) -> str:
    is_path = column == "label" or column.startswith("image")
    return cell.strip() if is_path else unicodedata.normalize("NFC", cell.strip())


def _text(file: Path) -> str:
    try:
        return read_text(file)
    except UserError as error:
        if isinstance(error.__cause__, UnicodeDecodeError):
            raise UserError(
                f"{file}: is not text in UTF-8 ({error.__cause__.reason} at byte {error.__cause__.start}); save it "
                'again as UTF-8, in Excel as "CSV UTF-8"'
            ) from error
        raise


def _column(name: str, named_by: str) -> str:
    if named_by and name.lower().startswith(named_by):
        return named_by + name[len(named_by) :]
    return name.lower()


_DIGITS = 9


def whole_number(row: dict[str, str], column: str, file: Path) -> int:
    """Return a cell as a non-negative integer.

    Raises:
        UserError: The cell contains something else.
    """
    if not row[column].isdecimal() or len(row[column]) > _DIGITS:
        raise UserError(f"{file}: found {column} {row[column]!r}; expected a whole number, counted from 0")
    return int(row[column])
