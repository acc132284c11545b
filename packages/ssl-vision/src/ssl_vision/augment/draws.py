"""The random numbers of one view of a batch: every one a function of (seed, id of the image) alone."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from contrastive_core.random import derive, uniform

ORDERS = tuple(itertools.permutations(range(4)))  # of (brightness, contrast, saturation, hue), first applied first


@dataclass(frozen=True)
class Draws:
    """What happens to each of N images; tensors on the CPU, one row per image."""

    boxes: Tensor
    """Crop: top, left, height, width; int64 [N, 4]."""
    flip: Tensor
    """Mirror left to right; bool."""
    jitter: Tensor
    """Whether colours are jittered; bool."""
    order: Tensor
    """Which of `ORDERS` the four jitter operations follow; int64."""
    amounts: Tensor
    """Factors of brightness (or its addend), contrast and saturation, shift of hue in turns; float32 [4, N]."""
    gray: Tensor
    """Whether colour is taken away; bool."""
    blur: Tensor
    """Whether to blur; bool."""
    sigma: Tensor
    """Width of the blur in pixels; float32."""


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

    def draw(self, boxes: Tensor, *, seed: int, ids: Tensor) -> Draws:
        """Draw everything but the boxes."""
        u = uniform(derive(seed, "augment"), ids, 10).t().contiguous()
        wide, least = 0.8 * self.strength, max(0.0, 1 - 0.8 * self.strength)
        low = torch.tensor([-wide if self.additive else least, least, least, -0.2 * self.strength])
        high = torch.tensor([wide if self.additive else 1 + wide, 1 + wide, 1 + wide, 0.2 * self.strength])
        width = u[9]
        if self.one_sigma:
            width = uniform(derive(seed, "sigma"), torch.zeros(1, dtype=torch.int64), 1)[0].expand(len(ids))
        return Draws(
            boxes=boxes,
            flip=u[0] < self.flip,
            jitter=u[1] < self.jitter,
            order=(u[2] * len(ORDERS)).long(),
            amounts=low[:, None] + u[3:7] * (high - low)[:, None],
            gray=u[7] < self.gray,
            blur=u[8] < self.blur,
            sigma=0.1 + 1.9 * width,
        )


PLAIN = Family(strength=0.0, additive=False, flip=0.5, jitter=0.0, gray=0.0, blur=0.0, one_sigma=False)


def still(boxes: Tensor) -> Draws:
    """Nothing but the crops."""
    n = len(boxes)
    no, zero = torch.zeros(n, dtype=torch.bool), torch.zeros(n, dtype=torch.int64)
    return Draws(
        boxes, flip=no, jitter=no, order=zero, amounts=torch.zeros(4, n), gray=no, blur=no, sigma=torch.ones(n)
    )
