"""Open images by a folder, a manifest or the name of a data set."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from contrastive_core.errors import UserError
from contrastive_core.training.split_names import canonical_split
from ssl_vision.data.dataset import ImageSet, ReadOptions
from ssl_vision.data.folder import folder_layout, folder_splits, open_folder
from ssl_vision.data.listing import is_image
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
    """Open a split of a data set. Images in files are read later; data sets stored in one file are read at once.

    Args:
        spec: A folder (``<split>/<class>/*``, ``<class>/*``, or images without classes), a CSV manifest (columns path,
            label, split), ``cifar10:ROOT``, ``cifar100:ROOT``, ``stl10:ROOT``, ``imagenet:ROOT``, or ``digits``.
        split: Split: train, val, test, another one of the data set, or ``all`` (for folders without splits, manifests
            and the digits). Images without a stated split belong to ``train``. If there is no test split, ``val`` is
            used in its place; the `split` of the result tells which.
        channels: Number of channels: 3 for RGB, to which other colour modes are converted; otherwise the number of
            channels in the files.
        read: How to read image files.

    Raises:
        UserError: The data, the split or the images do not exist.
    """
    name, root = locate(spec)
    if name:
        if channels != 3:
            raise UserError(f"{name}: has images with 3 channels, but {channels} were requested (--image-channels)")
        images = open_named(name, root, split=split)
    else:
        open_files = open_folder if root.is_dir() else open_manifest
        images = open_files(root, split=split, channels=channels, read=read)
    for note in images.notes:
        warn_once(note)
    return images


def list_splits(spec: str | os.PathLike[str]) -> list[str]:
    """List the splits of a data set, without those that combine others.

    Raises:
        UserError: The data do not exist, or the manifest is unreadable.
    """
    name, root = locate(spec)
    if name:
        return [split for split in NAMED[name].splits if split != "all" and "+" not in split]
    return folder_splits(root) if root.is_dir() else manifest_splits(read_manifest(root).rows)


def resolve_split(spec: str | os.PathLike[str], split: str) -> str:
    """Return the canonical name of the split that `open_images` opens for a requested one.

    Raises:
        UserError: The data do not exist, or the manifest is unreadable.
    """
    split, splits = canonical_split(split), list_splits(spec)
    return "val" if split == "test" and "test" not in splits and "val" in splits else split


def input_files(spec: str | os.PathLike[str], *others: Path | str | None) -> Iterator[Path | str]:
    """Yield the inputs of a command, which `contrastive_core.training.outputs.Outputs` never overwrites.

    Args:
        spec: Data set. For a table, the inputs are the table and the images that it lists.
        others: Other input files, such as a label file.
    """
    name, root = locate(spec)
    yield from (file for file in others if file is not None)
    if name != "digits":  # part of scikit-learn
        yield root
    if root.is_file():
        yield from (root.parent / row.path for row in read_manifest(root).rows)


def refuse_new_images(targets: Iterable[Path], data: str | os.PathLike[str], *, command: str) -> None:
    """Check that a command does not write pictures among the images that it reads, to which they would then belong.

    Pictures beside the folders of splits are accepted.

    Raises:
        UserError: One of the targets is a picture in the image folder.
    """
    name, root = locate(data)
    if name or not root.is_dir():
        return
    places = [folder.resolve() for folder in folder_layout(root).splits.values()] or [root.resolve()]
    inside = [path for path in targets if is_image(path.name) and set(places) & set(path.resolve().parents)]
    if inside:
        raise UserError(
            f"{inside[0]} would be one of the images of {root} from then on, which `{command}` reads; choose an output "
            "outside of this folder"
        )


def warn_once(note: str) -> None:
    """Print a warning on standard error, once, and in one process only."""
    if note not in _WARNED and os.environ.get("RANK", "0") == "0":
        print(f"warning: {note}", file=sys.stderr, flush=True)  # noqa: T201 - visible from Python and the command line
    _WARNED.add(note)


def locate(spec: str | os.PathLike[str]) -> tuple[str, Path]:
    """Return the name of a data set and its root; for an existing folder or manifest the name is empty.

    Raises:
        UserError: It is neither the name of a data set nor an existing folder or manifest.
    """
    text = os.fspath(spec)
    if not text.strip():  # an unset variable of the shell; as a path it would be the current folder
        raise UserError("the name of the data is empty; expected a folder, a manifest or the name of a data set")
    name, colon, root = text.partition(":")
    path = Path(text).expanduser()
    if text == "digits" or (colon and root and name in NAMED):
        return name, Path(root).expanduser()
    if path.is_dir() or (path.is_file() and path.suffix.lower() == ".csv"):
        return "", path
    if path.is_file():
        raise UserError(f"{path}: found a file, expected a folder of images or a manifest with the suffix .csv")
    if name in NAMED:
        raise UserError(f"{text}: found no folder after the name, expected {name}:ROOT with its files below ROOT")
    choices = [f"{name}:ROOT" if entry.source else name for name, entry in NAMED.items()]
    close = difflib.get_close_matches(name.lower(), NAMED, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise UserError(
        f"{text}: there is no such folder or file, and no data set of that name (known names: "
        f"{', '.join(choices)}){hint}"
    )
