"""Label files: lists of the images whose labels may be used.

Training with few labels uses only the labels of the images in such a file. `make-splits` writes label files as JSON,
with the class of every image and a hash of the list; a text file with one file name per line, such as the official
lists of ImageNet, also works.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from unicodedata import normalize

import torch
from torch import Tensor

from contrastive_core.errors import UserError
from contrastive_core.text import several, some_of
from contrastive_core.training.documents import read_text, reading, to_json_lines
from contrastive_core.training.outputs import write_once
from contrastive_core.training.split_names import canonical_split
from contrastive_core.training.tables import column_names, stated_separator, whole_numbers, with_row_numbers
from ssl_vision.data import ImageSet
from ssl_vision.data.manifest import COLUMNS, refuse_unnamed_splits

FORMAT = "ssl-vision labels 1"


@dataclass(frozen=True)
class LabelFile:
    """Content of a label file written by `make-splits`.

    Attributes:
        data: Name of the data set.
        split: Part of the data set.
        images: Name of every listed image within the split, and its class.
        settings: Settings of the draw.
    """

    data: str
    split: str
    images: tuple[tuple[str, str], ...]
    settings: dict[str, object]

    @property
    def digest(self) -> str:
        """SHA-256 hash of the listed images and their classes."""
        return _digest(self.images)

    def to_bytes(self) -> bytes:
        """Return the content of the file, with one image per line."""
        head = {"format": FORMAT, "data": self.data, "split": self.split, **self.settings, "sha256": self.digest}
        return to_json_lines(head, {"images": self.images})


def read_labelled(file: Path, images: ImageSet) -> Tensor:
    """Return the sorted int64 indices of the images in a set that a label file lists.

    Images are found by their path within the set, by a longer path that ends in it and names the same file
    (``train/cat/1.png``, or an absolute path), or by their file name if it is unique. A text file can also be a table
    of paths and classes separated by commas, semicolons, tabs or spaces. Only labels of the listed images are read, and
    compared with those in the file.

    Args:
        file: File written by `make-splits`, or a text file with one path or file name per line.
        images: Split that the file refers to, with labels.

    Raises:
        UserError: There is no such file, it was changed, an image is missing or listed twice, or its class differs.
    """
    content = read_label_file(file)
    places = _Places(images)
    rows: Sequence[tuple[str, str | None]]
    rows = content.images if isinstance(content, LabelFile) else _table(content, places, file)
    names_by_index: dict[int, str] = {}
    missing: list[str] = []
    for name, label in rows:
        index = places.of(name, file)
        if index is None:
            missing.append(name)
            continue
        if index in names_by_index:
            as_well = f", as {name} too" if name != names_by_index[index] else ""
            raise UserError(f"{file}: lists {names_by_index[index]} twice{as_well}; remove one of the lines")
        names_by_index[index] = name
        own = images.label(index)
        if label is not None and own is not None and images.classes[own] != normalize("NFC", label):
            raise UserError(
                f"{file}: lists {name} in class {label}, but in {images.name} it has class {images.classes[own]}; "
                "make the file again for these data"
            )
    if missing:
        raise UserError(
            f"{file}: lists {several(len(missing), 'image')} not in {images.name} ({some_of(missing)}); "
            f"{_reason(missing[0], content, images)}"
        )
    if not names_by_index:
        raise UserError(f"{file}: lists no images, expected at least one")
    return torch.tensor(sorted(names_by_index), dtype=torch.int64)


def read_label_file(file: Path) -> LabelFile | list[str]:
    """Read a label file of `make-splits`, or the names in a text file.

    Raises:
        UserError: There is no such file, it is not text, not a label file, or was changed after it was written.
    """
    text = read_text(file, expected="a label file, as written by `ssl-vision make-splits`")
    if re.match(r"\s*\[\s*[\"{\[\]]", text):
        raise UserError(
            f"{file}: found a JSON list, expected a label file of `make-splits`, or text with one path or file name "
            "per line"
        )
    if not text.lstrip().startswith("{"):
        return [name for line in text.splitlines() if (name := line.strip())]
    with reading(file, "is not a label file", "write it again with `make-splits`"):
        content = json.loads(text)
        kind = content.pop("format", None)
        if kind is None:
            raise UserError(
                f"{file}: found JSON of another kind, expected a label file of `make-splits`, or text with one path or "
                "file name per line"
            )
        if kind != FORMAT:
            raise UserError(f"{file}: found format {kind!r}, expected {FORMAT!r}; write it again with `make-splits`")
        pairs = tuple((str(name), str(label)) for name, label in content.pop("images"))
        digest = content.pop("sha256")
        result = LabelFile(str(content.pop("data")), str(content.pop("split")), pairs, content)
    if digest != result.digest:
        raise UserError(
            f"{file}: was changed after it was written: its images do not have the hash that it states; write it again "
            "with `make-splits`, or give a text file with one path per line"
        )
    return result


def write_label_file(file: Path, content: LabelFile) -> None:
    """Write a label file; an existing file must be identical.

    Raises:
        UserError: A different file exists.
    """
    write_once({file: content.to_bytes()}, command="ssl-vision make-splits", overwrite=None)


def labels_digest(images: ImageSet) -> str:
    """Return the SHA-256 hash of the images of a set and their classes, as in the label file that lists them."""
    labels = images.labels().tolist()
    return _digest((images.key(index), images.classes[label]) for index, label in enumerate(labels))


class _Places:
    """Lookup of images in a set by name; names are compared in Unicode's composed form (NFC)."""

    def __init__(self, images: ImageSet) -> None:
        self._images = images
        self.classes, self.split = images.classes, images.split
        self._by_key: dict[str, int] = {}
        self._by_name: dict[str, int | None] = {}
        for index in range(len(images)):
            key = normalize("NFC", images.key(index))
            self._by_key[key] = index
            name = key.rpartition("/")[2]
            self._by_name[name] = None if name in self._by_name else index

    def of(self, name: str, file: Path) -> int | None:
        """Return the index of the image, or None."""
        name = normalize("NFC", name)
        for spelling in (name.removeprefix("./"), name.replace("\\", "/").removeprefix("./")):
            if spelling in self._by_key:
                return self._by_key[spelling]
            if spelling in self._by_name and self._by_name[spelling] is None:
                raise UserError(
                    f"{file}: lists {name}, but several images of {self._images.name} have this name; give paths "
                    "within the data set"
                )
            index = self._by_name.get(spelling, self._by_longer_path(spelling))
            if index is not None:
                return index
        return None

    def check_numbers(self, numbers: Sequence[tuple[str, str]], file: Path) -> None:
        """Check that class numbers and the classes of the data, whose order may differ, correspond one to one."""
        first: dict[str, tuple[str, str, str]] = {}  # by number and by class
        for name, number in numbers:
            index = self.of(name, file)
            own = None if index is None else self._images.label(index)
            if own is None:
                continue
            pair = name, str(int(number)), self._images.classes[own]
            for key in (f"number {pair[1]}", f"class {pair[2]}"):
                other = first.setdefault(key, pair)
                if other[1:] != pair[1:]:
                    raise UserError(
                        f"{file}: gives {name} of class {pair[2]} the number {pair[1]}, but {other[0]} of class "
                        f"{other[2]} the number {other[1]}; expected one number per class of {self._images.name}. "
                        "Correct the numbers, or remove them to use the classes of the data"
                    )

    def _by_longer_path(self, name: str) -> int | None:
        """Return the image whose path ends in the name, or is the name."""
        rest = name
        while "/" in rest:
            rest = rest.partition("/")[2]
            index = self._by_key.get(rest)
            if index is not None:
                own = normalize("NFC", os.path.abspath(self._images.path(index)).replace(os.sep, "/"))  # noqa: PTH100
                return index if own == name or own.endswith(f"/{name}") else None
        return None


def _table(lines: Sequence[str], places: _Places, file: Path) -> list[tuple[str, str | None]]:
    """Return names, and classes if the lines form a table; comments (``#``) are skipped."""
    lines = [line for line in lines if not line.startswith("#") or places.of(line, file) is not None]
    separator = stated_separator(lines[0]) if lines else ""
    lines = lines[1:] if separator else lines
    if len(lines) > 1 and column_names(lines[:1])[0] in COLUMNS["path"] and places.of(lines[0], file) is None:
        lines = lines[1:]  # the header of a single column
    delimiter = next((d for d in separator or ",;\t" if lines and d in lines[0]), None)
    if delimiter is None and lines and places.of(lines[0], file) is None:
        parts_by_line = [line.rsplit(None, 1) for line in lines]
        if all(
            len(parts) == 2 and places.of(parts[0], file) is not None for parts in parts_by_line
        ):  # path and class number
            return _without_numbers(
                [path for path, _ in parts_by_line], [label for _, label in parts_by_line], places, file
            )
    if delimiter is None or places.of(lines[0], file) is not None:
        return [(_unquoted(line, places, file), None) for line in lines]
    with reading(file, "cannot be read as CSV", "export it again"):
        rows = list(csv.reader(lines, delimiter=delimiter, skipinitialspace=True))
    rows[0] = with_row_numbers(rows[0], rows[1:])
    names, head = [normalize("NFC", name.strip()) for name in rows[0]], column_names(rows[0])
    path = next((head.index(name) for name in COLUMNS["path"] if name in head), None)
    label = next((head.index(name) for name in COLUMNS["label"] if name in head), None)
    if path is None:  # no header
        path, label = 0, (1 if len(rows[0]) == 2 or (len(rows[0]) > 2 and not rows[0][1].strip().isdigit()) else None)
        names = []
    else:
        rows = rows[1:]
    short = [row for row in rows if len(row) <= max(path, label or 0)]
    if short:
        raise UserError(
            f"{file}: found the row {delimiter.join(short[0])!r}, expected as many columns as in the first row"
        )
    rows = [row for row in rows if row[path].strip()]
    _refuse_other_splits(head, rows, path, places.split, file)
    if names and not {*head} & {*COLUMNS["split"]}:
        refuse_unnamed_splits(file, {n: name for n, name in enumerate(head) if n not in (path, label)}, rows)
    if label is not None and not any(row[label].strip() for row in rows):
        label = None  # separators at the end of lines, or an empty column
    bare = [row[path].strip() for row in rows if label is not None and not row[label].strip()]
    if bare:
        raise UserError(
            f"{file}: gives no class for {several(len(bare), 'image')} ({some_of(bare)}), expected one in every row; "
            "remove rows of unlabelled images, or the column"
        )
    paths = [row[path].strip() for row in rows]
    if label is not None:
        return _without_numbers(paths, [row[label].strip() for row in rows], places, file)
    return list(zip(paths, _marked_classes(paths, names, rows, places, file), strict=True))


def _marked_classes(
    paths: Sequence[str], names: Sequence[str], rows: Sequence[Sequence[str]], places: _Places, file: Path
) -> list[str | None]:
    """Return the class of each image in a table with a column of 0 and 1 per class, else None for each."""
    marks = [number for number, name in enumerate(names) if name in places.classes]
    if len(marks) < 2:
        return [None] * len(rows)
    row_classes = [
        [names[n] for n in marks if row[n : n + 1] and whole_numbers([row[n].strip()]) == ["1"]] for row in rows
    ]
    unclear = [name for name, classes in zip(paths, row_classes, strict=True) if len(classes) != 1]
    if unclear:
        raise UserError(
            f"{file}: has one column per class, but does not mark one class with 1 for {some_of(unclear)}; correct "
            "these rows, or remove them"
        )
    return [classes[0] for classes in row_classes]


def _without_numbers(
    paths: Sequence[str], labels: Sequence[str], places: _Places, file: Path
) -> list[tuple[str, str | None]]:
    """Return paths and classes; class numbers that are not the names of classes are checked and removed."""
    labels = whole_numbers(labels)
    if all(label.isdigit() for label in labels) and not {*labels} <= {*places.classes}:
        places.check_numbers(list(zip(paths, labels, strict=True)), file)
        return [(path, None) for path in paths]
    return list(zip(paths, labels, strict=True))


def _refuse_other_splits(head: Sequence[str], rows: Sequence[Sequence[str]], path: int, split: str, file: Path) -> None:
    """Raise an error if a column states another split than that of the images, whose labels must not be used."""
    column = next((head.index(name) for name in COLUMNS["split"] if name in head), None)
    if column is None or split in {"", "all"}:
        return
    splits = {row[path].strip(): canonical_split(row[column].strip()) for row in rows if len(row) > column}
    others = [name for name, other in splits.items() if other not in {split, ""}]
    if others:
        raise UserError(
            f"{file}: gives {several(len(others), 'image')} another split than {split} ({some_of(others)}: "
            f"{splits[others[0]]}); remove the rows of other splits"
        )


def _unquoted(line: str, places: _Places, file: Path) -> str:
    """Remove the quotes that spreadsheets put around a name, unless they are part of the name of an image."""
    quoted = len(line) > 2 and line[0] == line[-1] == '"'
    return line[1:-1].replace('""', '"') if quoted and places.of(line, file) is None else line


def _reason(name: str, content: LabelFile | Sequence[str], images: ImageSet) -> str:
    """Explain why a name was not found, and what to do."""
    here = f"images here have names such as {images.key(0)}"
    if re.match(r"[A-Za-z]:[\\/]|[\\/]", name):
        return f"the file gives absolute paths of another location, but {here}; make them relative to {images.name}"
    if isinstance(content, LabelFile):
        about = f"{content.data}, split {content.split!r}"
        return f"it was made for {about}, but {here}. Give the data and split that it was made for"
    return f"{here}. Give the data and split that the file was made for"


def _digest(images: Iterable[tuple[str, str]]) -> str:
    digest = hashlib.sha256()
    for name, label in images:
        digest.update(f"{json.dumps([name, label])}\n".encode())
    return digest.hexdigest()
