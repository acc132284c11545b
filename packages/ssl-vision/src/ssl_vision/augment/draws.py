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
    """What happens to each of N images; tensors on the CPU."""

    boxes: Tensor
    """Crop: top, left, height, width; int64 [N, 4]."""
    flip: Tensor
    """Mirror left to right; bool [N]."""
    jitter: Tensor
    """Whether colours are jittered; bool [N]."""
    order: Tensor
    """Which of `ORDERS` the four jitter operations follow; int64 [N]."""
    brightness: Tensor
    """Factor, or the addend of additive brightness; [N]."""
    contrast: Tensor
    """Factor; [N]."""
    saturation: Tensor
    """Factor; [N]."""
    hue: Tensor
    """Shift in turns; [N]."""
    gray: Tensor
    """Whether colour is taken away; bool [N]."""
    blur: Tensor
    """Whether to blur; bool [N]."""
    sigma: Tensor
    """Width of the blur in pixels; [N]."""


def draw(
    boxes: Tensor,
    *,
    seed: int,
    ids: Tensor,
    strength: float,
    additive: bool,
    flip: float,
    jitter: float,
    gray: float,
    blur: float,
    one_sigma: bool,
) -> Draws:
    """Draw everything but the boxes. Probabilities are those of the paper's appendix A unless told otherwise.

    Brightness, contrast and saturation factors are uniform in [max(0, 1 - 0.8 s), 1 + 0.8 s], additive brightness in
    [-0.8 s, 0.8 s], the hue shift in [-0.2 s, 0.2 s] turns, sigma in [0.1, 2].
    """
    u = uniform(derive(seed, "augment"), ids, 10)
    wide = 0.8 * strength
    low = max(0.0, 1.0 - wide)

    def factor(column: Tensor) -> Tensor:
        return low + column * (1 + wide - low)

    width = u[:, 9]
    if one_sigma:
        width = uniform(derive(seed, "sigma"), torch.zeros(1, dtype=torch.int64), 1)[0].expand(len(ids))
    return Draws(
        boxes=boxes,
        flip=u[:, 0] < flip,
        jitter=u[:, 1] < jitter,
        order=(u[:, 2] * len(ORDERS)).long(),
        brightness=(2 * u[:, 3] - 1) * wide if additive else factor(u[:, 3]),
        contrast=factor(u[:, 4]),
        saturation=factor(u[:, 5]),
        hue=(2 * u[:, 6] - 1) * (0.2 * strength),
        gray=u[:, 7] < gray,
        blur=u[:, 8] < blur,
        sigma=0.1 + width * 1.9,
    )
