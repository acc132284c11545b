"""Classifiers on frozen features: nearest neighbours, SimCLR's linear evaluation, logistic regression."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from contrastive_core.optim import WarmupCosine, scaled_lr
from contrastive_core.rng import derive, permutation
from contrastive_core.training import Batches
from ssl_vision.augment import CropFlip
from ssl_vision.data import ImageSet
from ssl_vision.models.model_folder import LoadedModel


def knn_scores(
    query: Tensor, bank: Tensor, labels: Tensor, *, num_classes: int, k: int = 200, temperature: float = 0.1
) -> Tensor:
    """Score classes by a weighted vote of the k nearest features.

    ``score[i, c] = sum of exp(cos(q_i, b_j) / temperature)`` over those of the k most similar bank rows j of class c.

    Shapes: query ``[Q, D]``, bank ``[M, D]``, labels ``[M]`` -> ``[Q, num_classes]``. Memory is O(Q + M) rows and a
    block of similarities. This is the vote of Wu et al. 2018 (instance discrimination), as in the SimCLR literature.
    """
    bank = F.normalize(bank.float(), dim=1)
    k = min(k, len(bank))
    scores = []
    for block in torch.tensor_split(F.normalize(query.float(), dim=1), list(range(1024, len(query), 1024))):
        similarity, neighbour = (block @ bank.T).topk(k, dim=1)
        # Only ratios matter, so the largest weight is set to 1 and a small temperature cannot overflow.
        weight = ((similarity - similarity[:, :1]) / temperature).exp()
        votes = torch.zeros(len(block), num_classes, dtype=torch.float32, device=block.device)
        scores.append(votes.scatter_add_(1, labels[neighbour], weight))
    return torch.cat(scores)


NEIGHBOURS = (1, 3, 5, 10, 20, 50, 100, 200)
"""Numbers of neighbours to choose from."""


SMOOTHINGS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Smoothings of the vote to choose from."""


@dataclass(frozen=True)
class ChosenNeighbours:
    """Settings of a vote of nearest neighbours that were chosen by leaving one sample out.

    Attributes:
        k: Number of neighbours.
        smoothing: Share of the uniform distribution in the class probabilities.
        classes: Number of classes among the samples.
    """

    k: int
    smoothing: float
    classes: int

    def log_likelihood(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Compute the log-probability of the true class, float64 ``[Q]``, which the smoothing keeps finite.

        ``p_c = (1 - smoothing) * score_c / sum of scores + smoothing / classes``

        Args:
            scores: Scores of `knn_scores`, ``[Q, C]``.
            labels: Class numbers, int64 ``[Q]``.
        """
        scores = scores.double()
        share = scores.gather(1, labels[:, None])[:, 0] / scores.sum(dim=1)
        return ((1 - self.smoothing) * share + self.smoothing / self.classes).log()


def choose_neighbours(features: Tensor, labels: Tensor, *, temperature: float = 0.1) -> ChosenNeighbours:
    """Choose the number of neighbours and the smoothing of the best likelihood, each sample classified by all others.

    The likelihood tells numbers apart that few samples do not by accuracy. The smallest number of equally good ones is
    chosen, and 1 if no class has two samples. Memory is a block of similarities.

    Args:
        features: Features, ``[N, D]``.
        labels: Class numbers, int64 ``[N]``.
        temperature: Temperature of the vote, see `knn_scores`.
    """
    _, number, count = torch.unique(labels, return_inverse=True, return_counts=True)
    has_others = count[number] > 1  # others can be right on no sample of a class of its own
    numbers = [k for k in NEIGHBOURS if k < len(labels)]
    smoothing = torch.tensor(SMOOTHINGS, dtype=torch.float64, device=features.device)
    if not has_others.any():
        return ChosenNeighbours(1, SMOOTHINGS[-1], len(count))
    unit = F.normalize(features.float(), dim=1)
    total = torch.zeros(len(numbers), len(smoothing), dtype=torch.float64, device=features.device)
    for rows in torch.split(torch.nonzero(has_others).flatten(), 1024):
        similarity = unit[rows] @ unit.T
        similarity[torch.arange(len(rows)), rows] = -torch.inf
        similarity, neighbour = similarity.topk(numbers[-1], dim=1)
        weight = ((similarity - similarity[:, :1]) / temperature).exp().double()
        right = (weight * (labels[neighbour] == labels[rows, None])).cumsum(dim=1)
        share = (right / weight.cumsum(dim=1))[:, [k - 1 for k in numbers], None]
        total += ((1 - smoothing) * share + smoothing / len(count)).log().sum(dim=0)
    best = total.amax(dim=1)
    row = int(best.argmax())
    return ChosenNeighbours(numbers[row], SMOOTHINGS[int(total[row].argmax())], len(count))


class Cached:
    """Source of features that are computed once."""

    def __init__(self, features: Tensor) -> None:
        self.features = features

    def batch(self, ids: Tensor, epoch: int) -> Tensor:
        return self.features[ids.to(self.features.device)]


class Augmented:
    """Source of features of freshly cropped and flipped images."""

    def __init__(self, model: LoadedModel, images: ImageSet, *, seed: int) -> None:
        self.model, self.images, self.seed = model, images, seed
        self.transform = CropFlip(model.image_size)

    @torch.no_grad()
    def batch(self, ids: Tensor, epoch: int) -> Tensor:
        seed = derive(self.seed, "crop", epoch)
        pictures = self.transform([self.images.read(int(i)) for i in ids], seed=seed, ids=ids)
        batch = pictures.to(self.model.device, memory_format=torch.channels_last)
        features: Tensor = self.model.encoder(batch).float()
        return features


Source = Cached | Augmented


def fit_linear(
    source: Source,
    labels: Tensor,
    num_classes: int,
    *,
    features: int,
    epochs: int,
    batch_size: int,
    lr: float,
    seed: int,
) -> nn.Linear:
    """Fit the classifier of SimCLR's linear evaluation (Appendix B.6).

    Softmax cross-entropy, Nesterov momentum 0.9, learning rate ``lr * batch_size / 256`` with cosine decay to 0, no
    warm-up, no weight decay, zero-initialised weights.

    Args:
        source: Source of the features of a batch.
        labels: Class numbers ``[N]``.
        num_classes: Number of outputs of the classifier.
        features: Number of its inputs.
        epochs: Number of passes; samples that do not fill the last batch are left out of an epoch.
        batch_size: Number of samples per step.
        lr: Learning rate per 256 samples.
        seed: Seed of the order.
    """
    classifier = nn.Linear(features, num_classes).to(labels.device)
    nn.init.zeros_(classifier.weight)
    nn.init.zeros_(classifier.bias)
    optimizer = torch.optim.SGD(classifier.parameters(), lr=lr, momentum=0.9, nesterov=True)
    steps_per_epoch = len(labels) // batch_size
    total_steps = epochs * steps_per_epoch
    peak = scaled_lr(lr, batch_size)
    schedule = WarmupCosine(optimizer, peak_lr=peak, warmup_steps=0, total_steps=total_steps)
    batches = Batches(len(labels), batch_size=batch_size, seed=derive(seed, "linear"), total_steps=total_steps)
    for step, indices in enumerate(batches):
        ids = torch.as_tensor(indices)
        logits = classifier(source.batch(ids, step // steps_per_epoch))
        loss = F.cross_entropy(logits, labels[ids.to(labels.device)])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return classifier


PENALTIES = tuple(np.logspace(2, -6, 17).tolist())
"""Penalties to choose from, in units of the mean squared length of the centred features."""

_SMALL = 1 << 24  # multiply-adds per pass over the features, below which BLAS threads only wait for each other
_UNVALIDATED = 0.01  # penalty if nothing can be validated, in the units of PENALTIES
_NEVER = -30.0  # logit of a class without samples


@dataclass(frozen=True)
class LogisticFit:
    """Classifier for one penalty.

    Attributes:
        l2: Penalty.
        classifier: Linear layer, ``[N, D]`` features -> ``[N, C]`` logits.
        loss: Objective divided by N.
        converged: Whether the solver reached its tolerance within its iterations.
    """

    l2: float
    classifier: nn.Linear
    loss: float
    converged: bool


def fit_logistic(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    penalties: Sequence[float],
    tolerance: float = 1e-6,
    max_iterations: int = 1000,
) -> Iterator[LogisticFit]:
    """Fit a classifier for every penalty in turn, each to its optimum.

        sum over i of cross_entropy(W x_i + b, y_i) + l2 / 2 * sum of W^2

    is minimised by scikit-learn's `LogisticRegression` with ``C = 1 / l2``, or ``2 / l2`` for two classes, where it has
    one weight vector instead of two; b is not penalised. Each fit starts at the result of the previous one, so that
    penalties in descending order are fastest. Features are centred, which does not change the optimum. Small problems
    run on one thread, because more threads would only wait for each other.

    Args:
        features: Features, ``[N, D]``.
        labels: Class numbers, int64 ``[N]``.
        num_classes: Number of classes C; classes without samples get a logit of -30.
        penalties: Penalties l2.
        tolerance: Largest entry of the gradient of the objective divided by N.
        max_iterations: Largest number of iterations for each penalty.
    """
    from sklearn.exceptions import ConvergenceWarning  # noqa: PLC0415 - takes a second
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # noqa: PLC0415

    x = features.cpu().double().numpy()
    y = labels.cpu().numpy()
    mean = x.mean(axis=0)
    x = x - mean
    classes = np.unique(y)
    if len(classes) < 2:
        weight, bias = np.zeros((num_classes, x.shape[1])), np.full(num_classes, _NEVER)
        bias[classes] = 0
        for l2 in penalties:
            yield _fit(weight, bias, mean, features, labels, l2, converged=True)
        return
    model = LogisticRegression(tol=tolerance, max_iter=max_iterations, warm_start=True)
    limit = threadpool_limits(1) if x.size * len(classes) < _SMALL else contextlib.nullcontext()
    with limit, warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for l2 in penalties:
            model.set_params(C=(2 if len(classes) == 2 else 1) / l2)
            model.fit(x, y)
            coefficients, intercepts = model.coef_, model.intercept_
            if len(classes) == 2:
                coefficients, intercepts = (
                    np.vstack([-coefficients, coefficients]) / 2,
                    np.r_[-intercepts, intercepts] / 2,
                )
            weight, bias = np.zeros((num_classes, x.shape[1])), np.full(num_classes, intercepts.min() + _NEVER)
            weight[classes], bias[classes] = coefficients, intercepts
            converged = bool(model.n_iter_.max() < max_iterations)
            yield _fit(weight, bias, mean, features, labels, l2, converged=converged)


@dataclass(frozen=True)
class ChosenLogistic:
    """A classifier whose penalty was chosen by cross-validation.

    Attributes:
        fit: The classifier, fitted to all samples.
        accuracies: Accuracy in each fold with the chosen penalty; empty without cross-validation.
        right: Whether the class of each sample was predicted correctly when its fold was held out, with the chosen
            penalty, bool ``[N]``; None without cross-validation.
        log_likelihood: Log-probability of the class of each sample when its fold was held out, float64 ``[N]``, 0 if
            the class was missing from the other folds; None without cross-validation.
    """

    fit: LogisticFit
    accuracies: tuple[float, ...]
    right: Tensor | None = None
    log_likelihood: Tensor | None = None


def choose_logistic(
    features: Tensor, labels: Tensor, num_classes: int, *, folds: int = 5, seed: int = 0
) -> ChosenLogistic:
    """Fit a classifier with the penalty of the best cross-validated likelihood, the largest of equally good ones.

    The likelihood of the true class tells penalties apart that few held-out samples do not by accuracy. Samples of a
    class that is missing from the other folds do not count. The penalties are `PENALTIES` times the mean squared length
    of the centred features, so that the scale of the features does not matter. Folds are those of `stratified_folds`.
    If all classes but one have a single sample, nothing can be validated, and the penalty is 0.01 in the same units.

    Args:
        features: Features, ``[N, D]``.
        labels: Class numbers, int64 ``[N]``.
        num_classes: Number of classes C.
        folds: Largest number of folds.
        seed: Seed of the folds.
    """
    centred = features.double() - features.double().mean(dim=0)
    scale = centred.square().sum(dim=1).mean().sqrt().item() or 1.0
    features = features / scale  # makes the solver's tolerance independent of the scale of features
    parts = stratified_folds(labels, folds=folds, seed=seed)
    if len(parts) < 2:
        (fit,) = fit_logistic(features, labels, num_classes, penalties=[_UNVALIDATED])
        return ChosenLogistic(_rescaled(fit, scale), ())
    right = torch.zeros(len(PENALTIES), len(labels), dtype=torch.bool)
    likelihood = torch.zeros(len(PENALTIES), len(labels), dtype=torch.float64)
    for held_out in parts:
        stay = torch.ones(len(labels), dtype=torch.bool)
        stay[held_out] = False
        fits = fit_logistic(features[stay], labels[stay], num_classes, penalties=PENALTIES)
        is_known = torch.isin(labels[held_out], labels[stay]).double().cpu()
        for row, fit in enumerate(fits):
            with torch.no_grad():
                logits = fit.classifier(features[held_out]).double()
            right[row, held_out] = (logits.argmax(dim=1) == labels[held_out]).cpu()
            likelihood[row, held_out] = -is_known * F.cross_entropy(logits, labels[held_out], reduction="none").cpu()
    accuracies = torch.stack([right[:, held_out].double().mean(dim=1) for held_out in parts], dim=1)
    best = int(likelihood.sum(dim=1).argmax())
    fit = list(fit_logistic(features, labels, num_classes, penalties=PENALTIES[: best + 1]))[-1]
    return ChosenLogistic(_rescaled(fit, scale), tuple(accuracies[best].tolist()), right[best], likelihood[best])


def stratified_folds(labels: Tensor, *, folds: int, seed: int) -> list[Tensor]:
    """Assign samples to folds: every class is spread evenly, and every sample is held out once.

    The number of folds is at most the number of samples of the second-largest class, so that two classes always remain
    in training. A class with fewer samples than folds is held out in some of the folds; the class of a single sample
    cannot be predicted by any method.

    Returns:
        Indices of the samples held out in each fold.
    """
    classes, counts = torch.unique(labels, return_counts=True)
    number = min(folds, int(counts.sort(descending=True).values[1])) if len(counts) > 1 else 1
    fold = torch.empty(len(labels), dtype=torch.int64)
    offset = 0
    for label in classes.tolist():
        members = torch.nonzero(labels == label).flatten()
        order = members[permutation(derive(seed, "folds", label), len(members))]
        fold[order] = (torch.arange(len(members)) + offset) % number
        offset += len(members)
    return [torch.nonzero(fold == index).flatten() for index in range(number)]


def _rescaled(fit: LogisticFit, scale: float) -> LogisticFit:
    """Rescale a classifier for features that are `scale` times as large as those it was fitted to."""
    with torch.no_grad():
        fit.classifier.weight /= scale
    return replace(fit, l2=fit.l2 * scale**2)


def _fit(  # noqa: PLR0917 - the parts of one result
    weight: NDArray[np.float64],
    bias: NDArray[np.float64],
    mean: NDArray[np.float64],
    features: Tensor,
    labels: Tensor,
    l2: float,
    *,
    converged: bool,
) -> LogisticFit:
    """Make the classifier for the original features from that for centred ones."""
    classifier = nn.Linear(weight.shape[1], len(weight), device=features.device)
    with torch.no_grad():
        classifier.weight.copy_(torch.from_numpy(weight))
        classifier.bias.copy_(torch.from_numpy(bias - weight @ mean))
        logits = features.cpu().double() @ torch.from_numpy(weight).T + torch.from_numpy(bias - weight @ mean)
        loss = F.cross_entropy(logits, labels.cpu()).item() + l2 / 2 * float((weight**2).sum()) / len(labels)
    return LogisticFit(l2, classifier, loss, converged)
