"""The PyTorch backend: blocks of the similarity matrix, made when needed, used and dropped.

Memory is O(N D) and a few blocks. Time is two N x N x D matrix products for the symmetric form, forward and backward
together, and four for the rectangular one (the floor of recomputation), plus one exp2 per similarity and pass.

Similarities are kept in units of log 2, the factor folded into one of the operands, because exp2 costs a third of exp. If
no similarity can exceed 40 in size, exp2 is taken as it is: sums of up to 2**58 are nothing to float32, and a row's maximum
need not be known. Otherwise every row carries its running maximum.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK = 1024
_LOG2_E = math.log2(math.e)
_SAFE = 40.0


class _RowSums:
    """log2 of sums of exp2 over the columns seen so far, for every row."""

    def __init__(self, rows: int, like: Tensor, *, safe: bool) -> None:
        self.sum = torch.zeros(rows, dtype=like.dtype, device=like.device)
        self.max = None if safe else torch.full_like(self.sum, float("-inf"))

    def add(self, rows: slice, exponents: Tensor, *, along: int) -> None:
        """Take in a block of exponents, summing along one of its axes."""
        assert self.max is not None  # noqa: S101 - for the type checker
        peak = torch.maximum(self.max[rows], exponents.amax(dim=along))
        # A row that has seen nothing but itself has the maximum -inf; any finite shift serves it.
        shift = peak.masked_fill(peak == float("-inf"), 0.0)
        terms = (exponents - shift.unsqueeze(along)).exp2_().sum(dim=along)
        self.sum[rows] = self.sum[rows] * (self.max[rows] - shift).exp2_() + terms
        self.max[rows] = peak

    def lse(self) -> Tensor:
        """Natural logarithm of the sums."""
        logarithm = self.sum.log2() if self.max is None else self.sum.log2().add_(self.max)
        return logarithm.mul_(math.log(2))


def is_safe(scale: float, *operands: Tensor) -> bool:
    """Whether every similarity is at most 40 in size, so that no maximum is needed. Reads one number from the device."""
    longest = [float(operand.square().sum(dim=1).max()) if len(operand) else 0.0 for operand in operands]
    return scale * math.sqrt(longest[0] * longest[-1]) <= _SAFE


def _slices(n: int, block: int) -> list[slice]:
    return [slice(start, min(start + block, n)) for start in range(0, n, block)]


def self_lse(z: Tensor, *, scale: float, block: int = BLOCK) -> Tensor:
    """Forward of the symmetric form; each pair of blocks is multiplied once and serves both its rows and its columns."""
    safe = is_safe(scale, z)
    scaled = z * (scale * _LOG2_E)
    sums = _RowSums(len(z), z, safe=safe)
    for rows, columns in _pairs(len(z), block):
        exponents = scaled[rows] @ z[columns].T
        if safe:
            terms = exponents.exp2_()
            if rows == columns:
                terms.diagonal().zero_()
            else:
                sums.sum[columns] += terms.sum(dim=0)
            sums.sum[rows] += terms.sum(dim=1)
        else:
            if rows == columns:
                exponents.diagonal().fill_(float("-inf"))
            else:
                sums.add(columns, exponents, along=0)
            sums.add(rows, exponents, along=1)
    return sums.lse()


def self_lse_backward(grad: Tensor, z: Tensor, lse: Tensor, *, scale: float, block: int = BLOCK) -> Tensor:
    """Gradient of the symmetric form.

    With ``p_ij = exp(s_ij - lse_i)``: ``dz_i = scale * sum over j of (g_i p_ij + g_j p_ji) z_j``.
    """
    safe = is_safe(scale, z)
    scaled = z * (scale * _LOG2_E)
    shift = lse * _LOG2_E
    weight = grad * scale
    # Where no maximum is needed, exp(s_ij) serves p_ij and p_ji: one exp2 and one rank-one factor.
    factor = weight * (-shift).exp2() if safe else weight
    grad_z = torch.zeros_like(z)
    for rows, columns in _pairs(len(z), block):
        exponents = scaled[rows] @ z[columns].T
        if safe:
            share = exponents.exp2_().mul_(factor[rows, None] + factor[columns])
        else:
            share = (exponents - shift[rows, None]).exp2_().mul_(weight[rows, None])
            share += (exponents - shift[columns]).exp2_().mul_(weight[columns])
        if rows == columns:
            share.diagonal().zero_()
        else:
            grad_z[columns].addmm_(share.T, z[rows])
        grad_z[rows].addmm_(share, z[columns])
    return grad_z


def _pairs(n: int, block: int) -> Iterator[tuple[slice, slice]]:
    """Every unordered pair of blocks once, in a fixed order: results do not depend on anything but the input."""
    slices = _slices(n, block)
    for index, rows in enumerate(slices):
        for columns in slices[index:]:
            yield rows, columns


def row_lse(q: Tensor, k: Tensor, *, scale: float, self_offset: int | None = None, block: int = BLOCK) -> Tensor:
    """Forward of the rectangular form."""
    safe = is_safe(scale, q, k)
    scaled = q * (scale * _LOG2_E)
    sums = _RowSums(len(q), q, safe=safe)
    for rows in _slices(len(q), block):
        for columns in _slices(len(k), block):
            exponents = scaled[rows] @ k[columns].T
            itself = _itself(exponents, rows, columns, self_offset)
            if safe:
                terms = exponents.exp2_()
                itself.zero_()
                sums.sum[rows] += terms.sum(dim=1)
            else:
                itself.fill_(float("-inf"))
                sums.add(rows, exponents, along=1)
    return sums.lse()


def row_lse_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    *,
    scale: float,
    self_offset: int | None = None,
    need_q: bool = True,
    need_k: bool = True,
    block: int = BLOCK,
) -> tuple[Tensor, Tensor]:
    """Gradients of the rectangular form; one that is not needed comes back empty, [0, D]."""
    scaled = q * (scale * _LOG2_E)
    shift = lse * _LOG2_E
    weight = grad * scale
    grad_q, grad_k = torch.zeros_like(q if need_q else q[:0]), torch.zeros_like(k if need_k else k[:0])
    for rows in _slices(len(q), block):
        for columns in _slices(len(k), block):
            share = (scaled[rows] @ k[columns].T).sub_(shift[rows, None]).exp2_().mul_(weight[rows, None])
            _itself(share, rows, columns, self_offset).zero_()
            if need_q:
                grad_q[rows].addmm_(share, k[columns])
            if need_k:
                grad_k[columns].addmm_(share.T, q[rows])
    return grad_q, grad_k


def _itself(tile: Tensor, rows: slice, columns: slice, self_offset: int | None) -> Tensor:
    """View of the entries (i, i + self_offset) that lie in this block; empty if none does."""
    if self_offset is None:
        return tile[:0, 0]
    diagonal = rows.start + self_offset - columns.start
    if -tile.shape[0] < diagonal < tile.shape[1]:
        return tile.diagonal(diagonal)
    return tile[:0, 0]
