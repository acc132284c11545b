"""Logistic regression against scikit-learn's, on features of every kind that encoders make."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_vision.data import in_memory, open_images
from ssl_vision.logistic import fit_logistic


def clouds(count: int, *, dim: int, classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Non-negative features with large means, as those of a network that ends in ReLU and average pooling."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    centres = rng.normal(size=(classes, dim))
    points = np.maximum(centres[labels] + rng.normal(size=(count, dim)) * 1.5 + 3, 0)
    return torch.from_numpy(points).float(), torch.from_numpy(labels)


def loss(classifier: nn.Linear, features: Tensor, labels: Tensor, l2: float) -> Tensor:
    weight, bias = classifier.weight.double(), classifier.bias.double()
    sum_ = F.cross_entropy(features.double() @ weight.T + bias, labels, reduction="sum")
    return (sum_ + l2 / 2 * weight.square().sum()) / len(labels)


@pytest.mark.parametrize("penalties", [[1e5, 1e3, 10.0, 1.0, 0.1, 0.01], [0.03]], ids=["path", "one"])
@pytest.mark.parametrize("data", ["digits", "clouds"])
def test_optimum_is_scikit_learn_s(penalties: list[float], data: str) -> None:
    if data == "digits":
        images = open_images("digits")
        features, labels = in_memory(images)[:, 0].flatten(1).float() / 255, images.labels()
    else:
        features, labels = clouds(300, dim=12, classes=4, seed=0)
    classes = int(labels.max()) + 1
    fits = list(fit_logistic(features, labels, classes, penalties=penalties))
    assert [fit.l2 for fit in fits] == penalties
    for fit in fits:
        assert fit.converged
        model = LogisticRegression(C=1 / fit.l2, tol=1e-7, max_iter=20_000).fit(features.double(), labels)
        expected = nn.Linear(features.shape[1], classes)
        expected.weight.data = torch.from_numpy(model.coef_).float()
        expected.bias.data = torch.from_numpy(model.intercept_).float()
        best = loss(expected, features, labels, fit.l2).item()
        assert fit.loss == pytest.approx(best, abs=1e-5)
        assert loss(fit.classifier, features, labels, fit.l2).item() == pytest.approx(best, abs=1e-5)
        probabilities = fit.classifier(features).softmax(dim=1).detach()
        np.testing.assert_allclose(probabilities, model.predict_proba(features.double()), atol=2e-3)


def test_two_classes_are_scikit_learn_s_with_half_the_penalty() -> None:
    features, labels = clouds(200, dim=8, classes=2, seed=5)
    (fit,) = fit_logistic(features, labels, 2, penalties=[3.0])
    model = LogisticRegression(C=2 / 3.0, tol=1e-8, max_iter=10_000).fit(features.double(), labels)
    probabilities = fit.classifier(features).softmax(dim=1).detach()
    np.testing.assert_allclose(probabilities, model.predict_proba(features.double()), atol=1e-4)


def test_gradient_at_the_optimum_is_zero() -> None:
    features, labels = clouds(200, dim=8, classes=3, seed=1)
    (fit,) = fit_logistic(features, labels, 3, penalties=[2.0])
    loss(fit.classifier, features, labels, 2.0).backward()
    for parameter in fit.classifier.parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().max() < 1e-5


def test_a_class_without_samples_is_unlikely() -> None:
    features, labels = clouds(100, dim=5, classes=2, seed=2)
    (fit,) = fit_logistic(features, labels, 3, penalties=[0.1])
    assert fit.classifier(features).softmax(dim=1)[:, 2].max() < 1e-3


def test_iterations_that_do_not_suffice_are_said() -> None:
    features, labels = clouds(100, dim=5, classes=2, seed=3)
    (fit,) = fit_logistic(features, labels, 2, penalties=[1e-4], max_iterations=2)
    assert not fit.converged
