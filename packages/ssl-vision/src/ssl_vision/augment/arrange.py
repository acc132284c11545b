"""The order in which a block of images is worked on: images that get the same operation lie side by side.

The four colour operations come in an order of their own in every image. Before each of the four stages the block is
re-arranged, which costs a copy; then each operation runs once, in place, over its run of images.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ssl_vision.augment.draws import Draws

NOTHING = 4  # in place of an operation, in images without jitter


class Stage(NamedTuple):
    """One re-arrangement, and what to do then."""

    move: NDArray[np.int64] | None
    """Which present slot each new slot takes its image from; None when all stay."""
    slot: NDArray[np.int64]
    """Which image of the block then lies in each slot."""
    runs: list[tuple[int, slice]]
    """Operation and slots of each run of images."""


def arrange(draws: Draws, block: slice) -> list[Stage]:
    """Four stages of jitter, and a fifth with no operation in which every image is back in its own slot."""
    stages = []
    order = np.where(draws.jitter[block], draws.order[block].T, NOTHING)
    home = slot = np.arange(order.shape[1])
    for operation in order:
        move = np.argsort(operation[slot], kind="stable")
        slot = slot[move]
        ends = np.bincount(operation, minlength=NOTHING).cumsum()[:NOTHING].tolist()
        runs = [(op, slice(a, b)) for op, (a, b) in enumerate(zip([0, *ends], ends, strict=False)) if b > a]
        stages.append(Stage(move=_unless_idle(move, home), slot=slot, runs=runs))
    stages.append(Stage(move=_unless_idle(np.argsort(slot), home), slot=home, runs=[]))
    return stages


def _unless_idle(move: NDArray[np.int64], home: NDArray[np.int64]) -> NDArray[np.int64] | None:
    return None if bool((move == home).all()) else move
