"""CIFAR-10 and CIFAR-100 in the files that their authors publish for Python, without unpickling.

The files are pickles, and to load a pickle is to run what stands in it. Here it is only looked through: pickletools
lists the strings and numbers of a pickle in their order and makes nothing of them. Before that a file is compared with
the published checksum.
"""

from __future__ import annotations

import pickletools
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ssl_vision.data.image_set import ArrayImages

_LABELS = {"cifar10": "labels", "cifar100": "fine_labels"}
_CLASSES = {"cifar10": 10, "cifar100": 100}
# What pushes a string or a number; other opcodes have arguments too, such as places in the memo.
_VALUES = frozenset({"BININT", "BININT1", "BININT2", "SHORT_BINSTRING", "BINSTRING", "BINUNICODE"})


def open_cifar(name: Literal["cifar10", "cifar100"], root: Path, split: str) -> ArrayImages:
    """Open split train or test; `cifar-10-batches-py` or `cifar-100-python` lies under `root`.

    Raises:
        FileNotFoundError: a file is missing.
        RuntimeError: a file is not the published one.
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
    """The strings and whole numbers of a pickle, in their order."""
    from torchvision.datasets.utils import calculate_md5  # noqa: PLC0415

    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    found = calculate_md5(path)
    if found != md5:
        raise RuntimeError(f"{path} is not the published file: its MD5 is {found}, expected {md5}")
    return [value for code, value, _ in pickletools.genops(path.read_bytes()) if code.name in _VALUES]


def _batch(values: list[Any], key: str) -> tuple[Tensor, list[int]]:
    """Images uint8 [n, 3, 32, 32] and labels [n] of one file."""
    # The planes of all images stand in one string, by far the longest; latin-1 gives its bytes back.
    pixels = max((value for value in values if isinstance(value, str)), key=len).encode("latin-1")
    images = torch.from_numpy(np.frombuffer(pixels, dtype=np.uint8).copy()).view(-1, 3, 32, 32)
    return images, _after(key, values, len(images))


def _after(key: str, values: list[Any], count: int) -> list[Any]:
    """The first items of the list that follows a key."""
    first = values.index(key) + 1
    return values[first : first + count]
