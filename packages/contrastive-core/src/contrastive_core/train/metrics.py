"""Metrics of a run: one JSON object per line, and the same records as a CSV table.

The two files hold nothing but what is a function of configuration and seed (no times), so that a resumed run ends with
the same bytes as one that was never interrupted.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

from contrastive_core.train import files

Value = int | float
Record = Mapping[str, Value]


class MetricsFile:
    """Appends records to `metrics.jsonl` and `metrics.csv`.

    The table's columns are the names in their order of first appearance; a new name rewrites it. Numbers that JSON does
    not know are the strings "NaN", "Infinity" and "-Infinity", which float() reads.
    """

    def __init__(self, folder: Path) -> None:
        self._jsonl, self._csv = folder / "metrics.jsonl", folder / "metrics.csv"
        self._columns: list[str] = []

    def append(self, record: Record) -> None:
        """Add one record."""
        with self._jsonl.open("a", encoding="utf-8", newline="\n") as file:
            file.write(_line(record))
        if all(name in self._columns for name in record):
            with self._csv.open("a", encoding="utf-8", newline="") as file:
                file.write(_row(self._columns, record))
        else:
            self._rewrite_table()

    def sync(self) -> int:
        """Force the records to the disk; how many bytes they are."""
        if not self._jsonl.exists():
            return 0
        files.sync(self._jsonl)
        files.sync(self._jsonl.parent)
        return self._jsonl.stat().st_size

    def cut(self, size: int) -> int:
        """Keep the first `size` bytes, which a checkpoint covers; how many bytes of them are not there any more."""
        if not self._jsonl.exists():
            return size
        content = self._jsonl.read_bytes()[:size]
        content = content[: content.rfind(b"\n") + 1]
        files.write_atomic(self._jsonl, content)
        self._rewrite_table()
        return size - len(content)

    def _rewrite_table(self) -> None:
        records = read(self._jsonl)
        self._columns = list(dict.fromkeys(name for record in records for name in record))
        text = _row(self._columns, dict(zip(self._columns, self._columns, strict=True))) if records else ""
        files.write_atomic(self._csv, (text + "".join(_row(self._columns, record) for record in records)).encode())


class TimingFile:
    """Appends to `timing.jsonl`: seconds, speed and the machine, which differ from run to run."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "timing.jsonl"

    def begin(self, session: Mapping[str, object]) -> None:
        """Add the record of a start, after removing a last line that a kill has cut short."""
        content = self._path.read_bytes() if self._path.exists() else b""
        files.write_atomic(self._path, content[: content.rfind(b"\n") + 1])
        self.append(session)

    def append(self, record: Mapping[str, object]) -> None:
        """Add one record."""
        with self._path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(record) + "\n")


def read(path: Path) -> list[dict[str, Value]]:
    """Records of a `metrics.jsonl`; a last line that a kill has cut short is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [
        {name: float(value) if isinstance(value, str) else value for name, value in json.loads(line).items()}
        for line in lines
        if line.endswith("\n")
    ]


def _line(record: Record) -> str:
    return json.dumps({name: value if math.isfinite(value) else _name(value) for name, value in record.items()}) + "\n"


def _row(columns: Iterable[str], record: Mapping[str, object]) -> str:
    text = io.StringIO()
    values = [record.get(name, "") for name in columns]
    csv.writer(text, lineterminator="\n").writerow(
        [_name(value) if isinstance(value, float) and not math.isfinite(value) else value for value in values]
    )
    return text.getvalue()


def _name(value: float) -> str:
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
