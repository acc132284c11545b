"""Classification metrics: accuracy, confusion matrix and calibration."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ReliabilityBin:
    """Statistics of the images whose confidence lies in ``(lower, upper]`` (the first bin includes 0).

    Attributes:
        lower: Lower edge, exclusive.
        upper: Upper edge, inclusive.
        images: Number of images in the bin.
        confidence: Mean confidence of the images; None if the bin is empty.
        accuracy: Fraction of the images classified correctly; None if the bin is empty.
    """

    lower: float
    upper: float
    images: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True)
class Calibration:
    """Calibration of a classifier: of the images predicted with 80 % confidence, 80 % should be correct.

    Attributes:
        ece: Expected calibration error, in [0, 1].
        confidence: Mean confidence of all images.
        bins: Bins of the reliability diagram.
    """

    ece: float
    confidence: float
    bins: list[ReliabilityBin]


def calibrate(probabilities: Tensor, labels: Tensor, *, bins: int = 15) -> Calibration:
    """Compute the expected calibration error of the predicted class over bins of equal width in confidence.

    ``ECE = sum over bins b of |b| / N * |accuracy(b) - confidence(b)|``, where confidence is the largest probability of
    an image (Naeini et al. 2015), with the 15 bins of Guo et al. 2017. The value depends on the number of bins and is
    biased upwards for few images.

    Args:
        probabilities: Predicted class probabilities ``[N, C]``, with N > 0.
        labels: True classes, integers ``[N]``.
        bins: Number of bins.

    Raises:
        ValueError: A label is not a class.
    """
    _check_classes(labels, probabilities.shape[1], "labels")
    confidence, prediction = probabilities.double().max(dim=1)
    correct = (prediction == labels).double()
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64, device=confidence.device)
    bin_index = torch.bucketize(confidence, edges[1:-1])  # an edge belongs to the bin below it
    images, confidences, correct_counts = (
        torch.bincount(bin_index, weights=weights, minlength=bins).tolist()
        for weights in (torch.ones_like(correct), confidence, correct)
    )
    reliability = [
        ReliabilityBin(
            lower=edges[b].item(),
            upper=edges[b + 1].item(),
            images=int(images[b]),
            confidence=confidences[b] / images[b] if images[b] else None,
            accuracy=correct_counts[b] / images[b] if images[b] else None,
        )
        for b in range(bins)
    ]
    gaps = sum(abs(correct_counts[b] - confidences[b]) for b in range(bins))
    return Calibration(gaps / len(labels), confidence.mean().item(), reliability)


def confusion_matrix(predicted: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Count the images of each true class (row) by predicted class (column).

    Args:
        predicted: Predicted classes, int64 ``[N]``.
        labels: True classes, int64 ``[N]``.
        num_classes: Number of classes C.

    Returns:
        Numbers of images, int64 ``[C, C]``.

    Raises:
        ValueError: A label or prediction is not a class.
    """
    _check_classes(labels, num_classes, "labels")
    _check_classes(predicted, num_classes, "predicted")
    cells = torch.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    return cells.view(num_classes, num_classes)


def per_class_accuracy(confusion: Tensor) -> Tensor:
    """Compute the accuracy on the images of each class, float64 ``[C]``; NaN for a class without images.

    Args:
        confusion: Confusion matrix ``[C, C]`` with the true classes in its rows.
    """
    return confusion.diagonal().double() / confusion.sum(dim=1).double()


def top_k_accuracy(scores: Tensor, labels: Tensor, k: int) -> float:
    """Compute the fraction of images whose true class is among the k classes with the largest scores.

    Of equal scores, the first class counts as the largest, as in `argmax`. An image whose true class has the score NaN
    counts as wrong.

    Args:
        scores: Class scores ``[N, C]``, such as logits or probabilities.
        labels: True classes, integers ``[N]``.
        k: Number of classes considered, at most C.

    Raises:
        ValueError: A label is not a class.
    """
    _check_classes(labels, scores.shape[1], "labels")
    labels = labels[:, None].long()
    own = scores.gather(1, labels)
    earlier = torch.arange(scores.shape[1], device=scores.device) < labels
    # Not `topk`, whose order of equal scores is arbitrary; they are frequent in votes of neighbours and in bfloat16.
    ahead = ~(scores <= own) | ((scores == own) & earlier)
    return (ahead.sum(dim=1) < k).double().mean().item()


def _check_classes(class_numbers: Tensor, classes: int, name: str) -> None:
    """Refuse numbers that are no class; a prediction of C would count as class 0 of the next row.

    Raises:
        ValueError: A number is outside [0, C).
    """
    if len(invalid := class_numbers[(class_numbers < 0) | (class_numbers >= classes)]):
        raise ValueError(
            f"{name} contains {invalid[0].item()}; expected classes from 0 to {classes - 1}. Leave unlabelled images "
            "out"
        )
