"""Settings of training: views, length and batches, pseudo-labels, optimiser; and the recipes that set them."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from contrastive_core.errors import UserError
from contrastive_core.optim import lars_param_groups
from contrastive_core.training.config import check_counts, check_fields
from ssl_video.augment import ClipAugment, StrongOptions, WeakOptions
from ssl_video.mvpl.losses import USUAL_THRESHOLD, Selection, TargetKind


@dataclass(frozen=True)
class InputOptions:
    """Input of the network: the views of a clip and their size.

    Attributes:
        views: Views of a clip, from rgb, flow, tg and audio; the first is the one that is tested. ``fixmatch`` uses
            only the first.
        image_size: Side of the crops in pixels.
        flow: Flow method for the view flow: dis, dis_fast, dis_ultrafast, farneback, tvl1 or raft:FILE.
        tg_gain: Contrast of the view tg (temporal gradient).
        shared_geometry: Crop all views of a clip in the same place.
    """

    views: tuple[str, ...] = ("rgb", "tg")
    image_size: int = 112
    flow: str = "dis"
    tg_gain: float = 1.0
    shared_geometry: bool = True

    def __post_init__(self) -> None:
        check_counts(self, image_size=1)


@dataclass(frozen=True)
class TrainingOptions:
    """Length of training, batches, batch norm and validation.

    Attributes:
        steps: Number of optimiser steps.
        batch_size: Number of labelled clips per step over all processes; all labelled videos if there are fewer.
        mu: Number of unlabelled clips per labelled clip.
        bn: Batch norm statistics: ``split`` for separate ones per view, ``joint`` for all views together.
        recalibrate: Number of clips to recalibrate batch norm on for each view; 0 for none.
        validate_every: Number of steps between evaluations on the validation part of the split; 0 for none.
    """

    steps: int = 10_000
    batch_size: int = 8
    mu: int = 4
    bn: Literal["joint", "split"] = "split"
    recalibrate: int = 200
    validate_every: int = 0

    def __post_init__(self) -> None:
        check_counts(self, steps=1, batch_size=1, mu=1, recalibrate=0, validate_every=0)

    def validates(self, step: int) -> bool:
        """Return whether the network is evaluated on the validation part after a step; it is after the last."""
        return self.validate_every > 0 and ((step + 1) % self.validate_every == 0 or step == self.steps - 1)


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
        view_weights: Fixed weights of the views, one per view, in place of `fusion`.
        threshold: Smallest confidence of a pseudo-label to train on if `select` is ``fixed``; by default 0.4, and 0.8
            with fewer than 4 labelled videos per class or fewer than 5 classes. 0.4 was the best one in measurements
            with ten classes and two or three views, whose mean is less confident than a single view; with fewer labels
            it lowered the accuracy. Use 0.3 for hundreds of classes.
        soft: Train on the whole distribution instead of the most probable class.
        temperature: Temperature of soft targets.
        weight: Weight of the loss on pseudo-labels.
        warmup: Fraction of the steps at the start that use labels only.
        align: Align the distribution of pseudo-labels with that of the labels.
        select: Selection of pseudo-labels: ``freematch`` for thresholds per class that follow the confidence, ``fixed``
            for `threshold`, ``softmatch`` for weights. The default is ``freematch``, and ``fixed`` if a threshold is
            given, with one view (FixMatch), and with fewer than 4 labelled videos per class or fewer than 5 classes.
        labeller: Network that makes the pseudo-labels: ``network``, or its moving ``average`` (with ``--ema``).
        mix: TubeMix, which replaces one box in all frames by that of another clip and mixes the targets: parameter of
            the Beta distribution of the remaining share, such as 1; 0 for none.
        directed: Classes that the direction of time defines, such as opening and closing; their pseudo-labels are
            ignored on clips that ``strong.temporal`` reverses or shuffles.
        agreement_weight: Weight of the distance between the features of rgb and those of tg (LTG); 0 for none. The
            default is 1 with both views and a network with a linear last layer, and 0 with labels alone. It suits runs
            of thousands of steps; it can lower the accuracy in those of a few hundred.
        exclude_labelled: Exclude the labelled videos from the unlabelled data.
        diagnose: Read the labels of all videos to record the accuracy of the pseudo-labels; training ignores them.
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
    select: Selection | None = None
    labeller: Literal["network", "average"] = "network"
    mix: float = 0.0
    directed: tuple[str, ...] = ()
    agreement_weight: float | None = None
    exclude_labelled: bool = False
    diagnose: bool = False

    def __post_init__(self) -> None:
        check_fields(
            self,
            "pseudo",
            threshold=(self.threshold is None or 0 <= self.threshold <= 1, "a probability"),
            temperature=(self.temperature > 0, "a positive number"),
            weight=(0 <= self.weight < math.inf, "a finite number, at least 0"),
            warmup=(0 <= self.warmup < 1, "a share of the steps, less than 1"),
            mix=(0 <= self.mix < math.inf, "a finite number, at least 0"),
            agreement_weight=(
                self.agreement_weight is None or 0 <= self.agreement_weight < math.inf,
                "a finite number, at least 0",
            ),
        )

    def settled(self, labelled: int, *, classes: int, views: int) -> PseudoOptions:
        """Return the options with `threshold` and `select` for so many labelled videos, classes and views."""
        few = labelled < FEW * classes or classes < FEW_CLASSES
        usual: Selection = "fixed" if self.threshold is not None or few or views == 1 else "freematch"
        threshold = (SURE if few else USUAL_THRESHOLD) if self.threshold is None else self.threshold
        return dataclasses.replace(self, threshold=threshold, select=self.select or usual)


SURE = 0.8
"""Threshold that lowered the accuracy least in short runs with few labels, and raised it in long ones."""
FEW = 4
"""Number of labelled videos per class below which the usual threshold, and FreeMatch's, lowered the accuracy."""
SHORT = 500
"""Number of steps below which pseudo-labels lowered the accuracy of networks without pre-trained weights."""
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
        ema: Decay of a moving average of the network, which is then saved in its place; 0 for none.
    """

    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    warmup: float = 0.125
    clip_gradients: float = 40.0
    ema: float = 0.0

    def __post_init__(self) -> None:
        check_fields(
            self,
            "optimizer",
            lr=(0 < self.lr < math.inf, "a finite number above 0"),
            momentum=(0 < self.momentum < 1, "more than 0 and less than 1"),
            weight_decay=(0 <= self.weight_decay < math.inf, "a finite number, at least 0"),
            warmup=(0 <= self.warmup < 1, "a share of the steps, less than 1"),
            clip_gradients=(self.clip_gradients >= 0, "at least 0"),
            ema=(0 <= self.ema < 1, "at least 0 and less than 1"),
        )

    def peak(self, clips: int) -> float:
        """Return the peak learning rate for this number of clips per step over all processes."""
        return self.lr * clips / REFERENCE_CLIPS


def make_augment(inputs: InputOptions, weak: WeakOptions, strong: StrongOptions) -> ClipAugment:
    """Make the augmentation of the views.

    Raises:
        ValueError: A setting is out of range.
    """
    return ClipAugment(
        inputs.image_size, views=inputs.views, weak=weak, strong=strong, shared_geometry=inputs.shared_geometry,
        flow=inputs.flow, tg_gain=inputs.tg_gain,
    )  # fmt: skip


def build_optimizer(network: nn.Module, options: OptimizerOptions, *, lr: float) -> torch.optim.Optimizer:
    """Make an SGD optimiser for the network, without weight decay on batch norm and biases."""
    groups = [
        {"params": group["params"], "weight_decay": group["weight_decay"]}
        for group in lars_param_groups(network, options.weight_decay)
    ]
    return torch.optim.SGD(groups, lr=lr, momentum=options.momentum, nesterov=True)


_PAPER: dict[type, dict[str, Any]] = {
    InputOptions: {"views": ("rgb", "flow", "tg")},
    TrainingOptions: {"bn": "joint"},
    PseudoOptions: {"threshold": 0.3, "warmup": 0.125, "agreement_weight": 0.0},
    StrongOptions: {"num_ops": 2, "magnitude": 10, "cutout": 4 / 7, "motion_ops": "full"},
}


def apply_recipe(
    recipe: Literal["strong", "paper"],
    inputs: InputOptions,
    training: TrainingOptions,
    pseudo: PseudoOptions,
    strong: StrongOptions,
) -> tuple[InputOptions, TrainingOptions, PseudoOptions, StrongOptions]:
    """Apply the values of a recipe to the settings that are at their defaults.

    ``strong`` keeps the defaults, which gave the best results. ``paper`` sets all three views, joint batch norm, and
    the pseudo-labels and augmentation of the paper; values that the paper does not state come from the reimplementation
    by the authors of LTG (CVPR 2022).

    Raises:
        UserError: There is no such recipe.
    """
    if recipe not in ("strong", "paper"):
        raise UserError(f"recipe is {recipe!r}; expected strong or paper")
    if recipe == "strong":
        return inputs, training, pseudo, strong
    return _as_in_paper(inputs), _as_in_paper(training), _as_in_paper(pseudo), _as_in_paper(strong)


_Options = TypeVar("_Options", InputOptions, TrainingOptions, PseudoOptions, StrongOptions)


def _as_in_paper(options: _Options) -> _Options:
    values, defaults = _PAPER[type(options)], type(options)()
    at_default = {name for name in values if getattr(options, name) == getattr(defaults, name)}
    return dataclasses.replace(options, **{name: values[name] for name in at_default})
