"""Compute pseudo-labels: fusion of predictions over views or models, sharpening and confidence thresholds.

Predictions are ``[N, C]`` (images, clips) or ``[N, C, ...]`` (pixels, voxels), with the classes in dimension 1. Several
predictions per sample are stacked in an additional leading dimension: ``[V, N, C, ...]``. No function detaches its
result.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from contrastive_core.losses._class_probabilities import check_probabilities, sharpen
from contrastive_core.losses._inputs import check_floating
from contrastive_core.synchronization import free_to_read

__all__ = ["PseudoLabels", "agreement", "class_thresholds", "fuse", "hard_labels", "is_confident", "sharpen"]


class PseudoLabels(NamedTuple):
    """Hard labels, their confidence, and a mask of the labels to use."""

    classes: Tensor
    """Most probable class: int64 [N, ...]."""
    confidence: Tensor
    """Probability of that class: [N, ...]."""
    keep: Tensor
    """Whether the confidence reaches the threshold of that class: bool [N, ...]."""


def fuse(
    predictions: Tensor | Sequence[Tensor],
    *,
    weights: Tensor | Sequence[float] | None = None,
    kind: Literal["probabilities", "logits"] = "probabilities",
    present: Tensor | None = None,
) -> Tensor:
    """Fuse several predictions of the same samples: q = sum_v w_v p^v, with weights w >= 0 normalised to sum 1.

    Args:
        predictions: V tensors [N, C, ...] of one shape, or [V, N, C, ...]: views of a clip, augmented copies of a
            slice, models of an ensemble.
        weights: V non-negative numbers, not all zero. None: equal weights.
        kind: Whether `predictions` are probabilities or logits. For logits, the result is the softmax of their weighted
            mean, which gives a confident prediction more influence than the mean of probabilities does.
        present: Boolean mask [V, N] of the predictions that exist. Missing predictions are left out, and the weights of
            the others are normalised for each sample. NaN in them has no effect. None: all exist.

    Returns:
        Probabilities [N, C, ...]. For a sample without any prediction they are all 0, or 1 / C if `kind` is "logits".

    Raises:
        ValueError: There is no prediction, shapes differ, the number of weights is not V, a weight is negative, all
            weights are zero, `present` has another shape, or `kind` is unknown.
        TypeError: Predictions are not floating point.

    Reference: Xiong et al. 2021, "Multiview pseudo-labeling for semi-supervised learning from video".

    >>> fuse(torch.tensor([[[0.9, 0.1]], [[0.4, 0.6]]]), weights=[3, 1])
    tensor([[0.7750, 0.2250]])
    """
    if kind not in ("probabilities", "logits"):
        raise ValueError(f"fuse: kind is {kind!r}, expected 'probabilities' or 'logits'")
    stack = _stack("fuse", predictions)
    if weights is None and present is None:
        mean = stack.mean(0)
    else:
        if weights is None:
            weights = [1.0] * len(stack)
        factors = torch.as_tensor(weights, dtype=stack.dtype, device=stack.device)
        seen = torch.as_tensor(weights)
        is_readable = free_to_read(seen)
        if factors.shape != stack.shape[:1] or (is_readable and not (bool((seen >= 0).all()) and bool(seen.sum() > 0))):
            raise ValueError(
                f"fuse: weights are {factors.tolist()}, expected {len(stack)} non-negative numbers, one for "
                "each prediction and not all 0"
            )
        if present is None:
            mean = torch.tensordot(factors / factors.sum(), stack, dims=1)
        else:
            shares = _shares(factors, present, stack)
            mean = (shares * stack.masked_fill(shares == 0, 0.0)).sum(0)  # 0 * NaN would be NaN
    return mean.softmax(1) if kind == "logits" else mean


def agreement(predictions: Tensor | Sequence[Tensor]) -> Tensor:
    """Compute the fraction of a sample's predictions that agree with the class predicted most often.

    Args:
        predictions: V tensors [N, C, ...] of one shape, or [V, N, C, ...]; probabilities or logits.

    Returns:
        Fractions [N, ...] in [1 / V, 1]; 1 where all predictions agree.

    Raises:
        ValueError, TypeError: As in `fuse`.

    >>> agreement(torch.tensor([[[0.9, 0.1]], [[0.4, 0.6]]]))
    tensor([0.5000])
    """
    stack = _stack("agreement", predictions)
    votes = stack.argmax(2)
    return (votes == votes.mode(0).values).to(stack.dtype).mean(0)


def hard_labels(probabilities: Tensor, *, threshold: float | Tensor = 0.0) -> PseudoLabels:
    """Select the most probable class of each sample, and keep it if max_c p_c >= threshold.

    Args:
        probabilities: Class probabilities [N, C, ...].
        threshold: One number, or one number per class [C], in which case that of the most probable class applies; see
            `class_thresholds`.

    Returns:
        Classes, their confidence and the mask of those to keep, each [N, ...]. If classes are equally probable, the
        first is selected. A sample with NaN is not kept.

    Raises:
        ValueError: `threshold` is neither one number nor C numbers, or there is no class dimension.
        TypeError: Probabilities are not floating point.

    Reference: Sohn et al. 2020, "FixMatch".

    >>> hard_labels(torch.tensor([[0.8, 0.2], [0.4, 0.6]]), threshold=0.7).keep
    tensor([ True, False])
    """
    check_probabilities("hard_labels", probabilities)
    if isinstance(threshold, Tensor) and threshold.ndim and threshold.shape != probabilities.shape[1:2]:
        raise ValueError(
            f"hard_labels: threshold has shape {list(threshold.shape)}, expected one number or "
            f"{probabilities.shape[1]}, one for each class"
        )
    confidence, classes = probabilities.max(1)
    return PseudoLabels(classes, confidence, is_confident(classes, confidence, threshold))


def is_confident(classes: Tensor, confidence: Tensor, threshold: float | Tensor) -> Tensor:
    """Compare confidences with a threshold.

    The result equals the mask of `hard_labels`, for classes and confidences that were computed separately.

    Args:
        classes: Class of each sample, an int64 tensor of any shape.
        confidence: Confidence of each sample, of the same shape.
        threshold: One number, or one number per class [C], in which case that of the sample's class applies.

    Returns:
        Bool tensor of the same shape, True where confidence >= threshold.

    >>> is_confident(torch.tensor([0, 1]), torch.tensor([0.8, 0.6]), torch.tensor([0.9, 0.5]))
    tensor([False,  True])
    """
    if not isinstance(threshold, Tensor):
        return confidence >= threshold
    least = threshold.to(dtype=confidence.dtype, device=confidence.device)
    return confidence >= (least[classes] if least.ndim else least)


def class_thresholds(labels: PseudoLabels, *, share: float, num_classes: int, least: float = 0.0) -> Tensor:
    """Compute per-class thresholds that keep the same share of each class, namely its most confident labels.

    A single threshold would keep many labels of classes predicted with high confidence and few of the others.

    Args:
        labels: Result of `hard_labels` for all samples to consider.
        share: Share of each class's labels to keep, in (0, 1].
        num_classes: Number of classes C.
        least: Lower bound of the thresholds.

    Returns:
        Thresholds [C], to pass to `hard_labels`; `least` for a class without labels.

    Raises:
        ValueError: `share` is outside (0, 1].

    Reference: Zou et al. 2018, "Unsupervised domain adaptation for semantic segmentation via class-balanced
    self-training".

    >>> labels = hard_labels(torch.tensor([[0.9, 0.1], [0.7, 0.3], [0.4, 0.6]]))
    >>> class_thresholds(labels, share=0.5, num_classes=2)
    tensor([0.9000, 0.6000])
    """
    if not 0 < share <= 1:
        raise ValueError(f"class_thresholds: share is {share}, expected more than 0 and at most 1")
    thresholds = labels.confidence.new_full((num_classes,), least)
    for number in range(num_classes):
        own = labels.confidence[labels.classes == number]
        if len(own):
            # The k-th largest, not an interpolated quantile: except for ties, exactly k labels are kept.
            count = max(1, round(share * len(own)))
            thresholds[number] = own.kthvalue(len(own) - count + 1).values.clamp(min=least)
    return thresholds


def _shares(weights: Tensor, present: Tensor, stack: Tensor) -> Tensor:
    """Return the weights [V, N, 1, ...], normalised for each sample to sum 1 over the predictions that exist."""
    if present.shape != stack.shape[:2]:
        raise ValueError(f"fuse: present has shape {list(present.shape)}, expected {list(stack.shape[:2])}, [V, N]")
    sample_weights = weights[:, None] * present.to(weights)
    shares = sample_weights / sample_weights.sum(0).clamp(min=torch.finfo(sample_weights.dtype).tiny)
    return shares.view(*shares.shape, *[1] * (stack.ndim - 2))


def _stack(name: str, predictions: Tensor | Sequence[Tensor]) -> Tensor:
    if not isinstance(predictions, Tensor):
        shapes = {tuple(x.shape) for x in predictions}
        if len(shapes) != 1:
            description = ", ".join(str(list(shape)) for shape in sorted(shapes)) or "none"
            raise ValueError(
                f"{name}: got predictions of shape {description}, expected one or more of one shape [N, C, ...]"
            )
        predictions = torch.stack(list(predictions))
    check_floating(name, predictions=predictions)
    if predictions.ndim < 3 or 0 in (len(predictions), predictions.shape[2]):
        raise ValueError(f"{name}: predictions have shape {list(predictions.shape)}, expected [V, N, C, ...]")
    return predictions
