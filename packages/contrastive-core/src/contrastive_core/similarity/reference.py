"""The primitive written down as its formula, with the whole matrix: what every backend is compared with. For tests."""

from __future__ import annotations

import torch
from torch import Tensor


def self_lse(z: Tensor, *, scale: float) -> Tensor:
    """log of the sum over j != i of exp(scale z_i . z_j), for every row: [N, D] -> [N]."""
    return row_lse(z, z, scale=scale, self_offset=0)


def row_lse(q: Tensor, k: Tensor, *, scale: float, self_offset: int | None = None) -> Tensor:
    """log of the sum over j of exp(scale q_i . k_j), leaving out j = i + self_offset: [Nq, D], [Nk, D] -> [Nq]."""
    similarity = scale * q @ k.T
    if self_offset is not None:
        rows = torch.arange(len(q), device=q.device)
        itself = torch.zeros_like(similarity, dtype=torch.bool)
        itself[rows, rows + self_offset] = True
        similarity = similarity.masked_fill(itself, float("-inf"))
    return similarity.logsumexp(dim=1)
