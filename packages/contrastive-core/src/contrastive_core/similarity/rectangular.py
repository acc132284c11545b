"""The rectangular form in tiles, with the maximum of every row carried along, so that any scale is safe.

Forwards one matrix product Nq x Nk x D; backwards the tiles are computed again, P_ij = exp(S_ij - lse_i), and

    dq_i = scale * g_i sum_j P_ij k_j,     dk_j = scale * sum_i g_i P_ij q_i.

scale * log2 e is folded into the queries, because exp2 is three times as fast as exp.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from contrastive_core.similarity.precision import exact_dtype
from contrastive_core.similarity.tiles import Candidates, tiles

_LN2 = math.log(2)


def forward(q: Tensor, k: Tensor, candidates: Candidates, *, scale: float) -> Tensor:
    """Log-sum-exp [Nq] of each query over its candidates."""
    top = q.new_full((len(q),), -torch.inf)
    total = q.new_zeros(len(q), dtype=exact_dtype(q))
    for rows, _, s in tiles(_fold(q, scale), k.contiguous(), candidates, upper=False):
        highest = torch.maximum(top[rows], s.amax(1))
        # -inf: nothing counted so far, and -inf - -inf would be NaN.
        shift = highest.masked_fill(highest == -torch.inf, 0.0)
        total[rows] *= torch.exp2(top[rows] - shift)
        total[rows] += s.sub_(shift[:, None]).exp2_().sum(1)
        top[rows] = highest
    return total.log2_().add_(top).mul_(_LN2)


def backward(
    grad: Tensor, lse: Tensor, q: Tensor, k: Tensor, candidates: Candidates, *, scale: float, needs: tuple[bool, bool]
) -> tuple[Tensor, Tensor]:
    """Gradients with respect to q and k; one that is not needed is an empty tensor."""
    folded, k = _fold(q, scale), k.contiguous()
    dq = torch.zeros_like(folded) if needs[0] else q.new_empty(0)
    dk = torch.zeros_like(k) if needs[1] else k.new_empty(0)
    log2_total = torch.where(lse == -torch.inf, 0.0, lse / _LN2)
    # What rounding takes from the exponent, the same for a whole row, goes into its factor.
    shift = log2_total.to(q.dtype)
    weight = (grad * torch.exp2(shift - log2_total)).to(q.dtype)
    for rows, columns, s in tiles(folded, k, candidates, upper=False):
        p = s.sub_(shift[rows, None]).exp2_().mul_(weight[rows, None])
        if needs[0]:
            dq[rows].addmm_(p, k[columns])
        if needs[1]:
            dk[columns].addmm_(p.T, folded[rows])
    return dq.mul_(scale), dk.mul_(_LN2)


def _fold(q: Tensor, scale: float) -> Tensor:
    return q.contiguous() * (scale / _LN2)
