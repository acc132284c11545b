"""One way to name images: a folder, a manifest, or a data set."""

from __future__ import annotations

import difflib
from pathlib import Path

from contrastive_core.errors import UserError
from ssl_vision.data.folder import open_folder, open_manifest
from ssl_vision.data.image_set import ImageSet
from ssl_vision.data.named import NAMED, digits


def open_images(spec: str, *, split: str = "train") -> ImageSet:
    """Open a split of a data set; no image is read yet, except by the sets that lie in one file.

    Args:
        spec: a folder (``<split>/<class>/*``, ``<class>/*``, or images without classes), a CSV manifest (columns path, label,
            split), ``cifar10:ROOT``, ``cifar100:ROOT``, ``stl10:ROOT``, ``imagenet:ROOT``, or ``digits``.
        split: train, val, test, what the set offers, or ``all`` where a folder or manifest has no splits.

    Raises:
        UserError: nothing there, no such split, no images.
    """
    if spec == "digits":
        return digits(split=split)
    name, colon, root = spec.partition(":")
    if colon and name in NAMED:
        return NAMED[name](name, Path(root).expanduser(), split)
    path = Path(spec).expanduser()
    if path.is_dir():
        return open_folder(path, split=split)
    if path.is_file():
        if path.suffix.lower() != ".csv":
            raise UserError(f"{path}: found a file, expected a folder of images or a manifest ending in .csv")
        return open_manifest(path, split=split)
    known = [f"{name}:ROOT" for name in NAMED] + ["digits"]
    close = difflib.get_close_matches(name, [*NAMED, "digits"], n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    raise UserError(
        f"{spec}: there is no such folder or file, and no data set of that name (those are {', '.join(known)}).{hint}"
    )
