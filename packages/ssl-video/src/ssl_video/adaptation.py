"""What the method learns about its views and classes while it trains: small averages over steps, kept as buffers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch import distributed as dist

from contrastive_core.distributed import is_distributed, world_size

_DECAY = 0.99


class ViewWeights(nn.Module):
    """How much each view's prediction counts when they are fused.

    Args:
        fusion: ``exact``: all the same; ``adaptive``: ``w_v ~ exp(-L_v)``, L_v being the view's supervised loss
            averaged over steps (decay 0.99, unbiased from the start); or numbers, one for each view.
        views: their names.

    Raises:
        ValueError: another number of weights than of views, negative ones, or all 0.
    """

    losses: Tensor
    steps: Tensor

    def __init__(self, fusion: Literal["exact", "adaptive"] | Sequence[float], views: Sequence[str]) -> None:
        super().__init__()
        self.adaptive, self.fixed = fusion == "adaptive", None
        if not isinstance(fusion, str):
            self.fixed = torch.tensor([float(weight) for weight in fusion])
            if len(self.fixed) != len(views) or not math.isfinite(self.fixed.sum()) or (self.fixed < 0).any():
                raise ValueError(
                    f"fusion is {list(fusion)}; expected {len(views)} weights of at least 0, for {', '.join(views)}"
                )
            if not self.fixed.any():
                raise ValueError("fusion is all 0; expected at least one view that counts")
        elif fusion not in ("exact", "adaptive"):
            raise ValueError(f"fusion is {fusion!r}; expected exact, adaptive, or a weight for each view")
        self.register_buffer("losses", torch.zeros(len(views)))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self) -> Tensor | None:
        """The weights ``[M]``, of sum 1; None: equal ones."""
        if self.fixed is not None:
            return (self.fixed / self.fixed.sum()).to(self.losses.device)
        if not self.adaptive or not self.steps:
            return None
        return (-self.losses / (1 - _DECAY**self.steps)).softmax(dim=0)

    @torch.no_grad()
    def remember(self, losses: Tensor) -> None:
        """Take in the supervised loss of each view ``[M]`` in this step."""
        if self.adaptive:
            self.losses.lerp_(_over_processes(losses.to(self.losses.dtype)), 1 - _DECAY)
            self.steps += 1


class DistributionAlignment(nn.Module):
    """Targets whose mean over steps is that of the labels: ``q' ~ q * (share among labels) / (running mean of q)``.

    Reference: Berthelot et al., "ReMixMatch", ICLR 2020, section 3.1. The running mean decays by 0.99 a step, which is
    our choice (there: the last 128 batches).
    """

    labels: Tensor
    mean: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.register_buffer("labels", torch.ones(classes))
        self.register_buffer("mean", torch.full((classes,), 1 / classes))

    @torch.no_grad()
    def forward(self, probabilities: Tensor, usable: Tensor) -> Tensor:
        """Aligned targets, of the shape ``[M, N, K]`` of the given ones; those not `usable` ``[M, N]`` do not count."""
        share = self.labels / self.labels.sum()
        aligned = probabilities * (share / self.mean.clamp(min=1e-6)).to(probabilities.dtype)
        aligned = aligned / aligned.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(aligned.dtype).tiny)
        if self.training and usable.any():
            now = probabilities[usable].mean(dim=0).to(self.mean.dtype)
            self.mean.lerp_(_over_processes(now), 1 - _DECAY)
        return aligned

    @torch.no_grad()
    def count(self, labels: Tensor) -> None:
        """Count the labels of a step."""
        seen = torch.bincount(labels, minlength=len(self.labels)).to(self.labels.dtype)
        self.labels += _over_processes(seen) * world_size()


def _over_processes(value: Tensor) -> Tensor:
    """The mean over processes, so that the buffers stay the same on all."""
    if is_distributed() and world_size() > 1:
        value = value.clone()
        dist.all_reduce(value)
        value /= world_size()
    return value
