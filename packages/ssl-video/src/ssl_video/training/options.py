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
"""Number of clips per step, labelled and unlabelled, for which the learning rate is stated."""


@dataclass(frozen=True)
class PseudoOptions:
    """Pseudo-labels: how to make and select them.

    Attributes:
        target: Source of the pseudo-label of a view: ``aggregated`` (all views), or for comparison ``self``,
            ``random``, ``cross``.
        fuse_by: Quantity averaged over views: ``probabilities`` or ``logits``.
        fusion: Weights of the views: ``exact`` for equal ones, ``adaptive`` for larger ones on views with small loss.
        view_weights: Fixed weights of the views instead, one per view.
        threshold: Smallest confidence of a pseudo-label to train on; by default 0.4, and 0.8 with fewer than 4 labelled
            videos per class or fewer than 5 classes. 0.4 measured best for ten classes and two or three views, whose
            mean is less confident than a single view; with fewer labels it did harm. Use 0.3 for hundreds of classes.
        soft: Train on the whole distribution instead of the most probable class.
        temperature: Temperature of soft targets.
        weight: Weight of the loss on pseudo-labels.
        warmup: Fraction of the steps at the start that use labels only.
        align: Align the distribution of pseudo-labels with that of the labels.
        select: Selection of pseudo-labels: ``fixed`` for the threshold, ``freematch`` for thresholds per class that
            follow the confidence, ``softmatch`` for weights.
        labeller: Network that makes the pseudo-labels: ``network``, or its moving ``average`` (with ``--ema_decay``).
        mix: TubeMix, which replaces one box in all frames by that of another clip and mixes the targets: parameter of
            the Beta distribution of the remaining share, such as 1; 0 for none.
        directed: Classes that the direction of time defines, such as opening and closing; their pseudo-labels are
            ignored on clips that ``strong.temporal`` reverses or shuffles.
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
"""Number of labelled videos per class below which the usual threshold did harm."""
FEW_CLASSES = 5
"""Classes below which the usual threshold is under twice chance."""


@dataclass(frozen=True)
class OptimizerOptions:
    """SGD with Nesterov momentum; the rate rises from a tenth of its peak, then follows a half cosine to 0.

    Attributes:
        lr: Peak learning rate at 40 clips per step, labelled and unlabelled; scaled linearly with their number.
        momentum: Momentum of SGD.
        weight_decay: Weight decay; not applied to batch norm and biases.
        warmup: Fraction of the steps over which the learning rate rises.
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
        """Return the peak learning rate for this number of clips per step over all processes."""
        return self.lr * clips / REFERENCE_CLIPS


def build_optimizer(network: nn.Module, options: OptimizerOptions, *, lr: float) -> torch.optim.Optimizer:
    """Make an SGD optimiser for the network, without weight decay on batch norm and biases."""
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
    """Apply the values of a recipe to the settings that are at their defaults.

    ``strong`` keeps the defaults, which measured best. ``paper`` sets all three views, joint batch norm, and the
    pseudo-labels and augmentation of the paper; values that the paper does not state come from the reimplementation by
    the authors of LTG (CVPR 2022).

    Raises:
        UserError: There is no such recipe.
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
