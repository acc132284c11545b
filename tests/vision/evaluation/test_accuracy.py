"""Accuracy with few labels, against scikit-learn over the same choices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from contrastive_core.rng import derive
from ssl_vision.evaluation.accuracy import few_label_accuracy
from ssl_vision.evaluation.features import LabelledFeatures
from ssl_vision.labels.choose import choose_per_class


def features(count: int, *, seed: int, spread: float) -> LabelledFeatures:
    """Three clusters in five dimensions."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(count) % 3)
    points = np.eye(3, 5)[labels] * 3 + rng.normal(size=(count, 5)) * spread
    return LabelledFeatures(torch.from_numpy(points).float(), torch.from_numpy(labels), ["a", "b", "c"], "")


def test_neighbour_accuracy_is_scikit_learn_s_over_the_same_choices() -> None:
    train, test = features(90, seed=0, spread=1.5), features(60, seed=1, spread=1.5)
    found = few_label_accuracy(train, test, per_class=4, draws=5, seed=3).neighbour
    expected = []
    for draw in range(5):
        chosen = choose_per_class(train.labels, train.classes, 4, seed=derive(3, "few labels", draw))
        model = KNeighborsClassifier(1, metric="cosine").fit(train.features[chosen], train.labels[chosen])
        expected.append(100 * model.score(test.features, test.labels))
    assert found.mean == pytest.approx(np.mean(expected))
    assert found.deviation == pytest.approx(np.std(expected, ddof=1))
    assert str(found) == f"{np.mean(expected):.1f} ± {np.std(expected, ddof=1):.1f}"


def test_all_labels_are_taken_once() -> None:
    train, test = features(90, seed=0, spread=0.3), features(60, seed=1, spread=0.3)
    found = few_label_accuracy(train, test, per_class=None, draws=5, seed=3)
    assert found.linear.deviation is None
    assert found.linear.mean == found.neighbour.mean == found.best == 100
    assert str(found.linear) == "100.0"
