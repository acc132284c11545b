"""Settings of pseudo-labels and of the optimiser."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from contrastive_core.errors import UserError
from contrastive_core.optim import lars_param_groups
from ssl_video.augment import StrongOptions
from ssl_video.mvpl.losses import TargetKind

REFERENCE_CLIPS = 40
"""Clips of a step, labelled and not, that the learning rate is stated for."""


@dataclass(frozen=True)
class PseudoOptions:
    """Pseudo-labels: how they are made and which of them count.

    Attributes:
        target: Source of a view's pseudo-label: ``aggregated`` (all views), or for comparison ``self``, ``random``,
            ``cross``.
        fuse_by: What is averaged over views: ``probabilities`` or ``logits``.
        fusion: Weights of the views: ``exact`` for equal ones, ``adaptive`` for more weight to views of small loss.
        view_weights: Fixed weights of the views instead, one for each.
        threshold: Smallest confidence of a pseudo-label that counts; by default 0.4, and 0.8 with less than 4 labelled
            videos per class or less than 5 classes. 0.4 was measured best for ten classes and two or three views, whose
            mean is less sure than one view; with fewer labels it did harm. Take 0.3 for hundreds of classes.
        soft: Learn the whole distribution instead of the most probable class.
        temperature: Temperature of soft targets.
        weight: Weight of the loss on pseudo-labels.
        warmup: Fraction of the steps with labels only, at the start.
        align: Align the distribution of pseudo-labels with that of the labels.
        select: Rule by which pseudo-labels count: ``fixed`` for the threshold, ``freematch`` for thresholds of each
            class that follow the confidence, ``softmatch`` for weights.
        labeller: Network that makes the pseudo-labels: ``network``, or its moving ``average`` (with ``--ema_decay``).
        mix: TubeMix, one box of another clip in all frames, with mixed targets: parameter of the Beta distribution of
            the share that stays, such as 1; 0 for none.
        directed: Classes that the direction of time defines, such as opening and closing: their pseudo-labels do not
            count on clips that ``strong.temporal`` reverses or shuffles.
        agreement_weight: Weight of the distance between the features of rgb and those of tg (LTG); 0 for none.
    """

    target: TargetKind = "aggregated"
    fuse_by: Literal["probabilities", "logits"] = "probabilities"
    fusion: Literal["exact", "adaptive"] = "exact"
    view_weights: tuple[float, ...] = ()
    threshold: float | None = None
    soft: bool = False
    temperature: float = 1.0
    weight: float = 1.0
    warmup: float = 0.4
    align: bool = False
    select: Literal["fixed", "freematch", "softmatch"] = "fixed"
    labeller: Literal["network", "average"] = "network"
    mix: float = 0.0
    directed: tuple[str, ...] = ()
    agreement_weight: float = 0.0

    def __post_init__(self) -> None:
        for name, holds, expected in (
            ("threshold", self.threshold is None or 0 <= self.threshold <= 1, "a probability"),
            ("temperature", self.temperature > 0, "a positive number"),
            ("weight", 0 <= self.weight < math.inf, "a finite number, at least 0"),
            ("warmup", 0 <= self.warmup < 1, "a share of the steps, less than 1"),
            ("mix", 0 <= self.mix < math.inf, "a finite number, at least 0"),
            ("agreement_weight", 0 <= self.agreement_weight < math.inf, "a finite number, at least 0"),
        ):
            if not holds:
                raise UserError(f"pseudo.{name} is {getattr(self, name)}; expected {expected}")

    def threshold_for(self, labelled: int, classes: int) -> float:
        """Return the threshold given, or the one for so many labelled videos of so many classes."""
        if self.threshold is not None:
            return self.threshold
        return SURE if labelled < FEW * classes or classes < FEW_CLASSES else USUAL


USUAL, SURE = 0.4, 0.8
"""Thresholds: the one measured best, and one that did no harm where labels are few."""
FEW = 4
"""Labelled videos per class below which the usual threshold did harm."""
FEW_CLASSES = 5
"""Classes below which the usual threshold is under twice chance."""


@dataclass(frozen=True)
class OptimizerOptions:
    """SGD with Nesterov momentum; warm-up from a tenth of the rate, then half a cosine to 0.

    Attributes:
        lr: Peak learning rate for 40 clips a step; scaled with their number, labelled and not.
        momentum: Momentum of SGD.
        weight_decay: Weight decay; batch norm and biases have none.
        warmup: Fraction of the steps in which the learning rate rises.
        clip_gradients: Largest norm of the gradient; 0 for no limit.
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


BN = Literal["joint", "split"]

_VIEWS: tuple[str, ...] = ("rgb", "tg")
_PAPER_PSEUDO = {"threshold": 0.3, "warmup": 0.125}
_PAPER_STRONG = {"num_ops": 2, "magnitude": 10, "cutout": 4 / 7, "motion_ops": "full"}


def apply_recipe(
    recipe: Literal["strong", "paper"],
    *,
    views: tuple[str, ...],
    bn: BN,
    pseudo: PseudoOptions,
    strong: StrongOptions,
) -> tuple[tuple[str, ...], BN, PseudoOptions, StrongOptions]:
    """Settings with the values of a recipe in place of those that are the defaults.

    ``strong`` leaves the defaults, which were measured best. ``paper`` has all three views, joint batch norm and the
    paper's pseudo-labels and augmentation; what the paper leaves open is that of the reimplementation by the authors of
    LTG (CVPR 2022).

    Raises:
        UserError: there is no such recipe.
    """
    if recipe not in ("strong", "paper"):
        raise UserError(f"recipe is {recipe!r}; expected strong or paper")
    if recipe == "paper":
        views = ("rgb", "flow", "tg") if views == _VIEWS else views
        bn = "joint" if bn == "split" else bn
        pseudo, strong = _replaced(pseudo, _PAPER_PSEUDO), _replaced(strong, _PAPER_STRONG)
    return views, bn, pseudo, strong


_Options = TypeVar("_Options", PseudoOptions, StrongOptions)


def _replaced(options: _Options, values: Mapping[str, Any]) -> _Options:
    defaults = type(options)()
    at_default = {name for name in values if getattr(options, name) == getattr(defaults, name)}
    return dataclasses.replace(options, **{name: values[name] for name in at_default})
