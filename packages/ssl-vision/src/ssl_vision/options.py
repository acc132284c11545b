"""The settings that commands share, and what is built from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from contrastive_core.errors import UserError
from contrastive_core.optim import LARS, lars_param_groups
from ssl_vision.augment import SimCLRAugment


@dataclass(frozen=True)
class AugmentOptions:
    """The family of views.

    Attributes:
        strength: of the colour jitter; 1.0 for ImageNet, 0.5 for CIFAR-10.
        blur: Gaussian blur in half of the views; not for CIFAR-10.
        flip: horizontal flip in half of the views; not where left and right mean something, as in digits.
        gray: share of the views without colour.
        jitter: share of the views with colour jitter.
        ops: ``simclr``: the official TensorFlow semantics; ``torchvision``: torchvision's.
    """

    strength: float = 0.5
    blur: bool = False
    flip: bool = True
    gray: float = 0.2
    jitter: float = 0.8
    ops: Literal["simclr", "torchvision"] = "simclr"


def build_augment(options: AugmentOptions, size: int) -> SimCLRAugment:
    """The augmentation that makes one view of `size` pixels."""
    return SimCLRAugment(
        size, strength=options.strength, blur=options.blur, ops=options.ops, flip=options.flip, gray=options.gray,
        jitter=options.jitter,
    )  # fmt: skip


@dataclass(frozen=True)
class HeadOptions:
    """The projection head.

    Attributes:
        layers: linear layers; 2 in SimCLR, 3 in SimCLRv2.
        out_features: size of the projection the loss sees.
    """

    layers: int = 2
    out_features: int = 128


@dataclass(frozen=True)
class OptimizerOptions:
    """The optimiser and its schedule: warm-up from 0, then half a cosine to 0.

    Attributes:
        name: ``lars`` as in the papers, or ``sgd`` (Nesterov) for small batches.
        lr: base learning rate.
        scaling: ``linear``: peak ``lr * batch / 256``; ``sqrt``: peak ``lr * sqrt(batch)``.
        warmup_epochs: epochs of linear warm-up; None takes the papers' 10, or a tenth of a run of fewer than 100.
        momentum: of either optimiser.
        weight_decay: of weights; batch norm and biases have none.
    """

    name: Literal["lars", "sgd"] = "lars"
    lr: float = 1.0
    scaling: Literal["linear", "sqrt"] = "linear"
    warmup_epochs: float | None = None
    momentum: float = 0.9
    weight_decay: float = 1e-6

    def warmup_steps(self, *, epochs: int, steps_per_epoch: int) -> int:
        """Steps of warm-up in a run of that length.

        Raises:
            UserError: the warm-up does not end before the run does.
        """
        warmup = min(10.0, epochs / 10) if self.warmup_epochs is None else self.warmup_epochs
        if not 0 <= warmup < epochs:
            raise UserError(
                f"optimizer.warmup_epochs is {warmup:g} in a run of {epochs} epochs; expected at least 0 and less than "
                "the run"
            )
        return round(warmup * steps_per_epoch)


def build_optimizer(model: nn.Module, options: OptimizerOptions, *, lr: float) -> torch.optim.Optimizer:
    """LARS or SGD with batch norm and biases left out of weight decay (and of LARS's adaptation)."""
    groups = lars_param_groups(model, options.weight_decay)
    if options.name == "lars":
        return LARS(groups, lr, momentum=options.momentum)
    plain = [{"params": group["params"], "weight_decay": group["weight_decay"]} for group in groups]
    return torch.optim.SGD(plain, lr=lr, momentum=options.momentum, nesterov=True)
