"""Read CSV and TSV files with named columns."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from contrastive_core.errors import UserError
from contrastive_core.training.documents import read_text, reading


def read_table(file: Path, *, needed: Sequence[str] = (), named_by: str = "") -> list[dict[str, str]]:
    """The rows of a table as column -> cell, without the spaces around; column names in lower case.

    Args:
        file: Separated by tabs if its name ends in .tsv, else by what Excel's first line ``sep=;`` states, or by the
            separator in the line of column names: commas, semicolons or tabs.
        needed: columns that must be there.
        named_by: beginning of columns whose name goes on as people wrote it, such as ``image_`` in ``image_T2``.

    Raises:
        UserError: no such file, not a table in UTF-8, a column is missing, rows of another length.
    """
    text = _text(file)
    first, _, rest = text.partition("\n")
    stated = first.strip().lower().removeprefix("sep=") if first.lower().startswith("sep=") else ""
    if len(stated) == 1:
        text, first = rest, rest.partition("\n")[0]
    usual = next((mark for mark in (",", ";", "\t") if mark in first), ",")
    delimiter = stated if len(stated) == 1 else "\t" if file.suffix.lower() == ".tsv" else usual
    with reading(file, "cannot be read as a table", "export it again"):
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
        columns = [_column(name.strip(), named_by) for name in next(reader, [])]
        cells = [(reader.line_num, row) for row in reader if any(map(str.strip, row))]
    missing = [name for name in needed if name not in columns]
    if missing:
        raise UserError(
            f"{file}: found the columns {', '.join(columns) or '(none)'}, expected {', '.join(missing)} as well"
        )
    wrong = [str(line) for line, row in cells if len(row) != len(columns)]
    if wrong:
        raise UserError(
            f"{file}: found rows of another length than its {len(columns)} columns (line {', '.join(wrong[:5])}"
            f"{', ...' if len(wrong) > 5 else ''}); put quotes around values that hold the separator"
        )
    return [dict(zip(columns, map(str.strip, row), strict=True)) for _, row in cells]


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
    """A cell that counts from 0.

    Raises:
        UserError: it holds something else.
    """
    if not row[column].isdecimal() or len(row[column]) > _DIGITS:
        raise UserError(f"{file}: found {column} {row[column]!r}, expected a whole number, counted from 0")
    return int(row[column])
