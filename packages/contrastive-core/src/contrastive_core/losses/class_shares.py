"""How much of an anchor's similarity falls to every class: its random neighbour's label."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from contrastive_core.similarity.precision import full_precision

_BLOCK = 512


def class_shares(
    rows: Tensor, candidates: Tensor, weights: Tensor, *, scale: float, first: int | None = None
) -> Tensor:
    """Softmax of the similarities with the candidates, times their weights for the classes: [n, D], [N, D] -> [n, C].

    Blocks of anchors are computed again in the backward pass: memory O(N (D + C)) and one block of 512 rows.

    Args:
        rows: the anchors, unit vectors [n, D].
        candidates: unit vectors [N, D].
        weights: of the candidates for the classes [N, C].
        scale: one over the temperature.
        first: place of the first anchor among the candidates, whose next ones are the others; an anchor is not its own
            candidate. None: they are not among them.
    """
    if len(rows) <= _BLOCK:
        return _block(rows, candidates, weights, scale=scale, first=first)
    shares = [
        checkpoint(
            _block,
            block,
            candidates,
            weights,
            scale=scale,
            first=None if first is None else first + i * _BLOCK,
            use_reentrant=False,
            preserve_rng_state=False,
        )
        for i, block in enumerate(torch.split(rows, _BLOCK))
    ]
    return torch.cat(shares)


def _block(rows: Tensor, candidates: Tensor, weights: Tensor, *, scale: float, first: int | None) -> Tensor:
    with full_precision(rows.device):
        similarity = scale * rows @ candidates.T
        if first is not None:
            similarity.diagonal(first).fill_(-torch.inf)
        return similarity.softmax(1) @ weights
