"""The paper's optimiser."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn


def adam(parameters: Iterable[nn.Parameter], *, lr: float) -> torch.optim.Adam:
    """Adam with betas 0.9 and 0.999, epsilon 1e-8 and no weight decay, in one kernel per step."""
    return torch.optim.Adam(list(parameters), lr=lr, fused=True)
