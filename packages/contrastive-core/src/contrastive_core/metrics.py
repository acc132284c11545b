"""How good class probabilities are: accuracies, confusion, likelihood and calibration."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ReliabilityBin:
    """The images whose confidence lies in ``(lower, upper]`` (the first bin holds 0 too).

    Attributes:
        lower: edge.
        upper: edge.
        images: how many.
        confidence: their mean confidence; None of no images.
        accuracy: the share of them that is right; None of no images.
    """

    lower: float
    upper: float
    images: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True)
class Calibration:
    """Whether confidence means what it says: of the images given 80 %, 80 % should be right.

    Attributes:
        ece: expected calibration error, in [0, 1].
        confidence: mean confidence of all images.
        bins: of the reliability diagram.
    """

    ece: float
    confidence: float
    bins: list[ReliabilityBin]


def calibrate(probabilities: Tensor, labels: Tensor, *, bins: int = 15) -> Calibration:
    """Expected calibration error of the predicted class over bins of equal width in confidence.

    ``ECE = sum over bins b of |b| / N * |accuracy(b) - confidence(b)|``, confidence being the largest probability of an
    image: Naeini et al. 2015, with the 15 bins of Guo et al. 2017. The value depends on the number of bins, and of few
    images it is biased upwards.

    Shapes: probabilities ``[N, C]``, labels ``[N]``, N > 0.
    """
    confidence, predicted = probabilities.double().max(dim=1)
    right = (predicted == labels).double()
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64, device=confidence.device)
    place = torch.bucketize(confidence, edges[1:-1])  # edge k belongs to the bin beneath it
    images, confidences, rights = (
        torch.bincount(place, weights=weights, minlength=bins).tolist()
        for weights in (torch.ones_like(right), confidence, right)
    )
    found = [
        ReliabilityBin(
            lower=edges[b].item(),
            upper=edges[b + 1].item(),
            images=int(images[b]),
            confidence=confidences[b] / images[b] if images[b] else None,
            accuracy=rights[b] / images[b] if images[b] else None,
        )
        for b in range(bins)
    ]
    gaps = sum(abs(rights[b] - confidences[b]) for b in range(bins))
    return Calibration(gaps / len(labels), confidence.mean().item(), found)


def confusion_matrix(predicted: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Counts int64 ``[C, C]``: how many images of class (row) were taken for class (column)."""
    cells = torch.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    return cells.view(num_classes, num_classes)


def per_class_accuracy(confusion: Tensor) -> Tensor:
    """Share of each class's images that is right, float64 ``[C]``; NaN of a class without images."""
    return confusion.diagonal().double() / confusion.sum(dim=1).double()


def top_k_accuracy(scores: Tensor, labels: Tensor, k: int) -> float:
    """Share of images whose class is among the k of largest score, ``[N, C]``."""
    ranked = scores.topk(k, dim=1).indices == labels[:, None]
    return ranked.any(dim=1).double().mean().item()
