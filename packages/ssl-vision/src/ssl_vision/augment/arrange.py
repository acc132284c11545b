"""The order in which a block of images is worked on: images that get the same operation lie side by side.

The four colour operations come in an order of their own in every image. Before each of the four stages the block is
re-arranged, which costs a copy; then each operation runs once, in place, over its run of images. Large images are few
in a block: they stay where they are and every one is a run.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssl_vision.augment.draws import ORDERS, Draws

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
    """What happens to each image: four rows of operations, then one of how it is finished; int [5, N]."""
    colour = np.where(draws.jitter.numpy(), np.array(ORDERS)[draws.order.numpy()].T, NOTHING)
    gray, blur = draws.gray.numpy(), draws.blur.numpy()
    return np.concatenate((colour, np.where(gray, GRAY + blur, BLUR * blur)[None]))


def arrange(keys: NDArray[np.int64], *, large: bool, device: torch.device) -> list[Stage]:
    """The stages of a block with these keys [stages, n]."""
    stages = []
    home = slot = np.arange(keys.shape[1])
    where = torch.from_numpy(slot).to(device)
    for key in keys:
        if large:
            runs = [(k, slice(i, i + 1)) for i, k in enumerate(key.tolist())]
            stages.append(Stage(move=None, slot=where, home=True, runs=runs))
            continue
        move = np.argsort(key[slot], kind="stable")
        stays = bool((move == home).all())
        slot = slot[move]
        ends = np.bincount(key).cumsum().tolist()
        runs = [(k, slice(a, b)) for k, (a, b) in enumerate(zip([0, *ends], ends, strict=False)) if b > a]
        stages.append(
            Stage(
                move=None if stays else torch.from_numpy(move).to(device),
                slot=torch.from_numpy(slot).to(device),
                home=bool((slot == home).all()),
                runs=runs,
            )
        )
    return stages
