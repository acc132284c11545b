"""The segmentation loss by its name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor

from ssl_medseg.losses.dice import class_weights, cross_entropy, dice_loss

SegmentationLoss = Literal["dice", "dice-foreground", "cross-entropy"]


def segmentation_loss(name: SegmentationLoss, *, classes: int) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss of logits [B, C, H, W] and a target, classes [B, H, W] or shares [B, C, H, W].

    ``dice``: the mean over all classes, the released code's default; ``dice-foreground``: without the background;
    ``cross-entropy``: weighted by the released code's class weights.
    """
    weights = class_weights(classes)
    losses: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "dice": dice_loss,
        "dice-foreground": lambda logits, target: dice_loss(logits, target, background=False),
        "cross-entropy": lambda logits, target: cross_entropy(logits, target, weights=weights),
    }
    return losses[name]
