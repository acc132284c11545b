"""Pseudo-labels from predictions: fused over views or models, sharpened, thresholded.

Predictions are ``[N, C]`` (images, clips) or ``[N, C, ...]`` (pixels, voxels) with the classes in dimension 1, and have
one leading dimension more, ``[V, N, C, ...]``, for several predictions of each sample. Nothing is detached here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from contrastive_core.losses._class_probabilities import check_probabilities, sharpen
from contrastive_core.losses._inputs import check_floating

__all__ = ["PseudoLabels", "agreement", "class_thresholds", "fuse", "hard_labels", "sharpen"]


class PseudoLabels(NamedTuple):
    """Hard labels, how sure each is, and which shall be used."""

    classes: Tensor
    """int64 [N, ...]: the most probable class."""
    confidence: Tensor
    """[N, ...]: its probability."""
    keep: Tensor
    """bool [N, ...]: whether the confidence reaches the threshold of that class."""


def fuse(
    predictions: Tensor | Sequence[Tensor],
    *,
    weights: Tensor | Sequence[float] | None = None,
    kind: Literal["probabilities", "logits"] = "probabilities",
    present: Tensor | None = None,
) -> Tensor:
    """One prediction from several of the same samples: q = sum_v w_v p^v, with w >= 0 divided by its sum.

    Args:
        predictions: V tensors [N, C, ...] of one shape, or [V, N, C, ...]: views of a clip, augmented copies of a
            slice, models of an ensemble.
        weights: V numbers, not negative, not all zero; None: all equal.
        kind: What `predictions` are. Of logits the weighted mean is taken, and its softmax over the classes: a view
            that is sure counts more than it does among probabilities.
        present: bool [V, N], which predictions of a sample count: a view that a sample lacks does not, and the weights
            of the others are divided by their sum. None: all.

    Returns:
        Probabilities [N, C, ...]; of a sample that has none, all 0, or equal ones if of logits.

    Raises:
        ValueError: no prediction, shapes that differ, weights that are not one number for each prediction, negative,
            or all zero; `present` of another shape; an unknown kind.
        TypeError: predictions that are not floating point.

    Reference: Xiong et al. 2021, "Multiview pseudo-labeling for semi-supervised learning from video".

    >>> fuse(torch.tensor([[[0.9, 0.1]], [[0.4, 0.6]]]), weights=[3, 1])
    tensor([[0.7750, 0.2250]])
    """
    if kind not in ("probabilities", "logits"):
        raise ValueError(f"fuse: kind is {kind!r}, expected 'probabilities' or 'logits'")
    stacked = _stacked("fuse", predictions)
    if weights is None and present is None:
        mean = stacked.mean(0)
    else:
        if weights is None:
            weights = [1.0] * len(stacked)
        given = torch.as_tensor(weights, dtype=stacked.dtype, device=stacked.device)
        if given.shape != stacked.shape[:1] or not bool((given >= 0).all()) or not bool(given.sum() > 0):
            raise ValueError(
                f"fuse: weights are {given.tolist()}, expected {len(stacked)} numbers of at least 0, not all 0: one "
                "for each prediction"
            )
        if present is None:
            mean = torch.tensordot(given / given.sum(), stacked, dims=1)
        else:
            mean = (_shares(given, present, stacked) * stacked).sum(0)
    return mean.softmax(1) if kind == "logits" else mean


def agreement(predictions: Tensor | Sequence[Tensor]) -> Tensor:
    """Share of several predictions of a sample that name the same class, the one named most often.

    Args:
        predictions: V tensors [N, C, ...] of one shape, or [V, N, C, ...]; probabilities or logits.

    Returns:
        [N, ...] in [1 / V, 1]; 1 where all agree.

    Raises:
        ValueError, TypeError: as `fuse`.

    >>> agreement(torch.tensor([[[0.9, 0.1]], [[0.4, 0.6]]]))
    tensor([0.5000])
    """
    stacked = _stacked("agreement", predictions)
    named = stacked.argmax(2)
    return (named == named.mode(0).values).to(stacked.dtype).mean(0)


def hard_labels(probabilities: Tensor, *, threshold: float | Tensor = 0.0) -> PseudoLabels:
    """The likeliest class of every sample, and whether it is sure enough: max_c p_c >= threshold.

    Args:
        probabilities: [N, C, ...].
        threshold: One number, or one for each class [C]: that of the likeliest class decides. See `class_thresholds`.

    Edges: of equally likely classes the first is taken. A sample with NaN is not kept.

    Raises:
        ValueError: not one threshold or C of them; no dimension of classes.
        TypeError: not floating point.

    Reference: Sohn et al. 2020, "FixMatch".

    >>> hard_labels(torch.tensor([[0.8, 0.2], [0.4, 0.6]]), threshold=0.7).keep
    tensor([ True, False])
    """
    check_probabilities("hard_labels", probabilities)
    confidence, classes = probabilities.max(1)
    least = torch.as_tensor(threshold, dtype=probabilities.dtype, device=probabilities.device)
    if least.ndim:
        if least.shape != probabilities.shape[1:2]:
            raise ValueError(
                f"hard_labels: threshold has shape {list(least.shape)}, expected one number or "
                f"{probabilities.shape[1]}, one for each class"
            )
        least = least[classes]
    return PseudoLabels(classes, confidence, confidence >= least)


def class_thresholds(labels: PseudoLabels, *, share: float, num_classes: int, least: float = 0.0) -> Tensor:
    """Thresholds that keep the same share of every class: its most confident labels.

    A single threshold keeps much of the classes that are predicted with confidence and little of the others.

    Args:
        labels: As `hard_labels` gives them, of all samples that count.
        share: of the labels of each class, in (0, 1].
        num_classes: C.
        least: No threshold is lower.

    Returns:
        [C], for `hard_labels`; `least` for a class that no label names.

    Raises:
        ValueError: a share out of (0, 1].

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
            # The k-th largest, not a quantile between two: what is kept has exactly the wanted size, but for ties.
            kept = max(1, round(share * len(own)))
            thresholds[number] = own.kthvalue(len(own) - kept + 1).values.clamp(min=least)
    return thresholds


def _shares(weights: Tensor, present: Tensor, stacked: Tensor) -> Tensor:
    """Weights of each sample's predictions [V, N, 1, ...], of sum 1 over those that are there."""
    if present.shape != stacked.shape[:2]:
        raise ValueError(f"fuse: present has shape {list(present.shape)}, expected {list(stacked.shape[:2])}, [V, N]")
    counted = weights[:, None] * present.to(weights)
    shares = counted / counted.sum(0).clamp(min=torch.finfo(counted.dtype).tiny)
    return shares.view(*shares.shape, *[1] * (stacked.ndim - 2))


def _stacked(name: str, predictions: Tensor | Sequence[Tensor]) -> Tensor:
    if not isinstance(predictions, Tensor):
        shapes = {tuple(x.shape) for x in predictions}
        if len(shapes) != 1:
            found = ", ".join(str(list(shape)) for shape in sorted(shapes)) or "none"
            raise ValueError(f"{name}: got predictions of shape {found}, expected one or more of one shape [N, C, ...]")
        predictions = torch.stack(list(predictions))
    check_floating(name, predictions=predictions)
    if predictions.ndim < 3 or 0 in (len(predictions), predictions.shape[2]):
        raise ValueError(f"{name}: predictions have shape {list(predictions.shape)}, expected [V, N, C, ...]")
    return predictions
