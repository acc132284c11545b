"""Sets of images in a fixed order, with or without labels, read one by one or decoded into memory."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Literal, Self, TypeVar

import torch
from torch import Tensor

from contrastive_core.errors import UserError
from contrastive_core.rng import derive, permutation
from contrastive_core.training.config import SkipOptions
from contrastive_core.training.names import check_labels

ADD_LABELS = (
    "expected labels; put the images of each class into a folder of its name, or give a CSV manifest with the columns "
    "path and label"
)
NO_CLASSES = f"found images without classes, {ADD_LABELS}"


def digest(content: bytes) -> str:
    """Return the hexadecimal digest by which equal images are found."""
    return hashlib.blake2b(content, digest_size=6).hexdigest()


@dataclass(frozen=True)
class ReadOptions:
    """How to read image files.

    Attributes:
        bits: Significant bits of 16-bit files, for example 12 for many microscopes and X-ray detectors; 0: those that
            the model was trained with, or all 16.
        max_megapixels: Largest accepted image, in millions of pixels; a larger one may be a decompression bomb.
    """

    bits: int = 0
    max_megapixels: float = 179.0

    def __post_init__(self) -> None:
        if not (self.bits == 0 or 8 <= self.bits <= 16):
            raise UserError(f"bits is {self.bits}; expected 8 to 16, or 0 for all 16")
        if not self.max_megapixels > 0:
            raise UserError(f"max_megapixels is {self.max_megapixels}; expected more than 0")

    def for_model(self, bits: int) -> Self:
        """Return the options with the bits of the images that a model was trained on, unless bits are set."""
        return self if self.bits or not bits else replace(self, bits=bits)


Load = Literal["auto", "memory", "files"]
"""Source of the images of a training run, see `TrainingReadOptions`."""


@dataclass(frozen=True)
class TrainingReadOptions(ReadOptions):
    """How to read the images of a training run.

    Attributes:
        load: Source of the images: ``memory`` decodes all of them once, ``files`` reads an image whenever it is used,
            ``auto`` uses memory for small images of one size. The result is the same.
    """

    load: Load = "auto"


@dataclass(frozen=True)
class UnlabelledReadOptions(SkipOptions, TrainingReadOptions):
    """How to read the images of a training run without labels.

    Attributes:
        max_bad: Largest fraction of unreadable images that does not stop the command; above 0, at least one image. They
            are listed in ``bad_files.jsonl`` and each is replaced by the next image. Labelled images must be readable.
    """

    max_bad: float = 0.01

    def __post_init__(self) -> None:
        TrainingReadOptions.__post_init__(self)
        SkipOptions.__post_init__(self)


class ImageSet(ABC):
    """Images numbered 0 to N - 1; the number is an image's identity in every random draw.

    A set can be pickled for loader workers and read from several threads.

    Attributes:
        name: Name of the set in messages.
        classes: Class names in the order of the labels; empty without labels.
        channels: Number of channels of every image.
        split: Part of the data; ``val`` if it replaces a missing test split.
        notes: Sentences about what was inferred when the set was opened, and what was left out.
    """

    def __init__(
        self,
        name: str,
        *,
        labels: Sequence[int] | None,
        classes: Sequence[str],
        unlabelled: str = NO_CLASSES,
        split: str = "",
        notes: Sequence[str] = (),
        channels: int = 3,
        options: ReadOptions = ReadOptions(),
    ) -> None:
        self.name = name
        self.channels = channels
        self.options = options
        self.split = split
        self.notes = tuple(notes)
        self.classes = list(classes)
        check_labels(self.classes, what="class", source=name)
        self._labels = None if labels is None else torch.tensor(labels, dtype=torch.int64)
        self._unlabelled = unlabelled

    @abstractmethod
    def __len__(self) -> int:
        """Number of images."""

    @abstractmethod
    def read(self, index: int) -> Tensor:
        """Read an image: uint8 RGB ``[3, H, W]``, or float32 ``[channels, H, W]`` in [0, 1] with other than 3 channels.

        Raises:
            UserError: The file cannot be read.
        """

    @abstractmethod
    def path(self, index: int) -> str:
        """Path of an image for messages and tables; always printable."""

    def key(self, index: int) -> str:
        """Path of an image relative to its set, as in label files; printable."""
        return self.path(index)

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of an image, read from its header where possible.

        Raises:
            UserError: The file cannot be read.
        """
        _, height, width = self.read(index).shape
        return height, width

    def fingerprint(self, index: int) -> str:
        """Hexadecimal digest of an image's content; equal for equal files, or for equal pixels in memory."""
        return digest(self.read(index).numpy().tobytes())

    @property
    def ids(self) -> Tensor:
        """Identities of the images, int64 ``[N]``."""
        return torch.arange(len(self))

    @property
    def is_labelled(self) -> bool:
        """Whether every image has a label."""
        return self._labels is not None

    def label(self, index: int) -> int | None:
        """Label of one image, None in a set without labels."""
        return None if self._labels is None else int(self._labels[index])

    def labels(self) -> Tensor:
        """Return the labels, int64 ``[N]``.

        Raises:
            UserError: Some images of the set have no label.
        """
        if self._labels is None:
            raise UserError(f"{self.name}: {self._unlabelled}")
        return self._labels


class ArrayImages(ImageSet):
    """Decoded images in memory, uint8 ``[N, 3, H, W]``."""

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


class Subset(ImageSet):
    """Some images of another set, in the order given; labels of its other images are not read."""

    def __init__(self, images: ImageSet, indices: Sequence[int]) -> None:
        labels = [label for i in indices if (label := images.label(i)) is not None]
        super().__init__(
            images.name,
            labels=labels if len(labels) == len(indices) else None,
            classes=images.classes,
            split=images.split,
            notes=images.notes,
            channels=images.channels,
            options=images.options,
        )
        self.images, self.indices = images, list(indices)

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> Tensor:
        return self.images.read(self.indices[index])

    def fingerprint(self, index: int) -> str:
        return self.images.fingerprint(self.indices[index])

    def path(self, index: int) -> str:
        return self.images.path(self.indices[index])

    def key(self, index: int) -> str:
        return self.images.key(self.indices[index])

    def size(self, index: int) -> tuple[int, int]:
        return self.images.size(self.indices[index])


_T = TypeVar("_T")


def map_images(function: Callable[[int], _T], count: int, *, chunk: int = 64) -> Iterator[_T]:
    """Yield ``function(0)`` to ``function(count - 1)`` in order, computed by one thread per core.

    The first exception in this order is raised and cancels the calls that have not started. A thread computes `chunk`
    results at a time.
    """
    threads = min(32, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)

    def compute(start: int) -> list[_T]:
        return [function(index) for index in range(start, min(start + chunk, count))]

    with ThreadPoolExecutor(threads) as pool:
        for results in pool.map(compute, range(0, count, chunk)):  # left early, it cancels what has not begun
            yield from results


_SMALL_SIDE = 128
_LIMIT = 8 << 30


class _OtherSizeError(UserError):
    """An image that is not of the size of the first one."""


def small_in_memory(images: ImageSet, *, limit: int = _LIMIT) -> Tensor | None:
    """Decode small images of one size in a single pass with `in_memory`; None if they are better read from files.

    None is returned if the first image is larger than 128 px, if sizes differ, or above `limit` bytes.

    Raises:
        UserError: An image is unreadable.
    """
    if isinstance(images, ArrayImages):
        return images.images
    height, width = images.size(0)
    pixel = 3 if images.channels == 3 else 4 * images.channels
    if max(height, width) > _SMALL_SIDE or pixel * height * width * len(images) > limit:
        return None
    try:
        return in_memory(images, limit=limit)
    except _OtherSizeError:
        return None


def in_memory(images: ImageSet, *, limit: int = _LIMIT) -> Tensor:
    """Decode all images with several threads: uint8 ``[N, 3, H, W]``, ``3 N H W`` bytes.

    A set that is already in memory returns its own tensor, not a copy.

    Raises:
        UserError: An image is unreadable, sizes differ, or more than `limit` bytes are needed.
    """
    if isinstance(images, ArrayImages):
        return images.images
    first = images.read(0)
    size = first.nbytes * len(images)
    if size > limit:
        raise UserError(
            f"{images.name}: {len(images)} images of {first.shape[2]}x{first.shape[1]} px take {size / 2**30:.3g} GiB, "
            f"the limit is {limit / 2**30:.3g} GiB; read them from files (--load files)"
        )
    pixels = torch.empty(len(images), *first.shape, dtype=first.dtype)
    rows = pixels.numpy()  # written by numpy, whose assignment costs a fraction of torch's

    def decode(index: int) -> None:
        image = images.read(index)
        if image.shape != first.shape:
            raise _OtherSizeError(
                f"{images.path(index)} is {image.shape[2]}x{image.shape[1]} px, {images.path(0)} {first.shape[2]}x"
                f"{first.shape[1]} px; images in memory must have one size. Read them from files (--load files)"
            )
        rows[index] = image.numpy()

    for _ in map_images(decode, len(images)):
        pass
    return pixels


def measure_statistics(images: ImageSet, *, count: int = 1000) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and standard deviation per channel, in [0, 1], over the pixels of up to `count` random images.

    Unreadable images are skipped. A channel without variation gets a standard deviation of 1.

    Raises:
        UserError: No image can be read.
    """
    indices = permutation(derive(0, "statistics"), len(images))[:count].tolist()

    def moments(position: int) -> Tensor | None:
        try:
            image = images.read(indices[position])
        except UserError:
            return None
        pixels = (image.double() / 255 if image.dtype == torch.uint8 else image.double()).flatten(1)
        return torch.stack([pixels.mean(dim=1), pixels.square().mean(dim=1)])

    image_moments = [value for value in map_images(moments, len(indices)) if value is not None]
    if not image_moments:
        raise UserError(f"{images.name}: found no readable image among {len(indices)}; see `ssl-vision check`")
    mean, square = torch.stack(image_moments).mean(dim=0)
    std = (square - mean.square()).clamp_min(0).sqrt()
    std[std < 1e-6] = 1
    return tuple(mean.tolist()), tuple(std.tolist())
