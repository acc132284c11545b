"""Open images by a folder, a manifest or the name of a data set."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from contrastive_core.errors import UserError
from ssl_vision.data.dataset import ImageSet
from ssl_vision.data.decode import ReadOptions
from ssl_vision.data.folder import folder_splits, open_folder
from ssl_vision.data.manifest import manifest_splits, open_manifest, read_manifest
from ssl_vision.data.named import NAMED, open_named

_WARNED: set[str] = set()


def open_images(
    spec: str | os.PathLike[str],
    *,
    split: str = "train",
    channels: int = 3,
    read: ReadOptions = ReadOptions(),  # noqa: B008 - frozen
) -> ImageSet:
    """Open a split of a data set; no image is read yet, except by the sets that lie in one file.

    Args:
        spec: a folder (``<split>/<class>/*``, ``<class>/*``, or images without classes), a CSV manifest (columns path,
            label, split), ``cifar10:ROOT``, ``cifar100:ROOT``, ``stl10:ROOT``, ``imagenet:ROOT``, or ``digits``.
        split: train, val, test, what else the set has, or ``all`` where a folder has no splits, or of a manifest or the
            digits. Images that are not said to be of a split are of ``train``. Where there is no test split, ``val``
            takes its place; the set's `split` says which it is.
        channels: channels of the images: 3 for RGB, to which other colour modes are converted; else that of the files.
        read: how files are read.

    Raises:
        UserError: nothing there, no such split, no images.
    """
    name, root = locate(spec)
    if name:
        if channels != 3:
            raise UserError(f"{name}: has images of 3 channels, but {channels} were asked for (--image-channels)")
        images = open_named(name, root, split=split)
    else:
        open_files = open_folder if root.is_dir() else open_manifest
        images = open_files(root, split=split, channels=channels, read=read)
    for note in images.notes:
        _warn_once(note)
    return images


def list_splits(spec: str | os.PathLike[str]) -> list[str]:
    """The splits of a data set that do not overlap by name.

    Raises:
        UserError: nothing there, or an unreadable manifest.
    """
    name, root = locate(spec)
    if name:
        return [split for split in NAMED[name].splits if split != "all" and "+" not in split]
    return folder_splits(root) if root.is_dir() else manifest_splits(read_manifest(root).rows)


def input_files(spec: str | os.PathLike[str], *others: Path | str | None) -> Iterator[Path | str]:
    """What a command reads, for `contrastive_core.training.outputs.Outputs`: nothing of it is ever a target.

    Args:
        spec: The data set. A table stands for itself and for the images that it lists.
        others: Other files, such as a label file.
    """
    name, root = locate(spec)
    yield from (file for file in others if file is not None)
    if name != "digits":  # which comes with scikit-learn
        yield root
    if root.is_file():
        yield from (root.parent / row.path for row in read_manifest(root).rows)


def _warn_once(note: str) -> None:
    """Print a warning on standard error, once, and by one process of several."""
    if note not in _WARNED and os.environ.get("RANK", "0") == "0":
        print(f"warning: {note}", file=sys.stderr, flush=True)  # noqa: T201 - to be seen, whoever opens the images
    _WARNED.add(note)


def locate(spec: str | os.PathLike[str]) -> tuple[str, Path]:
    """Name of a data set and its root; of a folder or manifest the name is empty, and it exists.

    Raises:
        UserError: neither.
    """
    text = os.fspath(spec)
    name, colon, place = text.partition(":")
    path = Path(text).expanduser()
    if text == "digits" or (colon and place and name in NAMED):
        return name, Path(place).expanduser()
    if path.is_dir() or (path.is_file() and path.suffix.lower() == ".csv"):
        return "", path
    if path.is_file():
        raise UserError(f"{path}: found a file, expected a folder of images or a manifest ending in .csv")
    if name in NAMED:
        raise UserError(f"{text}: found no folder after the name, expected {name}:ROOT, where its files lie under ROOT")
    known = [f"{name}:ROOT" if named.source else name for name, named in NAMED.items()]
    close = difflib.get_close_matches(name.lower(), NAMED, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise UserError(
        f"{text}: there is no such folder or file, and no data set of that name (those are {', '.join(known)}){hint}"
    )
