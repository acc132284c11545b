"""Logistic regression against its formula, minimised by SciPy, on features like those of encoders."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_vision.data import in_memory, open_images
from ssl_vision.evaluation.probes import (
    NEIGHBOURS,
    PENALTIES,
    SMOOTHINGS,
    ChosenNeighbours,
    choose_logistic,
    choose_neighbours,
    fit_logistic,
    knn_scores,
    stratified_folds,
)


def clouds(count: int, *, dim: int, classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Non-negative features with large means, as at the end of networks with ReLU and average pooling."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    centres = rng.normal(size=(classes, dim))
    points = np.maximum(centres[labels] + rng.normal(size=(count, dim)) * 1.5 + 3, 0)
    return torch.from_numpy(points).float(), torch.from_numpy(labels)


def loss(classifier: nn.Linear, features: Tensor, labels: Tensor, l2: float) -> Tensor:
    weight, bias = classifier.weight.double(), classifier.bias.double()
    sum_ = F.cross_entropy(features.double() @ weight.T + bias, labels, reduction="sum")
    return (sum_ + l2 / 2 * weight.square().sum()) / len(labels)


def minimum(features: Tensor, labels: Tensor, classes: int, l2: float) -> tuple[float, np.ndarray]:
    """Return the minimum of the objective divided by N, and the probabilities there, by Newton's method."""
    x, shape = features.double(), (classes, features.shape[1] + 1)

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        matrix = torch.from_numpy(flat).view(shape).requires_grad_()
        cost = F.cross_entropy(x @ matrix[:, :-1].T + matrix[:, -1], labels)
        cost = cost + l2 / 2 * matrix[:, :-1].square().sum() / len(labels)
        (gradient,) = torch.autograd.grad(cost, matrix)
        return cost.item(), gradient.numpy().ravel()

    found = minimize(
        objective, np.zeros(shape).ravel(), jac=True, method="BFGS", options={"gtol": 1e-7, "maxiter": 5000}
    )
    matrix = torch.from_numpy(found.x).view(shape)
    return found.fun, (x @ matrix[:, :-1].T + matrix[:, -1]).softmax(dim=1).numpy()


@pytest.mark.parametrize("penalties", [[1e3, 10.0, 1.0, 0.1], [0.3]], ids=["path", "one"])
@pytest.mark.parametrize("classes", [2, 4])
def test_optimum_is_that_of_the_formula(penalties: list[float], classes: int) -> None:
    features, labels = clouds(200, dim=8, classes=classes, seed=0)
    fits = list(fit_logistic(features, labels, classes, penalties=penalties))
    assert [fit.l2 for fit in fits] == penalties
    for fit in fits:
        assert fit.converged
        best, probabilities = minimum(features, labels, classes, fit.l2)
        assert fit.loss == pytest.approx(best, abs=1e-6)
        assert loss(fit.classifier, features, labels, fit.l2).item() == pytest.approx(best, abs=1e-5)
        np.testing.assert_allclose(fit.classifier(features).softmax(dim=1).detach(), probabilities, atol=1e-3)


def test_real_features_of_many_dimensions() -> None:
    images = open_images("digits")
    features, labels = in_memory(images)[:, 0].flatten(1).float() / 255, images.labels()
    (fit,) = fit_logistic(features, labels, 10, penalties=[1.0])
    loss(fit.classifier, features, labels, 1.0).backward()
    assert fit.converged
    assert fit.classifier.weight.grad.abs().max() < 1e-4


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


def test_a_single_class_is_always_predicted() -> None:
    (fit,) = fit_logistic(torch.rand(5, 3), torch.full((5,), 1), 3, penalties=[1.0])
    assert fit.classifier(torch.rand(4, 3)).argmax(dim=1).tolist() == [1] * 4


def test_folds_hold_every_sample_out_once_and_classes_evenly() -> None:
    labels = torch.tensor([0] * 11 + [1] * 7 + [2] * 5)
    parts = stratified_folds(labels, folds=4, seed=1)
    assert sorted(torch.cat(parts).tolist()) == list(range(23))
    counts = torch.stack([torch.bincount(labels[part], minlength=3) for part in parts])
    assert (counts.amax(dim=0) - counts.amin(dim=0) <= 1).all()
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert len(stratified_folds(torch.tensor([0, 0, 0, 1, 1]), folds=5, seed=0)) == 2


def test_a_class_with_one_sample_does_not_keep_the_others_from_being_validated() -> None:
    labels = torch.tensor([0] * 20 + [1] * 20 + [2])
    parts = stratified_folds(labels, folds=5, seed=0)
    assert len(parts) == 5
    assert sorted(torch.cat(parts).tolist()) == list(range(41))
    for held_out in parts:
        stay = torch.ones(41, dtype=torch.bool)
        stay[held_out] = False
        assert len(torch.unique(labels[stay])) >= 2
    features = F.one_hot(labels, 3).float() + 0.01 * torch.randn(41, 3, generator=torch.Generator().manual_seed(0))
    chosen = choose_logistic(features, labels, 3, folds=5)
    assert chosen.right is not None
    assert chosen.right.tolist() == [True] * 40 + [False]  # nothing was learnt about the single one
    assert len(stratified_folds(torch.tensor([0, 0, 0, 1]), folds=5, seed=0)) == 1  # a single class would be left


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_the_penalty_is_chosen_whatever_the_scale_of_the_features(scale: float) -> None:
    """Against scikit-learn's own cross-validation over the same folds and penalties."""
    features, labels = clouds(60, dim=20, classes=3, seed=4)
    chosen = choose_logistic(features * scale, labels, 3, folds=5, seed=0)
    assert chosen.fit.l2 / scale**2 == pytest.approx(choose_logistic(features, labels, 3, seed=0).fit.l2, rel=1e-3)
    parts = [part.numpy() for part in stratified_folds(labels, folds=5, seed=0)]
    splits = [(np.setdiff1d(np.arange(60), part), part) for part in parts]
    x = features.double().numpy() * scale
    unit = float(((x - x.mean(axis=0)) ** 2).sum(axis=1).mean())
    search = GridSearchCV(
        LogisticRegression(tol=1e-8, max_iter=5000), {"C": [1 / (unit * p) for p in PENALTIES]}, cv=splits,
        scoring="neg_log_loss",
    ).fit(x, labels)  # fmt: skip
    assert chosen.fit.l2 == pytest.approx(1 / search.best_params_["C"], rel=1e-3)
    scores = cross_val_score(search.best_estimator_, x, labels, cv=splits)
    assert np.mean(chosen.accuracies) == pytest.approx(scores.mean(), abs=0.02)


def test_the_likelihood_chooses_where_the_accuracy_does_not_tell_penalties_apart() -> None:
    """Of penalties that classify all held-out samples of two distant clouds correctly, one is the most likely."""
    features, labels = clouds(16, dim=3, classes=2, seed=1)
    features = features + 20 * F.one_hot(labels, 3)
    chosen = choose_logistic(features, labels, 2, folds=4)
    assert chosen.accuracies == (1.0, 1.0, 1.0, 1.0)
    scale = float((features - features.mean(dim=0)).square().sum(dim=1).mean())
    assert chosen.fit.l2 / scale < 0.01  # the largest penalty of equal accuracy would be PENALTIES[0]


def test_with_a_single_sample_of_every_class_nothing_is_validated() -> None:
    features = torch.eye(3) + 0.1
    chosen = choose_logistic(features, torch.arange(3), 3)
    assert chosen.accuracies == ()
    assert chosen.right is None


def test_neighbours_are_the_most_likely_of_leaving_one_out() -> None:
    """Against a loop over single samples; the only sample of a class does not count."""
    features, labels = clouds(90, dim=4, classes=3, seed=2)
    labels[7] = 5
    counted = [i for i in range(90) if i != 7]
    likelihoods = {}
    for k in (k for k in NEIGHBOURS if k < 90):
        stay = [torch.arange(90) != i for i in range(90)]
        votes = torch.cat([
            knn_scores(features[i : i + 1], features[stay[i]], labels[stay[i]], num_classes=6, k=k) for i in counted
        ]).double()  # fmt: skip
        shares = (votes / votes.sum(dim=1, keepdim=True)).gather(1, labels[counted, None])
        for smoothing in SMOOTHINGS:
            likelihoods[k, smoothing] = float(((1 - smoothing) * shares + smoothing / 4).log().mean())
    found = choose_neighbours(features, labels)
    assert (found.k, found.smoothing) == max(likelihoods, key=lambda settings: likelihoods[settings])
    assert found.k > 1
    assert found.classes == 4
    assert choose_neighbours(features[:1], labels[:1]).k == 1
    assert choose_neighbours(features[:3], torch.arange(3)).k == 1  # nothing can be right


def test_the_likelihood_of_neighbours_is_finite() -> None:
    scores = torch.tensor([[3.0, 1.0, 0.0], [0.0, 2.0, 0.0]])
    found = ChosenNeighbours(k=3, smoothing=0.2, classes=2).log_likelihood(scores, torch.tensor([0, 0]))
    torch.testing.assert_close(found, torch.tensor([0.8 * 0.75 + 0.1, 0.1], dtype=torch.float64).log())
