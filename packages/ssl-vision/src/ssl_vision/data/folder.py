"""Image folders."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from contrastive_core.errors import UserError
from ssl_vision.data.decode import EXTENSIONS
from ssl_vision.data.image_set import ADD_LABELS, FileImages
from ssl_vision.data.listing import Listing, holds_image, list_folder

SPLITS = ("train", "val", "test")


def open_folder(root: Path, *, split: str) -> FileImages:
    """Open ``root/<split>/<class>/*``, ``root/<class>/*`` or a folder of images without classes.

    Images have classes if all of them lie in folders below the one opened; class names are those folders'. Hidden
    files and folders are left out, links are followed. The order is that of the sorted relative paths, on every file
    system. A missing test split is looked for under ``val``.

    Labels number the sorted class names of the training split, with those that only this split has among them; so a
    class without test images keeps the number it was trained with, and one without training images shows.

    Raises:
        UserError: no images, or no such split.
    """
    folder = split_folder(root, split)
    listing = list_folder(folder)
    if not listing.images:
        raise UserError(
            f"{folder}: found no images among {len(listing.others)} files, expected some that end in "
            f"{', '.join(sorted(EXTENSIONS))}"
        )
    beside = beside_classes(listing)
    if beside:
        found = "images without a class folder" if len(beside) == len(listing.images) else f"{beside[0]} beside classes"
        return FileImages(str(folder), folder, listing.images, unlabelled=f"found {found}, {ADD_LABELS}")
    names = [class_of(path) for path in listing.images]
    training = set() if folder in (root, root / SPLITS[0]) else _training_classes(root)
    classes = sorted(training.union(names))
    number = {name: label for label, name in enumerate(classes)}
    return FileImages(str(folder), folder, listing.images, labels=[number[name] for name in names], classes=classes)


def folder_splits(root: Path) -> list[str]:
    """The splits of an image folder; one without folders of splits is all ``train``."""
    return [name for name in SPLITS if (root / name).is_dir()] or ["train"]


def split_folder(root: Path, split: str) -> Path:
    """Where the images of a split lie.

    Raises:
        UserError: nowhere.
    """
    present = [name for name in SPLITS if (root / name).is_dir()]
    if not present:
        if split in ("train", "all"):
            return root
        raise UserError(
            f"{root}: found no folder of a split ({', '.join(SPLITS)}), expected {root / split}; all images here are "
            "of split train. Add the folder, or give a CSV manifest with a column split"
        )
    if (root / split).is_dir():
        return root / split
    if split == "test" and "val" in present:
        return root / "val"
    raise UserError(
        f"{root}: found the folders {', '.join(present)}, expected {root / split}; name another split or add the folder"
    )


def class_of(path: str) -> str:
    """The class of an image in a folder of classes, by its relative path."""
    return path.partition("/")[0]


def beside_classes(listing: Listing) -> list[str]:
    """The images that lie in no folder of a class."""
    return [path for path in listing.images if "/" not in path]


def _training_classes(root: Path) -> set[str]:
    train = root / SPLITS[0]
    entries: Iterable[Path] = train.iterdir() if train.is_dir() else ()
    return {entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir() and holds_image(entry)}
