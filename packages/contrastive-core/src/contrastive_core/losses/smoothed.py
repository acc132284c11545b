"""SuNCEt with smoothed labels, which asks for an anchor's similarity with every class instead of its own alone."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from contrastive_core.similarity.precision import full_precision

_BLOCK = 512


def smoothed_losses(
    rows: Tensor, everyone: Tensor, labels: Tensor, *, first: int, scale: float, label_smoothing: float
) -> Tensor:
    """Cross-entropy [n] between an anchor's smoothed label and the smoothed labels of its random neighbour.

    Blocks of anchors are computed again in the backward pass: memory O(N (D + C)) and one block of 512 rows.

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
    losses = [
        checkpoint(
            _block,
            block,
            everyone,
            one_hot,
            first=first + i * _BLOCK,
            scale=scale,
            label_smoothing=label_smoothing,
            use_reentrant=False,
            preserve_rng_state=False,
        )
        for i, block in enumerate(torch.split(rows, _BLOCK))
    ]
    return torch.cat(losses)


def _block(
    rows: Tensor, everyone: Tensor, one_hot: Tensor, *, first: int, scale: float, label_smoothing: float
) -> Tensor:
    with full_precision(rows.device):
        similarity = scale * rows @ everyone.T
        similarity.diagonal(first).fill_(-torch.inf)
        share = similarity.softmax(1) @ one_hot
    spread = label_smoothing / one_hot.shape[1]
    own = one_hot[first : first + len(rows)]
    target, found = (spread + (1 - label_smoothing) * part for part in (own, share))
    return -(target * found.log()).sum(1)
