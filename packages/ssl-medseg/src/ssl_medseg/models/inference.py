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


def _softmax(logits: Tensor) -> Tensor:
    return logits.float().softmax(1)
