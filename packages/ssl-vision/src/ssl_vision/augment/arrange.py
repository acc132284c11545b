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

from ssl_vision.augment.draws import Draws

NOTHING = 4  # in place of an operation, in images without jitter
PLAIN, GRAY, GRAY_BLUR, BLUR = range(4)  # how an image is finished


class Stage(NamedTuple):
    """One re-arrangement, and what to do then."""

    move: Tensor | None
    """Which present slot each new slot takes its image from; None when all stay."""
    slot: Tensor
    """Which image of the block lies in each slot."""
    home: bool
    """Whether every image lies in its own slot."""
    runs: list[tuple[int, slice]]
    """Key and slots of each run of images."""


def stage_keys(draws: Draws) -> NDArray[np.int64]:
    """What happens to each image: four rows of operations, then one of how it is finished; [5, N]."""
    colour = np.where(draws.jitter, draws.order.T, NOTHING)
    return np.concatenate((colour, np.where(draws.gray, GRAY + draws.blur, BLUR * draws.blur)[None]))


def arrange(keys: NDArray[np.int64], *, device: torch.device) -> list[Stage]:
    """The stages of a block with these keys [stages, n]."""
    stages = []
    home = slot = np.arange(keys.shape[1])
    for key in keys:
        move = np.argsort(key[slot], kind="stable")
        stays = bool((move == home).all())
        slot = slot[move]
        ends = np.bincount(key).cumsum().tolist()
        stages.append(
            Stage(
                move=None if stays else torch.from_numpy(move).to(device),
                slot=torch.from_numpy(slot).to(device),
                home=bool((slot == home).all()),
                runs=[(k, slice(a, b)) for k, (a, b) in enumerate(zip([0, *ends], ends, strict=False)) if b > a],
            )
        )
    return stages
