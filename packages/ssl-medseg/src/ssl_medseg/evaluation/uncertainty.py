"""Estimate the uncertainty of a segmentation without a reference: predictive entropy, and agreement of predictions.

If a network segments a volume and its mirror images in the same way, the segmentation is usually correct: the pairwise
Dice between predictions correlates with the Dice against the reference (Roy et al., "Bayesian QuickNAT", NeuroImage
2019; Wang et al., "Aleatoric uncertainty estimation with test-time augmentation", Neurocomputing 2019). Agreement is
not an estimate of that Dice, however, because predictions can agree on the same mistake.
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
    """Compute the entropy of class probabilities relative to its maximum: ``-sum_c p_c log p_c / log C``.

    Args:
        probabilities: Probabilities of C classes, which sum to 1 along `dim`.
        dim: Dimension of the classes.

    Returns:
        Tensor without `dim`, with values in [0, 1]: 0 if one class is certain, 1 if all are equally probable.

    >>> predictive_entropy(torch.tensor([[0.5, 1.0], [0.5, 0.0]]), dim=0).tolist()
    [1.0, 0.0]
    """
    log_classes = float(np.log(probabilities.shape[dim]))
    entropy: Tensor = torch.special.entr(probabilities).sum(dim)
    return entropy / log_classes


def agreement(predictions: Sequence[NDArray[Any]], *, classes: int) -> tuple[float | None, ...]:
    """Compute the mean pairwise Dice between several predictions of the same volume, for each structure.

    Args:
        predictions: Class numbers ``[X, Y, Z]`` of at least two predictions, 0 for the background.
        classes: Number of classes C, including the background.

    Returns:
        Agreement in [0, 1] of each of the C - 1 structures; None for a structure that no prediction contains. The Dice
        of a pair in which only one prediction contains the structure is 0.

    Raises:
        ValueError: Fewer than two predictions.
    """
    if len(predictions) < 2:
        raise ValueError(f"found {len(predictions)} predictions, expected at least 2 to compare")
    pairs = [class_dice(a, b, classes=classes)[1:] for a, b in itertools.combinations(predictions, 2)]
    table = np.stack(pairs)
    # A Dice is NaN if neither prediction of the pair contains the structure.
    return tuple(float(column[~np.isnan(column)].mean()) if not np.isnan(column).all() else None for column in table.T)


def quality(agreements: Sequence[float | None]) -> float:
    """Return the mean agreement over the structures of a case; 0 if no structure was predicted."""
    values = [value for value in agreements if value is not None]
    return float(np.mean(values)) if values else 0.0
