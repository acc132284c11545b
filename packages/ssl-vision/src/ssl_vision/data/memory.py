"""All images of a set decoded once, as one tensor: for small images of one size."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from contrastive_core.errors import UserError
from ssl_vision.data.image_set import ArrayImages, ImageSet

_SMALL_SIDE = 128
_LIMIT = 8 << 30


def fits_in_memory(images: ImageSet, *, limit: int = _LIMIT) -> bool:
    """Whether the images are small (their first one up to 128 px) and all of them take no more than `limit` bytes."""
    first = images.read(0)
    return max(first.shape[1:]) <= _SMALL_SIDE and first.numel() * len(images) <= limit


def in_memory(images: ImageSet, *, limit: int = _LIMIT) -> Tensor:
    """Decode all images, several at a time: uint8 ``[N, 3, H, W]``.

    Raises:
        UserError: an unreadable image, two of different sizes, or more than `limit` bytes.
    """
    if isinstance(images, ArrayImages):
        return images.images
    first = images.read(0)
    size = first.numel() * len(images)
    if size > limit:
        raise UserError(
            f"{images.name}: {len(images)} images of {first.shape[2]}x{first.shape[1]} px take {size / 2**30:.1f} GiB, the limit "
            f"is {limit / 2**30:.1f} GiB; read them from files (--load files)"
        )
    everything = torch.empty(len(images), *first.shape, dtype=torch.uint8)

    def decode(index: int) -> None:
        image = images.read(index)
        if image.shape != first.shape:
            raise UserError(
                f"{images.path(index)} is {image.shape[2]}x{image.shape[1]} px, {images.path(0)} {first.shape[2]}x"
                f"{first.shape[1]} px; images in memory must have one size. Read them from files (--load files)"
            )
        everything[index] = image

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(decode, range(len(images)), chunksize=64):
            pass
    return everything
