"""Segmentation losses: Dice and weighted cross-entropy as in the paper, and their sum as in nnU-Net."""

from __future__ import annotations

from typing import Literal, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from contrastive_core.distributed import is_distributed, world_size
from contrastive_core.similarity.precision import full

_SMALLEST = 1e-10


def dice_loss(logits: Tensor, target: Tensor, weight: Tensor | None = None, *, background: bool = True) -> Tensor:
    """Compute one minus the mean soft Dice over images and classes.

        d[b, c] = 2 sum(p y) / (sum p + sum y + 1e-10),    loss = 1 - mean over b and c of d[b, c]

    p is the softmax of the logits, y the target, and the sums run over the pixels of image b. The denominator has no
    squares and no smoothing term. A class that is absent from an image contributes the constant 1 / (B C) without a
    gradient, so its false positives reduce only the Dice of the other classes.

    Args:
        logits: Logits ``[B, C, H, W]``.
        target: Class numbers, integers ``[B, H, W]``, or class fractions ``[B, C, H, W]``, as elastic deformation of a
            one-hot map produces.
        weight: Weights of the pixels in all three sums, ``[B, H, W]``, with 0 where the target is unknown; None weights
            all pixels with 1.
        background: Whether the mean includes class 0, as in the released code by default.

    Returns:
        Scalar, float64 if the logits are, otherwise float32.

    Raises:
        ValueError: The shapes of logits and target do not match.

    References:
        Chaitanya et al., Medical Image Analysis 87 (2023), 102792, and its released code.

    >>> sure = torch.tensor([[[[9.0, -9.0]], [[-9.0, 9.0]]]])
    >>> [round(dice_loss(sure, torch.tensor(target)).item(), 4) for target in ([[[0, 1]]], [[[0, 0]]])]
    [0.0, 0.6667]
    """
    logits = full(logits)
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
    """Compute the mean cross-entropy over pixels, weighted by class.

        loss = mean over pixels of  (sum_c w_c y_c) (- sum_c y_c log p_c)

    The sum is divided by the number of pixels, whereas ``torch.nn.functional.cross_entropy`` divides by the sum of the
    class weights.

    Args:
        logits: Logits ``[B, C, H, W]``.
        target: Class numbers, integers ``[B, H, W]``, or class fractions ``[B, C, H, W]``.
        weight: Weights of the pixels, ``[B, H, W]``, with 0 where the target is unknown; the sum is still divided by
            the number of all pixels. None weights all pixels with 1.
        weights: Weights of the classes, ``[C]``; None weights all classes with 1. :func:`class_weights` returns those
            of the released code.

    Returns:
        Scalar, float64 if the logits are, otherwise float32.

    Raises:
        ValueError: The shapes do not match.
    """
    logits = full(logits)
    share = shares(target, like=logits)
    loss = -(share * logits.log_softmax(1)).sum(1)
    if weights is not None:
        if weights.shape != logits.shape[1:2]:
            raise ValueError(
                f"weights have the shape {tuple(weights.shape)} for {logits.shape[1]} classes; expected one weight per "
                "class"
            )
        loss = loss * torch.einsum("bchw,c->bhw", share, weights.to(logits, non_blocking=True))
    return (loss if weight is None else loss * weight.to(loss)).mean()


def dice_cross_entropy(logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Compute one minus the soft Dice over the whole batch, plus the cross-entropy, as in nnU-Net.

        d[c] = (2 sum(p y) + 1) / (sum p + sum y + 1)
        loss = 1 - mean over foreground c of d[c] + mean over pixels of the cross-entropy

    p is the softmax of the logits and y the target. The sums run over the pixels of all images of the batch, including
    those of other processes, so false positives of a structure in slices without it lower its Dice. The cross-entropy
    also has a gradient in such slices.

    Args:
        logits: Logits ``[B, C, H, W]``.
        target: Class numbers, integers ``[B, H, W]``, or class fractions ``[B, C, H, W]``.
        weight: Weights of the pixels in all sums, ``[B, H, W]``, with 0 where the target is unknown; the cross-entropy
            is still divided by the number of all pixels. None weights all pixels with 1.

    Returns:
        Scalar, float64 if the logits are, otherwise float32.

    Raises:
        ValueError: The shapes of logits and target do not match.

    References:
        Isensee et al., "nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation",
        Nature Methods 2021.

    >>> sure = torch.tensor([[[[9.0, -9.0]], [[-9.0, 9.0]]]])
    >>> [round(dice_cross_entropy(sure, torch.tensor(target)).item(), 3) for target in ([[[0, 1]]], [[[0, 0]]])]
    [0.0, 9.5]
    """
    logits = full(logits)
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
    """Add the sums of all processes, such that the mean gradient over processes is that of the combined batch."""
    if not is_distributed():
        return sums
    total = sums.detach().clone()
    dist.all_reduce(total)
    own = sums * world_size()
    return own + (total - own.detach())


def class_weights(classes: int) -> Tensor:
    """Return the class weights ``[C]`` of the released code: 0.1 for the background, 0.9 / (C - 1) for the others."""
    return torch.tensor([0.1, *[0.9 / (classes - 1)] * (classes - 1)])


def shares(target: Tensor, *, like: Tensor) -> Tensor:
    """Convert a target to class fractions ``[B, C, H, W]``.

    Args:
        target: Class numbers, integers ``[B, H, W]``, which become one-hot, or class fractions ``[B, C, H, W]``.
        like: Logits ``[B, C, H, W]``, whose data type the result has.

    Raises:
        ValueError: The shape does not match that of the logits.
    """
    batch, classes, height, width = like.shape
    if target.shape == (batch, height, width) and not target.is_floating_point():
        return F.one_hot(target.long(), classes).movedim(-1, 1).to(like.dtype)
    if target.shape == like.shape:
        return target.to(like.dtype)
    raise ValueError(
        f"the target has the shape {tuple(target.shape)} and type {target.dtype} for logits {tuple(like.shape)}; "
        f"expected integers {(batch, height, width)} or class fractions {tuple(like.shape)}"
    )


SegmentationLoss = Literal["dice-ce", "dice", "dice-foreground", "cross-entropy"]


class Criterion(Protocol):
    """Segmentation loss: a function of logits, target and pixel weights."""

    def __call__(self, logits: Tensor, target: Tensor, weight: Tensor | None = None, /) -> Tensor:
        """Return the scalar loss.

        Args:
            logits: Logits ``[B, C, H, W]``.
            target: Class numbers ``[B, H, W]`` or class fractions ``[B, C, H, W]``.
            weight: Weights of the pixels, ``[B, H, W]``; None weights all pixels with 1.
        """


def segmentation_loss(name: SegmentationLoss, *, classes: int) -> Criterion:
    """Return a segmentation loss by name.

    Args:
        name: ``dice-ce`` for :func:`dice_cross_entropy` (strong recipe), ``dice`` for :func:`dice_loss` over all
            classes (default of the released code), ``dice-foreground`` for :func:`dice_loss` without the background, or
            ``cross-entropy`` for :func:`cross_entropy` with :func:`class_weights`.
        classes: Number of classes, including the background.
    """
    weights = class_weights(classes)
    losses: dict[str, Criterion] = {
        "dice-ce": dice_cross_entropy,
        "dice": dice_loss,
        "dice-foreground": lambda logits, target, weight=None: dice_loss(logits, target, weight, background=False),
        "cross-entropy": lambda logits, target, weight=None: cross_entropy(logits, target, weight, weights=weights),
    }
    return losses[name]
