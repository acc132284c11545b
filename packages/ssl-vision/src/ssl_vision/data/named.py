"""Data sets by name: torchvision's, already on disk, and scikit-learn's digits, which come with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from contrastive_core.errors import UserError
from ssl_vision.data.image_set import ArrayImages, FileImages, ImageSet


def digits(*, split: str) -> ArrayImages:
    """scikit-learn's 1,797 digits, 8x8: every fifth of a class is for testing (364), the others train (1,433)."""
    from sklearn.datasets import load_digits  # noqa: PLC0415 - heavy, and only this set needs it

    bunch = load_digits()
    target = bunch.target
    # The rank of an image within its class decides, so that classes are split evenly and always alike.
    rank = np.zeros(len(target), dtype=np.int64)
    for digit in range(10):
        rank[target == digit] = np.arange((target == digit).sum())
    is_test = rank % 5 == 0
    if split not in ("train", "test", "all"):
        raise UserError(f"digits: found split {split!r}, expected train, test or all")
    chosen = np.ones_like(is_test) if split == "all" else is_test if split == "test" else ~is_test
    gray = torch.from_numpy(np.rint(bunch.images[chosen] * (255 / 16)).astype(np.uint8))
    images = gray[:, None].expand(-1, 3, -1, -1).contiguous()
    return ArrayImages(f"digits/{split}", images, labels=target[chosen].tolist(), classes=[str(d) for d in range(10)])


def _cifar(name: str, root: Path, split: str) -> ImageSet:
    from torchvision import datasets  # noqa: PLC0415

    kind = datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100
    _one_of(name, split, ("train", "test"))
    found = _open(name, root, lambda: kind(root, train=split == "train"))
    images = torch.from_numpy(found.data).permute(0, 3, 1, 2).contiguous()
    return ArrayImages(f"{name}/{split}", images, labels=found.targets, classes=found.classes)


def _stl10(name: str, root: Path, split: str) -> ImageSet:
    from torchvision import datasets  # noqa: PLC0415

    _one_of(name, split, ("train", "test", "unlabeled", "train+unlabeled"))
    found = _open(name, root, lambda: datasets.STL10(root, split=split))
    labels = None if "unlabeled" in split else found.labels.tolist()
    return ArrayImages(
        f"{name}/{split}", torch.from_numpy(found.data), labels=labels, classes=found.classes if labels else ()
    )


def _imagenet(name: str, root: Path, split: str) -> ImageSet:
    from torchvision import datasets  # noqa: PLC0415

    _one_of(name, split, ("train", "val", "test"))
    split = "val" if split == "test" else split
    found = _open(name, root, lambda: datasets.ImageNet(root, split=split))
    paths = [Path(path) for path, _ in found.samples]
    classes = [", ".join(names) for names in found.classes]
    return FileImages(f"{name}/{split}", paths, labels=found.targets, classes=classes)


def _one_of(name: str, split: str, splits: tuple[str, ...]) -> None:
    if split not in splits:
        raise UserError(f"{name}: found split {split!r}, expected one of {', '.join(splits)}")


def _open(name: str, root: Path, opener: Callable[[], Any]) -> Any:
    """Run torchvision's reader; nothing is ever downloaded unasked."""
    try:
        return opener()
    except (RuntimeError, FileNotFoundError) as error:
        raise UserError(
            f"{name}: torchvision does not find the data set under {root} ({error}). Put its files there yourself; nothing is "
            "downloaded unasked"
        ) from error


NAMED: dict[str, Callable[[str, Path, str], ImageSet]] = {
    "cifar10": _cifar,
    "cifar100": _cifar,
    "stl10": _stl10,
    "imagenet": _imagenet,
}
