"""Settings of pseudo-labels and of the optimiser."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from contrastive_core.errors import UserError
from contrastive_core.optim import lars_param_groups
from ssl_video.mvpl.losses import TargetKind

REFERENCE_CLIPS = 40
"""Clips of a step, labelled and not, that the learning rate is stated for."""


@dataclass(frozen=True)
class PseudoOptions:
    """Pseudo-labels: how they are made and which of them count.

    Attributes:
        target: ``aggregated``, or for comparison ``self``, ``random``, ``cross``.
        fuse_by: the mean of ``probabilities`` or of ``logits``.
        fusion: ``exact``: the mean; ``adaptive``: views of small supervised loss count more.
        view_weights: weights of the views in the fusion instead, one for each.
        threshold: confidence of a pseudo-label that counts. 0.3 for hundreds of classes; for ten, 0.4 where several
            views are fused, whose mean is less sure than one, and 0.6 to 0.8 for one.
        soft: learn the whole distribution.
        temperature: of soft targets.
        weight: of the loss on pseudo-labels.
        warmup: share of the steps with labels only, at the start.
        align: distribution alignment.
    """

    target: TargetKind = "aggregated"
    fuse_by: Literal["probabilities", "logits"] = "probabilities"
    fusion: Literal["exact", "adaptive"] = "exact"
    view_weights: tuple[float, ...] = ()
    threshold: float = 0.3
    soft: bool = False
    temperature: float = 1.0
    weight: float = 1.0
    warmup: float = 0.125
    align: bool = False

    def __post_init__(self) -> None:
        for name, holds, expected in (
            ("threshold", 0 <= self.threshold <= 1, "a probability"),
            ("temperature", self.temperature > 0, "a positive number"),
            ("weight", 0 <= self.weight < math.inf, "a finite number, at least 0"),
            ("warmup", 0 <= self.warmup < 1, "a share of the steps, less than 1"),
        ):
            if not holds:
                raise UserError(f"pseudo.{name} is {getattr(self, name)}; expected {expected}")


@dataclass(frozen=True)
class OptimizerOptions:
    """SGD with Nesterov momentum; warm-up from a tenth of the rate, then half a cosine to 0.

    Attributes:
        lr: at the peak, for 40 clips a step; scaled with their number, labelled and not.
        momentum: of SGD.
        weight_decay: of weights; batch norm and biases have none.
        warmup: share of the steps.
        clip_gradients: largest norm of the gradient; 0: no limit.
    """

    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    warmup: float = 0.125
    clip_gradients: float = 40.0

    def __post_init__(self) -> None:
        for name, holds, expected in (
            ("lr", 0 < self.lr < math.inf, "a finite number above 0"),
            ("momentum", 0 < self.momentum < 1, "more than 0 and less than 1"),
            ("weight_decay", 0 <= self.weight_decay < math.inf, "a finite number, at least 0"),
            ("warmup", 0 <= self.warmup < 1, "a share of the steps, less than 1"),
            ("clip_gradients", self.clip_gradients >= 0, "at least 0"),
        ):
            if not holds:
                raise UserError(f"optimizer.{name} is {getattr(self, name)}; expected {expected}")

    def peak(self, clips: int) -> float:
        """The learning rate at its peak, for so many clips a step over all processes."""
        return self.lr * clips / REFERENCE_CLIPS


def build_optimizer(network: nn.Module, options: OptimizerOptions, *, lr: float) -> torch.optim.Optimizer:
    """SGD on the network's parameters, batch norm and biases left out of weight decay."""
    groups = [
        {"params": group["params"], "weight_decay": group["weight_decay"]}
        for group in lars_param_groups(network, options.weight_decay)
    ]
    return torch.optim.SGD(groups, lr=lr, momentum=options.momentum, nesterov=True)
