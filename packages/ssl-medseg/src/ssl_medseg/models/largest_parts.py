"""Keep the largest connected component of each structure, in volumes and in slices."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from contrastive_core.synchronization import free_to_read

_MOST_CLASSES = 256


def largest_parts(mask: NDArray[np.uint8], classes: Collection[int] | None = None) -> NDArray[np.uint8]:
    """Keep the largest connected component of structures in a mask; voxels are connected through their faces.

    Args:
        mask: Class numbers ``[X, Y, Z]`` or ``[H, W]``, 0 for the background.
        classes: Structures whose smaller components become background; None for all.

    Returns:
        Copy of the mask. Of components of the same size, the first one is kept.
    """
    result = mask.copy()
    for number in range(1, int(mask.max()) + 1) if classes is None else classes:
        parts, count = ndimage.label(mask == number)
        if count > 1:
            sizes = np.bincount(parts.ravel())
            result[(parts > 0) & (parts != 1 + sizes[1:].argmax())] = 0
    return result


def largest_parts_of_slices(classes: Tensor) -> Tensor:
    """Keep the largest connected component of each structure in each slice, see :func:`largest_parts`.

    On a GPU, the components are computed there, without synchronising with the host.

    Args:
        classes: Class numbers, integers ``[N, H, W]``, 0 for the background.

    Returns:
        Class numbers, with 0 in place of the smaller components.
    """
    if not free_to_read(classes):
        return _largest_parts_on_device(classes)
    masks = [largest_parts(slice_) for slice_ in classes.to(torch.uint8).numpy()]
    return torch.from_numpy(np.stack(masks)).to(classes)


def _largest_parts_on_device(classes: Tensor) -> Tensor:
    """Find connected components by pointer jumping, as in FastSV (Zhang, Azad and Hu 2020).

    Every pixel holds a pointer to an earlier pixel of its component, at the end to the first one. In each round, a
    pixel and its target take the smallest grandparent among the pixel and its neighbours, which about halves the length
    of all chains. Spirals, combs and noise of up to 320 pixels per side needed at most log2(H W) + 1 rounds. Twice as
    many are made, because testing for convergence would synchronise with the host.
    """
    count, height, width = classes.shape
    pixels = count * height * width
    across, down = classes[:, :, 1:] == classes[:, :, :-1], classes[:, 1:] == classes[:, :-1]
    first = torch.arange(pixels, device=classes.device)
    for _ in range(2 * max(1, (height * width - 1).bit_length())):
        ahead = first[first]
        image = ahead.view(classes.shape)
        least = image.clone()
        for axis, same in ((2, across), (1, down)):
            size = same.shape[axis]
            for at, other in ((0, 1), (1, 0)):
                seen = torch.where(same, image.narrow(axis, other, size), pixels)
                here = least.narrow(axis, at, size)
                torch.minimum(here, seen, out=here)
        flat = least.flatten()
        first = torch.minimum(first.scatter_reduce(0, first, flat, "amin"), torch.minimum(flat, ahead))
    sizes = torch.zeros_like(first).scatter_add_(0, first, torch.ones_like(first))
    # Of components of the same size, the first one is kept; each structure of each slice forms a group.
    rank = sizes * pixels + (pixels - 1 - torch.arange(pixels, device=classes.device))
    group = (torch.arange(count, device=classes.device)[:, None, None] * _MOST_CLASSES + classes).flatten()
    rank = rank[first]
    best = torch.zeros(count * _MOST_CLASSES, dtype=rank.dtype, device=rank.device)
    best = best.scatter_reduce(0, group, rank, "amax")
    return torch.where(rank == best[group], classes.flatten(), 0).view(classes.shape)
