"""The square form in tiles: every similarity is computed once for the two rows it belongs to.

S is symmetric, and with E = exp(S) the gradient of sum_i g_i lse_i with respect to z is

    dz_i = scale * sum_j E_ij (a_i + a_j) z_j,    a_i = g_i / sum_j E_ij,

so tiles on and above the diagonal serve both sides: half a matrix product N x N x D forwards, half of one to compute
the tiles again, and one for the gradient.

The exponential is taken without a shift, which is safe while |S| stays far inside the range of the type: :func:`limit`.
sqrt(scale * log2 e) is folded into the vectors, because exp2 is three times as fast as exp.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from contrastive_core.similarity.precision import exact_dtype
from contrastive_core.similarity.tiles import Candidates, tiles

_LIMIT = {torch.float32: 40.0, torch.float64: 300.0}


def limit(dtype: torch.dtype) -> float:
    """Largest |S| for which sums of exp(S), their inverses and products with gradients are normal numbers.

    exp(40) = 2e17: sums over 1e6 rows stay below 1e24, inverses above 1e-24, where float32 reaches from 1e-38 to 3e38.
    """
    return _LIMIT[dtype]


def forward(z: Tensor, candidates: Candidates, *, scale: float) -> Tensor:
    """Log-sum-exp [N] of each row over its candidates, which must be symmetric."""
    folded = z.contiguous() * _factor(scale)
    total = z.new_zeros(len(z), dtype=exact_dtype(z))
    for rows, columns, s in tiles(folded, folded, candidates, upper=True):
        e = s.exp2_()
        total[rows] += e.sum(1)
        if rows != columns:
            total[columns] += e.sum(0)
    return total.log_()


def backward(grad: Tensor, lse: Tensor, z: Tensor, candidates: Candidates, *, scale: float) -> Tensor:
    """Gradient [N, D] with respect to z."""
    folded = z.contiguous() * _factor(scale)
    # A row without candidates has lse -inf: no gradient.
    weight = torch.where(lse == -torch.inf, 0.0, grad * torch.exp(-lse)).to(z.dtype)
    out = torch.zeros_like(folded)
    buffer: Tensor | None = None
    for rows, columns, s in tiles(folded, folded, candidates, upper=True):
        # The first tile is the largest.
        buffer = torch.empty_like(s) if buffer is None else buffer
        both = torch.add(weight[rows, None], weight[columns], out=buffer.view(-1)[: s.numel()].view_as(s))
        e = s.exp2_().mul_(both)
        out[rows].addmm_(e, folded[columns])
        if rows != columns:
            out[columns].addmm_(e.T, folded[rows])
    return out.mul_(scale / _factor(scale))


def _factor(scale: float) -> float:
    return math.sqrt(scale * math.log2(math.e))
