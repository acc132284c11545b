"""The order in which a block of images is worked on: images that get the same operation lie side by side.

The four colour operations come in an order of their own in every image. Before each of the four stages the block is
re-arranged, which costs a copy; then each operation runs once, in place, over its run of images.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssl_vision.augment.draws import ORDERS, Draws

NOTHING = 4  # instead of an operation, in images without jitter


class Stage(NamedTuple):
    """One re-arrangement."""

    move: Tensor | None
    """Which present slot each new slot takes its image from; None when all stay."""
    slot: Tensor
    """Which image of the block lies in each slot."""
    runs: list[slice]
    """The slots of each key, empty slices included."""


def stage_keys(draws: Draws) -> NDArray[np.int64]:
    """What happens to each image: four rows of operations, then one of 0 plain, 1 grey, 2 grey and blurred, 3 blurred.

    In that order both the grey and the blurred images are neighbours.
    """
    orders = torch.tensor(ORDERS)[draws.order].t()
    colour = torch.where(draws.jitter, orders, NOTHING)
    blur = draws.blur.long()
    finish = torch.where(draws.gray, 1 + blur, 3 * blur)
    return torch.cat((colour, finish[None])).numpy()


def arrange(keys: NDArray[np.int64], device: torch.device) -> list[Stage]:
    """The stages of a block with these keys [stages, n]."""
    stages = []
    slot = np.arange(keys.shape[1])
    for key in keys:
        move = np.argsort(key[slot], kind="stable")
        slot = slot[move]
        ends = np.cumsum(np.bincount(key, minlength=NOTHING + 1)).tolist()
        runs = [slice(a, b) for a, b in zip([0, *ends], ends, strict=False)]
        stays = bool((move[1:] > move[:-1]).all())
        stages.append(
            Stage(None if stays else torch.from_numpy(move).to(device), torch.from_numpy(slot).to(device), runs)
        )
    return stages
