"""Folders of images and labels matched by name, and CSV files with a row per case."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from contrastive_core.app.checks import Finding, Item
from contrastive_core.errors import UserError
from ssl_medseg.datasets.layouts.listing import Entry, Listing
from ssl_medseg.datasets.options import DataOptions
from ssl_medseg.io.file_types import images_in, stem
from ssl_medseg.io.label_map import LabelMap, read_label_map
from ssl_medseg.io.tables import read_table, whole_number

IMAGES = ("images", "image", "imagesTr")
LABELS = ("labels", "label", "masks", "labelsTr")
UNLABELLED = ("unlabelled", "unlabeled")
_IMAGE_ENDINGS = ("_image", "_img")
_LABEL_ENDINGS = ("_label", "_labels", "_seg", "_mask", "_gt")
_MAPS = ("labels.json", "labels.csv", "labels.tsv", "dataset.json")


def list_folders(root: Path, options: DataOptions) -> Listing:
    """Files and DICOM series in ``images``, with labels of the same name in ``labels``; ``unlabelled`` has none.

    A label may be called as its image is with ``_label``, ``_seg``, ``_mask`` or ``_gt`` behind; ``_image`` at the end
    of an image is not part of the name. What the values mean is read from labels.json, labels.csv or labels.tsv.
    """
    labels: dict[str, list[Path]] = {}
    for path in _all(root, LABELS):
        if not (path.parent / "predictions.json").is_file():  # masks that `predict` has written
            labels.setdefault(_short(path, _LABEL_ENDINGS), []).append(path)
    label_of = {name: paths[0] for name, paths in labels.items()}
    several_labels = [
        Finding(
            "error", "several_labels", f"{name} has several labels: leave one, or list the cases in a CSV file",
            [Item([path.relative_to(root).as_posix() for path in paths])],
        )
        for name, paths in labels.items()
        if len(paths) > 1
    ]  # fmt: skip
    entries = []
    for path in _all(root, IMAGES):
        name = _short(path, _IMAGE_ENDINGS)
        image = options.image(path)
        entries.append(Entry(name, image, label_of.pop(name, None), "training"))
    for path in _all(root, UNLABELLED):
        image = options.image(path)
        entries.append(Entry(_short(path, _IMAGE_ENDINGS), image, None, "unlabelled", is_unlabelled=True))
    return Listing(
        root.resolve().name,
        root,
        "folders",
        entries,
        own_label_map(root),
        labels_without_image=list(label_of.values()),
        findings=several_labels,
        set_aside=[path for paths in labels.values() for path in paths[1:]],
    )


def own_label_map(root: Path) -> LabelMap | None:
    """Read the label map of a folder: labels.json, labels.csv, labels.tsv or dataset.json; None if there is none.

    Raises:
        UserError: it cannot be read.
    """
    return next((read_label_map(root / name) for name in _MAPS if (root / name).is_file()), None)


def _all(root: Path, folders: Iterable[str]) -> list[Path]:
    return [path for folder in folders for path in images_in(root / folder)]


def _short(path: Path, endings: Iterable[str]) -> str:
    name = stem(path)
    return next((name[: -len(ending)] for ending in endings if name.lower().endswith(ending)), name)


def list_table(file: Path, options: DataOptions) -> Listing:
    """The rows of a CSV or TSV file with the column ``image`` and, as wanted, ``case``, ``patient``, ``label``,
    ``split``, ``channel`` and ``frame``.

    Paths are relative to the file, or absolute. Without the column case, a case has the name of its image file. An
    empty label needs ``unlabelled`` or ``test`` in the column split, or the option `allow_unlabelled`. The label map is
    read from labels.json, labels.csv or labels.tsv beside the file.

    Raises:
        UserError: the file is no such table.
    """  # noqa: D205 - the columns do not fit into one line
    entries = [_entry(row, file, options) for row in read_table(file, needed=("image",))]
    return Listing(file.stem, file.parent, "csv", entries, own_label_map(file.parent))


def _entry(row: dict[str, str], file: Path, options: DataOptions) -> Entry:
    if not row["image"]:
        raise UserError(f"{file}: found a row without an image ({row}), expected a path in each; remove the row")
    path = file.parent / row["image"]
    name = row.get("case") or stem(path)
    image = options.image(
        path,
        channel=whole_number(row, "channel", file) if row.get("channel") else None,
        frame=whole_number(row, "frame", file) if row.get("frame") else None,
    )
    part = row.get("split", "").lower()
    listed = "unlabelled" if part in UNLABELLED else part
    label = file.parent / row["label"] if row.get("label") else None
    return Entry(name, image, label, listed, listed in ("unlabelled", "test"), row.get("patient") or None)
