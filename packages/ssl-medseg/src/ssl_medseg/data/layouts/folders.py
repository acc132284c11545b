"""A folder of images beside a folder of labels, matched by name."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ssl_medseg.data.cases import ImageFile
from ssl_medseg.data.files import images_in, stem
from ssl_medseg.data.label_map import LabelMap
from ssl_medseg.data.label_map_files import read_label_map
from ssl_medseg.data.layouts.entries import Entry, Listing
from ssl_medseg.data.options import DataOptions

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
    label_of = {_short(path, _LABEL_ENDINGS): path for path in _all(root, LABELS)}
    entries = []
    for path in _all(root, IMAGES):
        name = _short(path, _IMAGE_ENDINGS)
        image = ImageFile(path, channel=options.channel, frame=options.frame)
        entries.append(Entry(name, image, label_of.pop(name, None), "training"))
    for path in _all(root, UNLABELLED):
        image = ImageFile(path, channel=options.channel, frame=options.frame)
        entries.append(Entry(_short(path, _IMAGE_ENDINGS), image, None, "unlabelled", is_unlabelled=True))
    return Listing(
        root.resolve().name, root, "folders", entries, own_label_map(root), labels_without_image=list(label_of.values())
    )


def own_label_map(root: Path) -> LabelMap | None:
    """The label map that lies in a folder under one of the names looked for.

    Raises:
        UserError: it cannot be read.
    """
    return next((read_label_map(root / name) for name in _MAPS if (root / name).is_file()), None)


def _all(root: Path, folders: Iterable[str]) -> list[Path]:
    return [path for folder in folders for path in images_in(root / folder)]


def _short(path: Path, endings: Iterable[str]) -> str:
    name = stem(path)
    return next((name[: -len(ending)] for ending in endings if name.lower().endswith(ending)), name)
