"""Read CSV manifests with a path, a class and a split per row."""

from __future__ import annotations

import csv
import io
import os
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from contrastive_core.errors import UserError
from contrastive_core.text import several, some_of
from contrastive_core.training.documents import read_text, reading
from contrastive_core.training.split_names import canonical_split, split_word
from contrastive_core.training.tables import (
    check_local,
    column_names,
    find_columns,
    is_missing,
    joined_names,
    local_path,
    similar_names,
    stated_separator,
    whole_numbers,
    with_row_numbers,
)
from ssl_vision.data.dataset import ReadOptions
from ssl_vision.data.decode import FileImages
from ssl_vision.data.listing import printable

COLUMNS = {
    "path": ("path", "file", "filename", "file_name", "filepath", "image", "image_path"),
    "label": ("label", "class", "class_name", "category", "labels"),
    "split": ("split", "subset", "partition"),
}
"""Accepted names of each column; if a file has several of them, the first listed here is used."""


@dataclass(frozen=True)
class Row:
    """A row of a manifest: its line, the image, its class (empty if not stated) and its split."""

    line: int
    path: str
    label: str
    split: str


@dataclass(frozen=True)
class Manifest:
    """The rows of a manifest, and sentences about what was inferred or left out when it was read."""

    rows: list[Row]
    notes: list[str]


def open_manifest(
    manifest: Path,
    *,
    split: str,
    channels: int = 3,
    read: ReadOptions = ReadOptions(),  # noqa: B008 - frozen
) -> FileImages:
    """Open a CSV file with the column ``path`` and optional columns ``label`` and ``split``; others are ignored.

    Paths are relative to the manifest, or absolute. Without a split column, all rows belong to ``train``; if there is
    no test split, ``val`` is used in its place. Splits can have the same spellings as for folders (Train, validation,
    TEST). The order is that of the rows. Labels number the class names of the training split (of all rows, if there is
    none) and of this split: sorted, and by value if all are whole numbers. Rows without a label are unlabelled images.

    Raises:
        UserError: The file is not CSV in UTF-8, columns are missing or repeated, rows have no path, or the split has no
            rows.
    """
    content = read_manifest(manifest)
    all_rows = content.rows
    splits = manifest_splits(all_rows)
    split = canonical_split(split)
    if split == "test" and split not in splits and "val" in splits:
        split = "val"
    rows = all_rows if split == "all" else [row for row in all_rows if row.split == split]
    if not rows:
        splits_text = f"rows of split {', '.join(splits)}" if splits else "no rows"
        raise UserError(
            f"{manifest}: found {splits_text}, expected some of split {split!r}; name the split of each row in a "
            "column split"
        )
    paths = [row.path for row in rows]
    notes = [f"{manifest}: {note}" for note in content.notes]
    lines_without_split = [row.line for row in all_rows if not row.split]
    if lines_without_split and split != "all":
        notes.append(
            f"{manifest}: {several(len(lines_without_split), 'row')} without a split, left out "
            f"({_lines(lines_without_split)})"
        )
    bare = [row.line for row in rows if not row.label]
    if bare:
        problem = f"{several(len(bare), 'row')} without a label ({_lines(bare)})"
        if len(bare) == len(rows):
            problem = "no labels" if len(rows) == len(all_rows) else f"no labels in split {split!r}"
        remedy = "label every row, or give the labelled rows a split of their own"
        reason = f"found {problem}, expected labels; {remedy}"
        return FileImages(
            str(manifest),
            manifest.parent,
            paths,
            unlabelled=reason,
            split=split,
            notes=notes,
            channels=channels,
            options=read,
        )
    training = {row.label for row in all_rows if row.split == "train" and row.label}
    if not training:
        training = {row.label for row in all_rows if row.label}
    classes = _in_order(training.union(row.label for row in rows))
    number = {name: label for label, name in enumerate(classes)}
    labels = [number[row.label] for row in rows]
    return FileImages(
        str(manifest), manifest.parent, paths, labels=labels, classes=classes, split=split, notes=notes,
        channels=channels, options=read,
    )  # fmt: skip


def read_manifest(manifest: Path) -> Manifest:
    """Read all rows of a manifest.

    Columns can be separated by commas, semicolons or tabs. Empty rows are skipped. A label ``nan``, ``<NA>``, ``n/a``
    or ``null`` means that the label is missing. Backslashes separate folders unless a file has them in its name.

    Raises:
        UserError: See `open_manifest`.
    """
    text = read_text(manifest, expected="a CSV file")
    head, _, rest = text.partition("\n")
    separator = stated_separator(head)
    if separator:
        text, head = rest, rest.partition("\n")[0]
    delimiter = separator or max(",;\t", key=head.count)
    with reading(manifest, "cannot be read as CSV", "export it again"):
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
        columns = [name.strip() for name in next(reader, [])]
        cells = [(reader.line_num + bool(separator), row) for row in reader if any(cell.strip() for cell in row)]
    columns = with_row_numbers(columns, [row for _, row in cells])
    positions, notes = _places(manifest, columns)
    ragged_lines = [line for line, row in cells if len(row) != len(columns)]
    if ragged_lines:
        raise UserError(
            f"{manifest}: found rows with more or fewer values than its {len(columns)} columns "
            f"({_lines(ragged_lines)}); put quotes around values with a comma"
        )
    missing: list[int] = []
    rows = []
    for line, row in cells:
        label = unicodedata.normalize("NFC", row[positions["label"]].strip()) if "label" in positions else ""
        if label and is_missing(label):
            missing.append(line)
            label = ""
        split = row[positions["split"]].strip() if "split" in positions else "train"
        split = "" if is_missing(split) else canonical_split(split)
        rows.append(Row(line, local_path(row[positions["path"]].strip(), manifest.parent), label, split))
    labels = whole_numbers([row.label for row in rows])
    rows = [replace(row, label=label) for row, label in zip(rows, labels, strict=True)]
    pathless = [row.line for row in rows if not row.path]
    if pathless:
        raise UserError(
            f"{manifest}: found rows without a path ({_lines(pathless)}), expected one in each; remove them"
        )
    check_local(manifest, ((row.line, row.path) for row in rows))
    if rows and not any(os.path.exists(manifest.parent / row.path) for row in rows[:_FIRST]):  # noqa: PTH110 - any text
        missing_images = "the only image does" if len(rows) == 1 else f"the first {min(len(rows), _FIRST)} images do"
        notes.append(
            f"{missing_images} not exist ({printable(str(manifest.parent / rows[0].path))}); write paths relative to "
            "the folder of the manifest, with the endings of the names"
        )
    if "label" not in positions:
        notes += _one_hot({name: {row[number].strip() for _, row in cells} for number, name in enumerate(columns)})
    if "split" not in positions:
        others = {number: name for number, name in enumerate(column_names(columns)) if number not in positions.values()}
        refuse_unnamed_splits(manifest, others, [row for _, row in cells])
    notes += _repeated(rows)
    if "-1" in labels and len({*labels} - {"", "-1"}) > 1:
        notes.append("the label -1 is used as a class; leave the label of unlabelled images empty")
    notes += [printable(note) for note in joined_names({*labels} - {""})]
    notes += [printable(note) for note in similar_names({*labels} - {""})]
    if missing:
        notes.append(
            f"{several(len(missing), 'row')} with a missing value as label ({_lines(missing)}), taken as unlabelled"
        )
    return Manifest(rows, notes)


def _places(manifest: Path, columns: Sequence[str]) -> tuple[dict[str, int], list[str]]:
    """Return the position of each kind of column, and notes on ignored columns."""
    positions, notes = find_columns(manifest, column_names(columns), COLUMNS)
    if "path" not in positions:
        problem = f"found the columns {', '.join(columns)}" if columns else "the file is empty"
        raise UserError(f"{manifest}: {problem}, expected path[,label][,split] separated by commas")
    others = [name for number, name in enumerate(columns) if name and number not in positions.values()]
    if "label" not in positions and others:
        notes.append(
            f"no column gives labels ({', '.join(COLUMNS['label'])}), so images have none; columns that are not read: "
            f"{printable(some_of(others))}"
        )
    return positions, notes


def _one_hot(values: Mapping[str, set[str]]) -> list[str]:
    """Describe columns that state one class each by 0 and 1."""
    marks = [name for name, column_values in values.items() if column_values in ({"0", "1"}, {"0.0", "1.0"})]
    if len(marks) < 2:
        return []
    return [
        f"the columns {printable(some_of(marks))} contain only 0 and 1, as one column per class; write the class of "
        "each image to a column label instead, for images of one class each"
    ]


_FIRST = 20  # rows whose images are looked for
_TRUTH = frozenset({"true", "false", "0", "1", "yes", "no", "t", "f", "y", "n"})
_OTHER_SPLITS = frozenset({"eval", "evaluation", "holdout", "hold_out", "trainval", "query", "gallery", "unlabeled"})


def refuse_unnamed_splits(manifest: Path, columns: Mapping[int, str], rows: Sequence[Sequence[str]]) -> None:
    """Raise an error if a column of another name than split contains splits, because all rows would be trained on."""
    for number, name in columns.items():
        values = {row[number].strip().lower() for row in rows if len(row) > number} - {""}
        split_words = {value: word for value in values if (word := split_word(value)) is not None}
        whole_splits = {word.split for word in split_words.values() if word.is_whole}
        distinct = {split_words[value].split if value in split_words else value for value in values}
        mark = split_word(name.removeprefix("is_"))  # is_valid, is_training_image
        if mark and not mark.rest and len(values) == 2 and values <= _TRUTH:
            evidence = f"the column {name} with the values {' and '.join(sorted(values))}"
        elif len(whole_splits) > 1 or (
            split_words and len(distinct) > 1 and values <= _OTHER_SPLITS.union(split_words)
        ):
            evidence = f"the names of splits in the column {name} ({some_of(sorted(values))})"
        else:
            continue
        raise UserError(
            f"{manifest}: found {evidence} but no column split, so that all rows would be training images; add a "
            "column split with the values train, val and test, or remove this column"
        )


def _repeated(rows: Sequence[Row]) -> list[str]:
    """Describe images that are listed with several labels, in several splits, or several times."""
    by_path: dict[str, list[Row]] = {}
    for row in rows:
        by_path.setdefault(os.path.normpath(row.path), []).append(row)
    labels: list[int] = []
    leaks: list[int] = []
    copies: list[int] = []
    for same in by_path.values():
        if len(same) == 1:
            continue
        splits = {row.split for row in same}
        if len({row.label for row in same if row.label}) > 1:
            labels.append(same[1].line)
        elif len(splits & {"train", "val", "test"}) > 1:
            leaks.append(same[1].line)
        elif len(same) > len(splits):
            copies.append(same[1].line)
    return [
        f"{several(len(lines), 'image')} listed {manner} ({_lines(lines)}){advice}"
        for lines, manner, advice in (
            (labels, "again with another label", "; an image has one class, so keep one of the rows"),
            (leaks, "again in another split", "; a test would not be one of unseen images"),
            (copies, "again in the same split", ""),
        )
        if lines
    ]


def manifest_splits(rows: Sequence[Row]) -> list[str]:
    """Return the splits named in the rows, sorted."""
    return sorted({row.split for row in rows} - {""})


def _lines(numbers: Sequence[int]) -> str:
    return f"line{'s' if len(numbers) > 1 else ''} {some_of(numbers)}"


def _in_order(names: set[str]) -> list[str]:
    whole = all(name.removeprefix("-").isdecimal() for name in names)
    return sorted(names, key=lambda name: (int(name), name)) if whole else sorted(names)
