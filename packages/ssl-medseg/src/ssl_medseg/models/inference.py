"""Class probabilities of slices, and what refines them at test time."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor, nn

from contrastive_core.synchronization import free_to_read

_MOST_CLASSES = 256
_MIRRORS: tuple[tuple[int, ...], ...] = ((), (-1,), (-2,), (-2, -1))


@dataclass(frozen=True)
class Refinement:
    """What is done at test time beyond one prediction per slice; training chooses it on the validation cases.

    Attributes:
        mirror: average the probabilities of a slice and of its three mirror images.
        largest: classes, by number, of which only the largest connected part of a volume stays.
    """

    mirror: bool = False
    largest: tuple[int, ...] = ()


@torch.no_grad()
def slice_probabilities(
    network: nn.Module,
    slices: Tensor,
    *,
    batch_size: int = 16,
    autocast: AbstractContextManager[object] | None = None,
    mirror: bool = False,
) -> Tensor:
    """Class probabilities of slices, with the network in inference mode while it works.

    Args:
        network: slices [N, channels, H, W] -> logits [N, C, H, W].
        slices: [S, channels, H, W], on any device.
        batch_size: slices at once.
        autocast: mixed precision to compute in; probabilities are float32 all the same.
        mirror: average over the slice and its mirror images.

    Returns:
        Float32 [S, C, H, W] on the network's device.
    """
    device = next(network.parameters()).device
    was_training = network.training
    network.eval()
    try:
        with autocast or nullcontext():
            parts = [
                probabilities(network, part.to(device).contiguous(memory_format=torch.channels_last), mirror=mirror)
                for part in torch.split(slices, batch_size)
            ]
    finally:
        network.train(was_training)
    return torch.cat(parts).contiguous()


def probabilities(network: nn.Module, slices: Tensor, *, mirror: bool = False) -> Tensor:
    """Class probabilities of a batch, float32 [N, C, H, W]; with `mirror` the mean over four mirror images."""
    return mirrored_probabilities(network, slices).mean(0) if mirror else _softmax(network(slices))


def mirrored_probabilities(network: nn.Module, slices: Tensor) -> Tensor:
    """Class probabilities of a batch and of its three mirror images, mirrored back, float32 [4, N, C, H, W]."""
    return torch.stack([_softmax(network(slices.flip(dims))).flip(dims) for dims in _MIRRORS])


def largest_parts(mask: NDArray[np.uint8], classes: Collection[int] | None = None) -> NDArray[np.uint8]:
    """The mask with the largest connected part of structures alone; voxels connect through faces.

    Args:
        mask: classes [X, Y, Z].
        classes: which structures lose their smaller parts to the background; None: all.
    """
    result = mask.copy()
    for number in range(1, int(mask.max()) + 1) if classes is None else classes:
        parts, count = ndimage.label(mask == number)
        if count > 1:
            sizes = np.bincount(parts.ravel())
            result[(parts > 0) & (parts != 1 + sizes[1:].argmax())] = 0
    return result


def largest_parts_of_slices(classes: Tensor) -> Tensor:
    """Keep the largest connected part of each structure in each slice, as :func:`largest_parts` does.

    Args:
        classes: Integers [N, H, W], 0 for the background.

    Returns:
        The classes with 0 in place of the smaller parts. On a GPU they are found there, without making the host wait.
    """
    if not free_to_read(classes):
        return _largest_parts_on_device(classes)
    kept = [largest_parts(slice_) for slice_ in classes.to(torch.uint8).numpy()]
    return torch.from_numpy(np.stack(kept)).to(classes)


def _largest_parts_on_device(classes: Tensor) -> Tensor:
    """Connected parts by union of neighbours: every pixel points towards the first pixel of its part.

    A round lets each pixel, and what it points to, point to the least that it and its neighbours point to two steps on
    (FastSV, Zhang, Azad and Hu 2020). The length of chains halves about every round: spirals, combs and noise of up to
    320 pixels a side take at most log2(H W) + 1 rounds. There are twice as many, because asking whether the last one
    changed anything would make the host wait.
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
    # Of parts of one size, the first one counts; a structure of a slice is one group.
    rank = sizes * pixels + (pixels - 1 - torch.arange(pixels, device=classes.device))
    group = (torch.arange(count, device=classes.device)[:, None, None] * _MOST_CLASSES + classes).flatten()
    rank = rank[first]
    best = torch.zeros(count * _MOST_CLASSES, dtype=rank.dtype, device=rank.device)
    best = best.scatter_reduce(0, group, rank, "amax")
    return torch.where(rank == best[group], classes.flatten(), 0).view(classes.shape)


def _softmax(logits: Tensor) -> Tensor:
    return logits.float().softmax(1)
