"""All images of a set decoded once, as one tensor: for small images of one size."""

from __future__ import annotations

import torch
from torch import Tensor

from contrastive_core.errors import UserError
from ssl_vision.data.image_set import ArrayImages, ImageSet
from ssl_vision.data.parallel import map_images

_SMALL_SIDE = 128
_LIMIT = 8 << 30


def fits_in_memory(images: ImageSet, *, limit: int = _LIMIT) -> bool:
    """Whether the images are small (up to 128 px), of one size, and take no more than `limit` bytes together.

    Reads the header of every file, if the first image is a small one.

    Raises:
        UserError: the first image is unreadable; other unreadable ones are left for `in_memory` to report.
    """
    if isinstance(images, ArrayImages):
        return True
    first = images.size(0)
    if max(first) > _SMALL_SIDE or 3 * first[0] * first[1] * len(images) > limit:
        return False

    def is_alike(index: int) -> bool:
        try:
            return images.size(index) == first
        except UserError:
            return True

    return all(map_images(is_alike, len(images)))


def in_memory(images: ImageSet, *, limit: int = _LIMIT) -> Tensor:
    """Decode all images, several at a time: uint8 ``[N, 3, H, W]``, ``3 N H W`` bytes.

    A set that lies in memory already gives its own tensor, no copy.

    Raises:
        UserError: an unreadable image, two of different sizes, or more than `limit` bytes.
    """
    if isinstance(images, ArrayImages):
        return images.images
    first = images.read(0)
    size = first.numel() * len(images)
    if size > limit:
        raise UserError(
            f"{images.name}: {len(images)} images of {first.shape[2]}x{first.shape[1]} px take {size / 2**30:.3g} GiB, "
            f"the limit is {limit / 2**30:.3g} GiB; read them from files (--load files)"
        )
    everything = torch.empty(len(images), *first.shape, dtype=torch.uint8)
    rows = everything.numpy()  # written by numpy, whose assignment costs a fraction of torch's

    def decode(index: int) -> None:
        image = images.read(index)
        if image.shape != first.shape:
            raise UserError(
                f"{images.path(index)} is {image.shape[2]}x{image.shape[1]} px, {images.path(0)} {first.shape[2]}x"
                f"{first.shape[1]} px; images in memory must have one size. Read them from files (--load files)"
            )
        rows[index] = image.numpy()

    for _ in map_images(decode, len(images)):
        pass
    return everything
