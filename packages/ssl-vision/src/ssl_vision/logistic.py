"""Multinomial logistic regression with an l2 penalty, solved to its optimum: what is left to tune is the penalty."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

_MEMORY = 10  # pairs of steps and gradients that the approximation of the Hessian remembers


@dataclass(frozen=True)
class LogisticFit:
    """The classifier of one penalty.

    Attributes:
        l2: the penalty.
        classifier: ``[N, D]`` features -> ``[N, C]`` logits.
        loss: the objective divided by N.
        converged: whether no entry of its gradient exceeds the tolerance; otherwise the iterations were used up, or
            floating point let the objective fall no further.
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

    is minimised by L-BFGS (scipy's, values and gradients on the device of the features), b not being penalised. It is
    scikit-learn's `LogisticRegression` with ``C = 1 / l2``; with two classes, for which that has one weight vector
    instead of two, with ``C = 2 / l2``. Each fit begins where the one before has ended, so give penalties in descending
    order. Centred features are fitted, which changes the way to the optimum and not the optimum.

    Args:
        features: ``[N, D]``.
        labels: int64 ``[N]``.
        num_classes: C; those without samples are learnt to be unlikely.
        penalties: l2.
        tolerance: largest entry of the gradient of the objective divided by N.
        max_iterations: for each penalty.
    """
    # 0.2 s to import, and only this needs it.
    from scipy.optimize import minimize  # noqa: PLC0415

    # Apple's GPUs have no float64; elsewhere it lets the line search see the last digits of the objective.
    dtype = torch.float32 if features.device.type == "mps" else torch.float64
    x = features.to(dtype, copy=True)
    mean = x.mean(dim=0)
    x -= mean
    count, dim = x.shape
    flat: NDArray[np.float64] = np.zeros(num_classes * (dim + 1))

    def objective(parameters: NDArray[np.float64], l2: float) -> tuple[float, NDArray[np.float64]]:
        matrix = torch.from_numpy(parameters).to(dtype).to(x.device).view(num_classes, dim + 1)
        weight, bias = matrix[:, :dim], matrix[:, dim]
        logits = torch.addmm(bias, x, weight.T)
        loss = F.cross_entropy(logits, labels) + weight.square().sum() * (l2 / (2 * count))
        error = logits.softmax(dim=1)
        error[torch.arange(count, device=x.device), labels] -= 1
        gradient = torch.cat([error.T @ x + l2 * weight, error.sum(dim=0)[:, None]], dim=1) / count
        return loss.item(), gradient.cpu().double().numpy().ravel()

    options = {"maxcor": _MEMORY, "maxiter": max_iterations, "gtol": tolerance, "ftol": 0.0}
    for l2 in penalties:
        found = minimize(objective, flat, args=(l2,), jac=True, method="L-BFGS-B", options=options)
        flat = found.x
        converged = bool(np.abs(found.jac).max() <= tolerance)
        yield LogisticFit(l2, _classifier(flat, mean, num_classes), float(found.fun), converged)


def _classifier(parameters: NDArray[np.float64], mean: Tensor, num_classes: int) -> nn.Linear:
    """The classifier of features as they are, from that of centred ones."""
    matrix = torch.from_numpy(parameters).to(mean.dtype).to(mean.device).view(num_classes, -1)
    classifier = nn.Linear(len(mean), num_classes, device=mean.device)
    with torch.no_grad():
        classifier.weight.copy_(matrix[:, :-1])
        classifier.bias.copy_(matrix[:, -1] - matrix[:, :-1] @ mean)
    return classifier
