"""Accuracy with few labels: mean and standard deviation over random draws of the labelled images."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import torch
from torch import Tensor

from contrastive_core.rng import derive
from ssl_vision.evaluation.features import LabelledFeatures
from ssl_vision.evaluation.probes import choose_logistic, knn_scores
from ssl_vision.labels.choose import choose_per_class


@dataclass(frozen=True)
class Accuracy:
    """Top-1 accuracy in percent: mean and standard deviation over random draws (None for a single draw)."""

    mean: float
    deviation: float | None

    def __str__(self) -> str:
        return f"{self.mean:.1f}" if self.deviation is None else f"{self.mean:.1f} ± {self.deviation:.1f}"


@dataclass(frozen=True)
class FewLabelAccuracy:
    """Accuracies of a linear classifier and of the nearest neighbour, from the same labelled images."""

    linear: Accuracy
    neighbour: Accuracy

    @property
    def best(self) -> float:
        """Accuracy of the better classifier, in percent."""
        return max(self.linear.mean, self.neighbour.mean)


def few_label_accuracy(
    train: LabelledFeatures, test: LabelledFeatures, *, per_class: int | None, draws: int, seed: int
) -> FewLabelAccuracy:
    """Measure the test accuracy with `per_class` labelled training images of every class.

    The neighbour is the most similar labelled image by cosine. The linear classifier is a logistic regression whose
    penalty is chosen by cross-validation on the labelled images (`choose_logistic`).

    Args:
        train: Features to draw labelled ones from.
        test: Features to classify.
        per_class: Number of labelled images per class; None for all labels, once.
        draws: Number of random draws.
        seed: Seed of the draws.
    """
    linear, neighbour = [], []
    for draw in range(1 if per_class is None else draws):
        indices = torch.arange(len(train.labels), device=train.labels.device)
        if per_class is not None:
            indices = choose_per_class(train.labels, train.classes, per_class, seed=derive(seed, "few labels", draw))
        features, labels = train.features[indices], train.labels[indices]
        votes = knn_scores(test.features, features, labels, num_classes=len(train.classes), k=1)
        neighbour.append(percent_correct(votes, test.labels))
        classifier = choose_logistic(
            features, labels, len(train.classes), seed=derive(seed, "folds", draw)
        ).fit.classifier
        with torch.no_grad():
            linear.append(percent_correct(classifier(test.features), test.labels))
    return FewLabelAccuracy(_summary(linear), _summary(neighbour))


def percent_correct(scores: Tensor, labels: Tensor) -> float:
    """Return the top-1 accuracy of scores ``[N, C]`` in percent."""
    return 100 * int((scores.argmax(dim=1) == labels).sum()) / len(labels)


def _summary(values: list[float]) -> Accuracy:
    return Accuracy(statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None)
