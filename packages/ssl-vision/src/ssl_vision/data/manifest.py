"""CSV manifests: which images, of which class, in which split."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from contrastive_core.errors import UserError
from ssl_vision.data.image_set import FileImages


@dataclass(frozen=True)
class Row:
    """A row of a manifest: its line, the image, its class (empty where the file does not say) and its split."""

    line: int
    path: str
    label: str
    split: str


def open_manifest(manifest: Path, *, split: str) -> FileImages:
    """Open a CSV file with the columns ``path`` and, as wanted, ``label`` and ``split``; other columns may follow.

    Paths are relative to the manifest, or absolute. Without a split column all rows are of split ``train``; a missing
    test split is looked for under ``val``. The order is that of the rows. Labels number the class names of the training
    split (of all rows, where there is none), with those that only this split has among them: sorted, and by value if
    all are whole numbers. Rows without a label are images to learn from without labels.

    Raises:
        UserError: not a CSV file in UTF-8, missing columns, rows without a path, no rows of the split.
    """
    everything = read_manifest(manifest)
    splits = manifest_splits(everything)
    if split == "test" and split not in splits and "val" in splits:
        split = "val"
    rows = everything if split == "all" else [row for row in everything if row.split == split]
    if not rows:
        found = f"rows of split {', '.join(splits)}" if splits else "no rows"
        raise UserError(f"{manifest}: found {found}, expected some of split {split!r}; say them in a column split")
    paths = [row.path for row in rows]
    bare = [row.line for row in rows if not row.label]
    if bare:
        found = "no labels" if len(bare) == len(rows) else f"{len(bare)} rows without a label ({_lines(bare)})"
        todo = "label every row, or give the labelled rows a split of their own"
        return FileImages(str(manifest), manifest.parent, paths, unlabelled=f"found {found}, expected labels; {todo}")
    training = {row.label for row in everything if row.split == "train" and row.label}
    if not training:
        training = {row.label for row in everything if row.label}
    classes = _in_order(training.union(row.label for row in rows))
    number = {name: label for label, name in enumerate(classes)}
    labels = [number[row.label] for row in rows]
    return FileImages(str(manifest), manifest.parent, paths, labels=labels, classes=classes)


def read_manifest(manifest: Path) -> list[Row]:
    """All rows of a manifest.

    Raises:
        UserError: as `open_manifest`.
    """
    try:
        with manifest.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, skipinitialspace=True, strict=True)
            columns = [name.strip().lower() for name in next(reader, [])]
            cells = [(reader.line_num, row) for row in reader if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{manifest}: cannot be read as CSV in UTF-8 ({error}); export it again") from error
    if "path" not in columns:
        found = ", ".join(columns) or "an empty file"
        raise UserError(f"{manifest}: found the columns {found}, expected path[,label][,split] separated by commas")
    wrong = [line for line, row in cells if len(row) != len(columns)]
    if wrong:
        raise UserError(
            f"{manifest}: found rows of another length than its {len(columns)} columns ({_lines(wrong)}); put quotes "
            "around values with a comma"
        )
    place = {name: columns.index(name) for name in ("path", "label", "split") if name in columns}
    rows = [
        Row(
            line,
            path=row[place["path"]],
            label=row[place["label"]].strip() if "label" in place else "",
            split=row[place["split"]].strip() if "split" in place else "train",
        )
        for line, row in cells
    ]
    pathless = [row.line for row in rows if not row.path.strip()]
    if pathless:
        raise UserError(
            f"{manifest}: found rows without a path ({_lines(pathless)}), expected one in each; remove them"
        )
    return rows


def manifest_splits(rows: Sequence[Row]) -> list[str]:
    """The splits that rows name, sorted."""
    return sorted({row.split for row in rows} - {""})


def _lines(numbers: Sequence[int]) -> str:
    listed = ", ".join(map(str, numbers[:5]))
    more = f" and {len(numbers) - 5} more" if len(numbers) > 5 else ""
    return f"line{'s' if len(numbers) > 1 else ''} {listed}{more}"


def _in_order(names: set[str]) -> list[str]:
    whole = all(name.removeprefix("-").isdecimal() for name in names)
    return sorted(names, key=lambda name: (int(name), name)) if whole else sorted(names)
