"""A set of images in a fixed order, with or without labels."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from contrastive_core.errors import UserError
from ssl_vision.data.decode import read_bytes, read_image, read_size
from ssl_vision.data.listing import PathList, printable

ADD_LABELS = (
    "expected labels; put the images of each class into a folder of its name, or give a CSV manifest with the columns "
    "path and label"
)
_NO_CLASSES = f"found images without classes, {ADD_LABELS}"


class ImageSet(ABC):
    """Images numbered 0 .. N-1; the number is an image's identity in every random draw.

    A set may be sent to loader workers and read there, and read from several threads.

    Attributes:
        name: how the set was asked for, for messages.
        classes: class names in the order of the labels; empty without labels.
        split: the part of the data that this is; ``val`` where that stands for a test split that the data lack.
        notes: what was inferred when the set was opened, and what was left out; sentences.
    """

    def __init__(
        self,
        name: str,
        *,
        labels: Sequence[int] | None,
        classes: Sequence[str],
        unlabelled: str = _NO_CLASSES,
        split: str = "",
        notes: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.split = split
        self.notes = tuple(notes)
        self.classes = list(classes)
        self._labels = None if labels is None else torch.tensor(labels, dtype=torch.int64)
        self._unlabelled = unlabelled

    @abstractmethod
    def __len__(self) -> int:
        """Number of images."""

    @abstractmethod
    def read(self, index: int) -> Tensor:
        """One image: uint8 ``[3, H, W]`` RGB.

        Raises:
            UserError: the file cannot be read.
        """

    @abstractmethod
    def path(self, index: int) -> str:
        """Where an image comes from, for messages and tables; printable whatever bytes the file's name is made of."""

    def key(self, index: int) -> str:
        """An image's name within its set, wherever the set lies: what a label file calls it. Printable."""
        return self.path(index)

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of an image, found without decoding it where that is possible.

        Raises:
            UserError: the file cannot be read.
        """
        _, height, width = self.read(index).shape
        return height, width

    def fingerprint(self, index: int) -> str:
        """Hexadecimal digest of an image's content: equal where the same file, or the same pixels, are met again."""
        return _digest(self.read(index).numpy().tobytes())

    @property
    def ids(self) -> Tensor:
        """int64 ``[N]``: the identities of the images."""
        return torch.arange(len(self))

    @property
    def is_labelled(self) -> bool:
        """Whether every image has a label."""
        return self._labels is not None

    def label(self, index: int) -> int | None:
        """Label of one image, None in a set without labels."""
        return None if self._labels is None else int(self._labels[index])

    def labels(self) -> Tensor:
        """Labels int64 ``[N]``.

        Raises:
            UserError: the set has no labels, or not for all of its images.
        """
        if self._labels is None:
            raise UserError(f"{self.name}: {self._unlabelled}")
        return self._labels


class FileImages(ImageSet):
    """Images in files, decoded when read.

    Args:
        name: for messages.
        root: the folder that paths are relative to.
        paths: of the images.
        labels: one per image, or None.
        classes: names of the classes.
        unlabelled: without labels, why that is and what to do.
        split: the part of the data that this is.
        notes: see `ImageSet`.
        unread: paths of images of kinds that are not read, which are no members of the set.
    """

    def __init__(
        self,
        name: str,
        root: Path,
        paths: Sequence[str],
        *,
        labels: Sequence[int] | None = None,
        classes: Sequence[str] = (),
        unlabelled: str = _NO_CLASSES,
        split: str = "",
        notes: Sequence[str] = (),
        unread: Sequence[str] = (),
    ) -> None:
        super().__init__(name, labels=labels, classes=classes, unlabelled=unlabelled, split=split, notes=notes)
        self.files = PathList(root, paths)
        self.unread = PathList(root, unread)

    def __len__(self) -> int:
        return len(self.files)

    def read(self, index: int) -> Tensor:
        return read_image(self.files[index])

    def size(self, index: int) -> tuple[int, int]:
        return read_size(self.files[index])

    def fingerprint(self, index: int) -> str:
        return _digest(read_bytes(self.files[index]))

    def path(self, index: int) -> str:
        return printable(str(self.files[index]))

    def key(self, index: int) -> str:
        return printable(self.files.relative(index))


class ArrayImages(ImageSet):
    """Images that lie decoded in memory: uint8 ``[N, 3, H, W]``."""

    def __init__(
        self,
        name: str,
        images: Tensor,
        *,
        labels: Sequence[int] | None = None,
        classes: Sequence[str] = (),
        split: str = "",
    ) -> None:
        super().__init__(name, labels=labels, classes=classes, split=split)
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> Tensor:
        return self.images[index]

    def path(self, index: int) -> str:
        return f"{self.name}#{index}"


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=6).hexdigest()
