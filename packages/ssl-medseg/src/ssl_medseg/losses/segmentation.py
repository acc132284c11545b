"""Segmentation losses of the paper: Dice with or without the background, and weighted cross-entropy."""

from __future__ import annotations

from typing import Literal, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from contrastive_core.distributed import is_distributed, world_size

_SMALLEST = 1e-10


def dice_loss(logits: Tensor, target: Tensor, weight: Tensor | None = None, *, background: bool = True) -> Tensor:
    """One minus the mean soft Dice over images and classes.

        d[b, c] = 2 sum(p y) / (sum p + sum y + 1e-10),    loss = 1 - mean over b and c of d

    p = softmax of the logits; the sums run over the pixels of image b. No squares, no smoothing: a class that is absent
    from an image adds 1 / (B C) whatever is predicted there and has no gradient, so that its false positives are
    punished through the other classes only.

    Args:
        logits: [B, C, H, W].
        target: classes, integers [B, H, W], or class shares [B, C, H, W] (a deformed one-hot map is a mixture).
        weight: of the pixels in all three sums, [B, H, W]; 0 where the target is not known. None: all 1.
        background: whether class 0 takes part in the mean (the released code's default).

    Returns:
        Scalar, float64 if the logits are, else float32.

    Raises:
        ValueError: shapes that do not belong together.

    Reference: Chaitanya et al. 2023, Medical Image Analysis 87, 102792, as in the released code.

    >>> sure = torch.tensor([[[[9.0, -9.0]], [[-9.0, 9.0]]]])
    >>> [round(dice_loss(sure, torch.tensor(target)).item(), 4) for target in ([[[0, 1]]], [[[0, 0]]])]
    [0.0, 0.6667]
    """
    logits = _precise(logits)
    share = shares(target, like=logits)
    probability = logits.softmax(1)
    if weight is not None:
        probability, share = (x * weight.to(x)[:, None] for x in (probability, share))
    overlap = (probability * share).sum((2, 3))
    dice = 2 * overlap / (probability.sum((2, 3)) + share.sum((2, 3)) + _SMALLEST)
    return 1 - dice[:, 0 if background else 1 :].mean()


def cross_entropy(
    logits: Tensor, target: Tensor, weight: Tensor | None = None, *, weights: Tensor | None = None
) -> Tensor:
    """Mean over pixels of the cross-entropy, each pixel weighted by its class.

        loss = mean over pixels of  (sum_c w_c y_c) (- sum_c y_c log p_c)

    The mean is over all pixels, not over their weights as in ``torch.nn.functional.cross_entropy``.

    Args:
        logits: [B, C, H, W].
        target: classes, integers [B, H, W], or class shares [B, C, H, W].
        weight: of the pixels, [B, H, W]; 0 where the target is not known, and the mean is still over all. None: all 1.
        weights: [C]; None: all 1. The released code's are those of :func:`class_weights`.

    Returns:
        Scalar, float64 if the logits are, else float32.

    Raises:
        ValueError: shapes that do not belong together.
    """
    logits = _precise(logits)
    share = shares(target, like=logits)
    loss = -(share * logits.log_softmax(1)).sum(1)
    if weights is not None:
        if weights.shape != logits.shape[1:2]:
            raise ValueError(f"found weights {tuple(weights.shape)} for {logits.shape[1]} classes; expected one each")
        loss = loss * torch.einsum("bchw,c->bhw", share, weights.to(logits, non_blocking=True))
    return (loss if weight is None else loss * weight.to(loss)).mean()


def dice_cross_entropy(logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Soft Dice over the whole batch plus cross-entropy, as nnU-Net trains.

        d[c] = (2 sum(p y) + 1) / (sum p + sum y + 1)
        loss = 1 - mean over foreground c of d[c] + mean over pixels of the cross-entropy

    p = softmax of the logits. The sums run over the pixels of all images of the batch, those of other processes too, so
    that what is predicted of a structure in a slice without it lowers the Dice of that structure. Cross-entropy gives
    such a slice a gradient as well.

    Args:
        logits: [B, C, H, W].
        target: classes, integers [B, H, W], or class shares [B, C, H, W].
        weight: of the pixels in all sums, [B, H, W]; 0 where the target is not known, and the mean of the cross-entropy
            is still over all. None: all 1.

    Returns:
        Scalar, float64 if the logits are, else float32.

    Raises:
        ValueError: shapes that do not belong together.

    >>> sure = torch.tensor([[[[9.0, -9.0]], [[-9.0, 9.0]]]])
    >>> [round(dice_cross_entropy(sure, torch.tensor(target)).item(), 3) for target in ([[[0, 1]]], [[[0, 0]]])]
    [0.0, 9.5]
    """
    logits = _precise(logits)
    share = shares(target, like=logits)
    log_probability = logits.log_softmax(1)
    entropy = -(share * log_probability).sum(1)
    probability = log_probability.exp()
    if weight is not None:
        weight = weight.to(logits)
        entropy = entropy * weight
        probability, share = probability * weight[:, None], share * weight[:, None]
    sums = [x.sum((0, 2, 3))[1:] for x in (probability * share, probability + share)]
    overlap, total = _over_processes(torch.stack(sums))
    loss: Tensor = 1 - ((2 * overlap + 1) / (total + 1)).mean() + entropy.mean()
    return loss


def _over_processes(sums: Tensor) -> Tensor:
    """Sums over the batches of all processes; the mean of gradients over processes is then that of the union batch."""
    if not is_distributed():
        return sums
    total = sums.detach().clone()
    dist.all_reduce(total)
    own = sums * world_size()
    return own + (total - own.detach())


def class_weights(classes: int) -> Tensor:
    """Weights [C] of the released code's weighted cross-entropy: 0.1 for the background, the rest shared evenly."""
    return torch.tensor([0.1, *[0.9 / (classes - 1)] * (classes - 1)])


def shares(target: Tensor, *, like: Tensor) -> Tensor:
    """Class shares [B, C, H, W] of a target: one-hot of classes [B, H, W], or the shares as they are.

    Raises:
        ValueError: it is neither for logits of this shape.
    """
    batch, classes, height, width = like.shape
    if target.shape == (batch, height, width) and not target.is_floating_point():
        return F.one_hot(target.long(), classes).movedim(-1, 1).to(like.dtype)
    if target.shape == like.shape:
        return target.to(like.dtype)
    raise ValueError(
        f"found a target {tuple(target.shape)} {target.dtype} for logits {tuple(like.shape)}; expected integers "
        f"{(batch, height, width)} or shares {tuple(like.shape)}"
    )


def _precise(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


SegmentationLoss = Literal["dice-ce", "dice", "dice-foreground", "cross-entropy"]


class Criterion(Protocol):
    """A loss of logits [B, C, H, W], a target, classes [B, H, W] or shares [B, C, H, W], and weights [B, H, W]."""

    def __call__(self, logits: Tensor, target: Tensor, weight: Tensor | None = None, /) -> Tensor:
        """The scalar loss; without weights every pixel counts."""


def segmentation_loss(name: SegmentationLoss, *, classes: int) -> Criterion:
    """The loss of that name.

    ``dice-ce``: :func:`dice_cross_entropy`, the strong recipe's; ``dice``: the mean over all classes, the released
    code's default; ``dice-foreground``: without the background; ``cross-entropy``: weighted by the released code's
    class weights.
    """
    weights = class_weights(classes)
    losses: dict[str, Criterion] = {
        "dice-ce": dice_cross_entropy,
        "dice": dice_loss,
        "dice-foreground": lambda logits, target, weight=None: dice_loss(logits, target, weight, background=False),
        "cross-entropy": lambda logits, target, weight=None: cross_entropy(logits, target, weight, weights=weights),
    }
    return losses[name]
