"""Metrics against scikit-learn's and against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference
from sklearn.calibration import calibration_curve

from contrastive_core.metrics import calibrate, confusion_matrix, per_class_accuracy, top_k_accuracy


def draw(images: int, classes: int, seed: int, *, sharpness: float = 1.5) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.normal(size=(images, classes)) * sharpness)
    return logits.softmax(dim=1), torch.from_numpy(rng.integers(0, classes, images))


@given(images=st.integers(1, 80), classes=st.integers(2, 9), seed=st.integers(0, 999))
@settings(max_examples=40, deadline=None)
def test_accuracies_equal_scikit_learn(images: int, classes: int, seed: int) -> None:
    probabilities, labels = draw(images, classes, seed)
    predicted = probabilities.argmax(dim=1)
    known = list(range(classes))
    confusion = confusion_matrix(predicted, labels, classes)
    np.testing.assert_array_equal(confusion, reference.confusion_matrix(labels, predicted, labels=known))
    recalls = reference.recall_score(labels, predicted, labels=known, average=None, zero_division=np.nan)
    np.testing.assert_allclose(per_class_accuracy(confusion), recalls)
    assert top_k_accuracy(probabilities, labels, 1) == pytest.approx(reference.accuracy_score(labels, predicted))
    for k in range(2, classes):
        expected = reference.top_k_accuracy_score(labels, probabilities, k=k, labels=known) if classes > 2 else None
        assert top_k_accuracy(probabilities, labels, k) == pytest.approx(expected)


@given(images=st.integers(1, 60), classes=st.integers(2, 130), seed=st.integers(0, 999))
@settings(max_examples=40, deadline=None)
def test_equal_scores_rank_as_in_argmax(images: int, classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores, labels = (
        torch.from_numpy(rng.integers(0, high, size)) for high, size in ((3, (images, classes)), (classes, images))
    )
    ranked = scores.float().sort(dim=1, descending=True, stable=True).indices
    assert torch.equal(ranked[:, 0], scores.argmax(dim=1))
    for k in {1, 2, min(5, classes), classes}:
        expected = (ranked[:, :k] == labels[:, None]).any(dim=1).double().mean().item()
        assert top_k_accuracy(scores.bfloat16(), labels, k) == expected


def test_an_undefined_score_is_not_right() -> None:
    scores = torch.tensor([[np.nan, 0.1], [0.2, np.nan], [0.9, 0.1]])
    assert top_k_accuracy(scores, torch.tensor([0, 0, 0]), 1) == pytest.approx(1 / 3)


@pytest.mark.parametrize("wrong", [-1, 3, 255])
def test_numbers_that_are_no_class_are_refused(wrong: int) -> None:
    scores, right, bad = torch.eye(3), torch.arange(3), torch.tensor([0, 1, wrong])
    for call in (
        lambda: confusion_matrix(right, bad, 3),
        lambda: confusion_matrix(bad, right, 3),
        lambda: top_k_accuracy(scores, bad, 1),
        lambda: calibrate(scores, bad),
    ):
        with pytest.raises(ValueError, match=f"contains {wrong}; expected classes from 0 to 2"):
            call()


@given(images=st.integers(1, 200), classes=st.integers(2, 6), bins=st.integers(1, 20), seed=st.integers(0, 999))
@settings(max_examples=40, deadline=None)
def test_calibration_is_its_definition(images: int, classes: int, bins: int, seed: int) -> None:
    probabilities, labels = draw(images, classes, seed)
    found = calibrate(probabilities, labels, bins=bins)
    confidence, predicted = probabilities.numpy().max(axis=1), probabilities.numpy().argmax(axis=1)
    right = predicted == labels.numpy()
    ece = 0.0
    for b, filled in enumerate(found.bins):
        lower, upper = b / bins, (b + 1) / bins
        inside = (confidence > lower) & (confidence <= upper)
        assert filled.images == inside.sum()
        assert (filled.lower, filled.upper) == pytest.approx((lower, upper))
        if inside.any():
            assert filled.confidence == pytest.approx(confidence[inside].mean())
            assert filled.accuracy == pytest.approx(right[inside].mean())
            ece += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
        else:
            assert filled.confidence is None
            assert filled.accuracy is None
    assert found.ece == pytest.approx(ece, abs=1e-12)
    assert found.confidence == pytest.approx(confidence.mean())


def test_reliability_equals_scikit_learn_s_calibration_curve() -> None:
    probabilities, labels = draw(500, 4, 0)
    confidence, predicted = probabilities.max(dim=1)
    accuracy, mean = calibration_curve(predicted == labels, confidence, n_bins=10, strategy="uniform")
    filled = [b for b in calibrate(probabilities, labels, bins=10).bins if b.images]
    np.testing.assert_allclose([b.accuracy for b in filled], accuracy)
    np.testing.assert_allclose([b.confidence for b in filled], mean)


def test_confidence_that_means_what_it_says_has_no_error() -> None:
    labels = torch.tensor([0, 0, 0, 1])
    probabilities = torch.tensor([[0.75, 0.25]]).repeat(4, 1)
    assert calibrate(probabilities, labels).ece == pytest.approx(0)
    certain = torch.tensor([[1.0, 0.0]]).repeat(4, 1)
    found = calibrate(certain, labels)
    assert found.ece == pytest.approx(0.25)
    assert found.bins[-1].images == 4
