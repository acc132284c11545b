"""The random numbers of one view of a batch: every one a function of (seed, id of the image) alone.

They are NumPy arrays on the host, whatever device the images are on: a few numbers per image, from which the work is
planned, and the same seed then draws the same view everywhere.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from contrastive_core.rng import derive, uniform

ORDERS = np.array(list(itertools.permutations(range(4))))  # of (brightness, contrast, saturation, hue), first first

Flags = NDArray[np.bool_]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Draws:
    """What happens to each of N images."""

    boxes: NDArray[np.int64]
    """Crop: top, left, height, width; [N, 4]."""
    flip: Flags
    """Mirror left to right; [N]."""
    jitter: Flags
    """Whether colours are jittered; [N]."""
    order: NDArray[np.int64]
    """Operations of the jitter, first one first: 0 brightness, 1 contrast, 2 saturation, 3 hue; [N, 4]."""
    amounts: Floats
    """Factors of brightness (or its addend), contrast and saturation, shift of hue in turns; [4, N]."""
    gray: Flags
    """Whether colour is taken away; [N]."""
    blur: Flags
    """Whether to blur; [N]."""
    sigma: Floats
    """Width of the blur in pixels; [N]."""


@dataclass(frozen=True)
class Family:
    """What views of SimCLR are drawn from (paper, appendix A).

    Factors of brightness, contrast and saturation are uniform in [max(0, 1 - 0.8 s), 1 + 0.8 s] for strength s,
    additive brightness in [-0.8 s, 0.8 s], the shift of hue in [-0.2 s, 0.2 s] turns, sigma in [0.1, 2] pixels.
    """

    strength: float
    additive: bool
    flip: float
    jitter: float
    gray: float
    blur: float
    one_sigma: bool

    def draw(self, boxes: NDArray[np.int64], *, seed: int, ids: Tensor) -> Draws:
        """Draw everything but the boxes."""
        u = uniform(derive(seed, "augment"), ids, 10).numpy().T
        wide, least = 0.8 * self.strength, max(0.0, 1 - 0.8 * self.strength)
        ranges = [(-wide, wide) if self.additive else (least, 1 + wide), (least, 1 + wide), (least, 1 + wide)]
        low, high = np.array([*ranges, (-0.2 * self.strength, 0.2 * self.strength)], np.float32).T
        width = u[9]
        if self.one_sigma:
            one = uniform(derive(seed, "sigma"), torch.zeros(1, dtype=torch.int64), 1)
            width = np.full_like(width, one.item())
        return Draws(
            boxes=boxes,
            flip=u[0] < self.flip,
            jitter=u[1] < self.jitter,
            order=ORDERS[(u[2] * len(ORDERS)).astype(np.int64)],
            amounts=low[:, None] + u[3:7] * (high - low)[:, None],
            gray=u[7] < self.gray,
            blur=u[8] < self.blur,
            sigma=np.float32(0.1) + np.float32(1.9) * width,
        )


PLAIN = Family(strength=0.0, additive=False, flip=0.5, jitter=0.0, gray=0.0, blur=0.0, one_sigma=False)


def still(boxes: NDArray[np.int64]) -> Draws:
    """Nothing but the crops."""
    n = len(boxes)
    no = np.zeros(n, np.bool_)
    return Draws(
        boxes,
        flip=no,
        jitter=no,
        order=np.tile(ORDERS[0], (n, 1)),
        amounts=np.zeros((4, n), np.float32),
        gray=no,
        blur=no,
        sigma=np.ones(n, np.float32),
    )
