"""Uncertainty of a segmentation without its truth: predictive entropy, and agreement between several predictions.

A network that segments a volume and its mirror images alike is usually right, and one that does not is usually wrong:
the pairwise Dice between predictions of one volume rises and falls with the Dice against the truth (Roy et al.,
"Bayesian QuickNAT", NeuroImage 2019; Wang et al., "Aleatoric uncertainty estimation with test-time augmentation",
Neurocomputing 2019). Agreement is no Dice, though: predictions can agree on the same mistake.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssl_medseg.evaluation.metrics import class_dice


def predictive_entropy(probabilities: Tensor, *, dim: int = 1) -> Tensor:
    """Entropy of class probabilities as a fraction of its maximum: -sum_c p_c log p_c / log C.

    Args:
        probabilities: Of C classes, which sum to 1 along `dim`.
        dim: Dimension of the classes.

    Returns:
        The shape without `dim`, in [0, 1]: 0 where one class is certain, 1 where all are equally probable.

    >>> predictive_entropy(torch.tensor([[0.5, 1.0], [0.5, 0.0]]), dim=0).tolist()
    [1.0, 0.0]
    """
    log_classes = float(np.log(probabilities.shape[dim]))
    entropy: Tensor = torch.special.entr(probabilities).sum(dim)
    return entropy / log_classes


def agreement(predictions: Sequence[NDArray[Any]], *, classes: int) -> tuple[float | None, ...]:
    """Mean pairwise Dice between several predictions of one volume, for each structure.

    Args:
        predictions: Classes [X, Y, Z] of each prediction, 0 the background; at least two.
        classes: C, the background included.

    Returns:
        A number in [0, 1] for each of the C - 1 structures; None for a structure that no prediction contains. A
        structure that only some of them contain counts with 0 in the pairs that disagree about it.

    Raises:
        ValueError: Fewer than two predictions.
    """
    if len(predictions) < 2:
        raise ValueError(f"found {len(predictions)} predictions, expected at least 2 to compare")
    pairs = [class_dice(a, b, classes=classes)[1:] for a, b in itertools.combinations(predictions, 2)]
    table = np.stack(pairs)
    # NaN: in neither mask of the pair.
    return tuple(float(column[~np.isnan(column)].mean()) if not np.isnan(column).all() else None for column in table.T)


def quality(agreements: Sequence[float | None]) -> float:
    """One number for a case: the mean agreement of its structures; 0 where no structure was found at all."""
    found = [value for value in agreements if value is not None]
    return float(np.mean(found)) if found else 0.0
