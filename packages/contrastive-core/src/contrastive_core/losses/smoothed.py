"""SuNCEt with smoothed labels, which asks for an anchor's similarity with every class instead of its own alone."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from contrastive_core.losses.class_shares import class_shares


def smoothed_losses(
    rows: Tensor, everyone: Tensor, labels: Tensor, *, first: int, scale: float, label_smoothing: float
) -> Tensor:
    """Cross-entropy [n] between an anchor's smoothed label and the smoothed labels of its random neighbour.

    Memory O(N (D + C)), see `class_shares`.

    Args:
        rows: the anchors, unit vectors [n, D].
        everyone: the candidates, unit vectors [N, D].
        labels: class numbers [N] of the candidates.
        first: place of the first anchor among the candidates, whose next ones are the others.
        scale: one over the temperature.
        label_smoothing: in (0, 1).
    """
    classes, number = torch.unique(labels, return_inverse=True)
    one_hot = F.one_hot(number, len(classes)).to(rows.dtype)
    share = class_shares(rows, everyone, one_hot, scale=scale, first=first)
    spread = label_smoothing / len(classes)
    target, found = (spread + (1 - label_smoothing) * part for part in (one_hot[first : first + len(rows)], share))
    return -(target * found.log()).sum(1)
