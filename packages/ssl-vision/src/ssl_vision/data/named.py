"""Data sets by name: those of torchvision, which must exist on disk, and the digits of scikit-learn.

CIFAR-10 and CIFAR-100 are read from the published Python files without unpickling them, because unpickling runs code
from the file. pickletools lists the strings and numbers of a pickle in order without creating any object. Before that,
each file is compared with its published checksum.
"""

from __future__ import annotations

import pickletools
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from contrastive_core.errors import UserError
from contrastive_core.training.documents import reason
from ssl_vision.data.dataset import ArrayImages, ImageSet
from ssl_vision.data.folder import open_folder

_LABELS = {"cifar10": "labels", "cifar100": "fine_labels"}
_CLASSES = {"cifar10": 10, "cifar100": 100}
# Opcodes that push a string or a number; others, such as memo operations, have arguments too.
_VALUES = frozenset({"BININT", "BININT1", "BININT2", "SHORT_BINSTRING", "BINSTRING", "BINUNICODE"})


def open_cifar(name: Literal["cifar10", "cifar100"], root: Path, split: str) -> ArrayImages:
    """Open split train or test of `cifar-10-batches-py` or `cifar-100-python` below `root`.

    Raises:
        FileNotFoundError: A file is missing.
        RuntimeError: A file differs from the published one.
    """
    from torchvision import datasets  # noqa: PLC0415 - heavy, and only these sets need it

    # Names and checksums of the files; torchvision's own reader would unpickle them.
    kind: Any = datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100
    folder = root / kind.base_folder
    files = kind.train_list if split == "train" else kind.test_list
    parts = [_batch(_values(folder / file, md5), _LABELS[name]) for file, md5 in files]
    classes = _after(kind.meta["key"], _values(folder / kind.meta["filename"], kind.meta["md5"]), _CLASSES[name])
    return ArrayImages(
        f"{name}/{split}",
        torch.cat([images for images, _ in parts]),
        labels=[label for _, labels in parts for label in labels],
        classes=classes,
    )


def _values(path: Path, md5: str) -> list[Any]:
    """Return the strings and whole numbers of a pickle in order."""
    from torchvision.datasets.utils import calculate_md5  # noqa: PLC0415

    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    digest = calculate_md5(path)
    if digest != md5:
        raise RuntimeError(f"{path} differs from the published file: its MD5 is {digest}, expected {md5}")
    return [value for code, value, _ in pickletools.genops(path.read_bytes()) if code.name in _VALUES]


def _batch(values: list[Any], key: str) -> tuple[Tensor, list[int]]:
    """Return images uint8 [n, 3, 32, 32] and labels [n] of one file."""
    # The planes of all images are one string, by far the longest; latin-1 restores its bytes.
    pixels = max((value for value in values if isinstance(value, str)), key=len).encode("latin-1")
    images = torch.from_numpy(np.frombuffer(pixels, dtype=np.uint8).copy()).view(-1, 3, 32, 32)
    return images, _after(key, values, len(images))


def _after(key: str, values: list[Any], count: int) -> list[Any]:
    """Return the first items of the list that follows a key."""
    first = values.index(key) + 1
    return values[first : first + count]


@dataclass(frozen=True)
class NamedSet:
    """A data set by name.

    Args:
        opener: Function that opens a split, ``opener(root, split)``.
        splits: Available splits.
        source: How to obtain the data; ``{root}`` stands for the folder that must hold them. None: no root needed.
    """

    opener: Callable[[Path, str], ImageSet]
    splits: tuple[str, ...]
    source: str | None


def open_named(name: str, root: Path, *, split: str) -> ImageSet:
    """Open a split of a data set by its name; nothing is downloaded.

    Raises:
        UserError: There is no such split, or files below `root` are missing or changed.
    """
    entry = NAMED[name]
    # ImageNet's test labels were never published, and it is commonly tested on val.
    if split == "test" and "test" not in entry.splits and "val" in entry.splits:
        split = "val"
    if split not in entry.splits:
        raise UserError(f"{name}: found split {split!r}, expected one of {', '.join(entry.splits)}")
    try:
        images = entry.opener(root, split)
    except Exception as error:  # missing files, other checksums, and whatever damaged ones lead to
        if isinstance(error, UserError) and str(root) in str(error):
            raise
        source = (entry.source or "").format(root=str(root))
        problem = reason(error).split(" You can use download=True")[0].strip()
        raise UserError(
            f"{name}: the data set is incomplete under {root} ({problem}). Nothing is downloaded automatically; "
            f"{source}"
        ) from error
    images.split = split
    return images


def _digits(root: Path, split: str) -> ImageSet:
    """Open the 1,797 digits of 8x8 px: 364 for testing (the first and every fifth of a class), 1,433 for training."""
    from sklearn.datasets import load_digits  # noqa: PLC0415 - heavy, and only this set needs it

    bunch = load_digits()
    target = bunch.target
    # The rank of an image within its class decides, so that classes are split evenly and reproducibly.
    rank = np.zeros(len(target), dtype=np.int64)
    for digit in range(10):
        rank[target == digit] = np.arange((target == digit).sum())
    mask = {"train": rank % 5 != 0, "test": rank % 5 == 0, "all": rank >= 0}[split]
    gray = torch.from_numpy(np.rint(bunch.images[mask] * (255 / 16)).astype(np.uint8))
    images = gray[:, None].expand(-1, 3, -1, -1).contiguous()
    return ArrayImages(f"digits/{split}", images, labels=target[mask].tolist(), classes=[str(d) for d in range(10)])


def _stl10(root: Path, split: str) -> ImageSet:
    from torchvision import datasets  # noqa: PLC0415

    dataset = datasets.STL10(root, split=split)
    images = torch.from_numpy(dataset.data).contiguous()
    names = getattr(dataset, "classes", [str(number) for number in range(10)])  # the file of names is optional
    if "unlabeled" in split:
        return ArrayImages(f"stl10/{split}", images)
    return ArrayImages(f"stl10/{split}", images, labels=dataset.labels.tolist(), classes=names)


def _imagenet(root: Path, split: str) -> ImageSet:
    # torchvision's class would unpack 150 GB of archives; only its layout is read here.
    folder = root / split
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    images = open_folder(root, split=split)
    if not images.is_labelled or not all(re.fullmatch(r"n\d{8}", name) for name in images.classes):
        raise FileNotFoundError(f"{folder} is not sorted into folders of classes such as n01440764")
    return images


NAMED: dict[str, NamedSet] = {
    "digits": NamedSet(_digits, ("train", "test", "all"), None),
    "cifar10": NamedSet(
        partial(open_cifar, "cifar10"),
        ("train", "test"),
        "unpack cifar-10-python.tar.gz of https://www.cs.toronto.edu/~kriz/cifar.html there, or run once in Python: "
        "torchvision.datasets.CIFAR10({root!r}, download=True)",
    ),
    "cifar100": NamedSet(
        partial(open_cifar, "cifar100"),
        ("train", "test"),
        "unpack cifar-100-python.tar.gz of https://www.cs.toronto.edu/~kriz/cifar.html there, or run once in Python: "
        "torchvision.datasets.CIFAR100({root!r}, download=True)",
    ),
    "stl10": NamedSet(
        _stl10,
        ("train", "test", "unlabeled", "train+unlabeled"),
        "unpack stl10_binary.tar.gz of https://cs.stanford.edu/~acoates/stl10/ there, or run once in Python: "
        "torchvision.datasets.STL10({root!r}, download=True)",
    ),
    "imagenet": NamedSet(
        _imagenet,
        ("train", "val"),
        "put the archives of https://image-net.org/download (ILSVRC2012_devkit_t12.tar.gz, ILSVRC2012_img_train.tar, "
        "ILSVRC2012_img_val.tar) there and run once in Python, for split train and for val: "
        "torchvision.datasets.ImageNet({root!r}, split=...), which unpacks them",
    ),
}
