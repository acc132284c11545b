"""Adam, and how its learning rate runs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.optimizer import Optimizer

Schedule = Literal["cosine", "constant"]
"""How the learning rate runs: up and down again, or not at all as in the released code."""

WARMUP = 50
"""Steps of warm-up, at most a tenth of a cycle."""


def adam(parameters: Iterable[nn.Parameter], *, lr: float) -> torch.optim.Adam:
    """Adam with betas 0.9 and 0.999, epsilon 1e-8 and no weight decay, in one kernel per step."""
    return torch.optim.Adam(list(parameters), lr=lr, fused=True)


def rate(name: Schedule, step: int, *, cycle: int) -> float:
    """The share of the learning rate that a step takes.

    ``constant``: 1. ``cosine``, with w = min(50, cycle // 10) and t = step mod cycle, so that every round of
    self-training has a cycle of its own and ends with weights that have come to rest:

        (t + 1) / w                                    while t < w
        (1 + cos(pi (t - w) / (cycle - w))) / 2        after that

    Args:
        name: of the schedule.
        step: from 0.
        cycle: steps of a cycle, at least 1.

    >>> [round(rate("cosine", step, cycle=20), 3) for step in (0, 1, 2, 11, 19, 20)]
    [0.5, 1.0, 1.0, 0.5, 0.008, 0.5]
    """
    if name == "constant":
        return 1.0
    warmup, at = min(WARMUP, cycle // 10), step % cycle
    if at < warmup:
        return (at + 1) / warmup
    return (1 + math.cos(math.pi * (at - warmup) / (cycle - warmup))) / 2


def scheduler(optimizer: Optimizer, name: Schedule, *, cycle: int) -> LambdaLR:
    """Sets the learning rate of every step: ``step()`` after each of the optimiser's. Track it."""
    return LambdaLR(optimizer, lambda step: rate(name, step, cycle=cycle))
