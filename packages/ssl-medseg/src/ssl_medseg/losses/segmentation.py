"""The segmentation loss by its name."""

from __future__ import annotations

from typing import Literal, Protocol

from torch import Tensor

from ssl_medseg.losses.dice import class_weights, cross_entropy, dice_loss

SegmentationLoss = Literal["dice", "dice-foreground", "cross-entropy"]


class Criterion(Protocol):
    """A loss of logits [B, C, H, W], a target, classes [B, H, W] or shares [B, C, H, W], and weights [B, H, W]."""

    def __call__(self, logits: Tensor, target: Tensor, weight: Tensor | None = None, /) -> Tensor:
        """The scalar loss; without weights every pixel counts."""


def segmentation_loss(name: SegmentationLoss, *, classes: int) -> Criterion:
    """The loss of that name.

    ``dice``: the mean over all classes, the released code's default; ``dice-foreground``: without the background;
    ``cross-entropy``: weighted by the released code's class weights.
    """
    weights = class_weights(classes)
    losses: dict[str, Criterion] = {
        "dice": dice_loss,
        "dice-foreground": lambda logits, target, weight=None: dice_loss(logits, target, weight, background=False),
        "cross-entropy": lambda logits, target, weight=None: cross_entropy(logits, target, weight, weights=weights),
    }
    return losses[name]
