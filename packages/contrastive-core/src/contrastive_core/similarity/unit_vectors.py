"""Unit vectors and similarities of pairs in PyTorch, with more exact gradients than autograd's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from contrastive_core.similarity.precision import exact_dtype


class _UnitRows(torch.autograd.Function):
    """Lengths, quotients and the projection of the gradient in float64, kept is the rounded result.

    Rounding the length to float32 would turn every similarity of a row by the same 1e-7, and leave as much of the
    gradient's radial part, which can be a hundred times the tangential one when two views are close.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
        exact = x.to(exact_dtype(x))
        top: Tensor | float = 1.0
        if exact.dtype == x.dtype:
            # No wider type to square in: first divide by the largest entry.
            top = x.abs().amax(-1, keepdim=True)
            top = top.masked_fill(top == 0, 1.0)
            exact = exact / top
        length = torch.linalg.vector_norm(exact, dim=-1, keepdim=True)
        # Shorter than float32's smallest normal number, its inverse would be infinite. NaN compares false and stays.
        dead = length * top < torch.finfo(torch.promote_types(x.dtype, torch.float32)).tiny
        # An infinite divisor makes row and gradient 0.
        length = length.masked_fill(dead, torch.inf)
        # Not in place, and no conversion to the type it has: of a tensor that an operation returns as it came,
        # torch.compile of torch 2.11 forgets the gradient.
        z: Tensor = exact / length
        z = z if z.dtype == dtype else z.to(dtype)
        ctx.save_for_backward(z, length * top)
        ctx.dtype = x.dtype
        return z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        z, length = ctx.saved_tensors
        radial = (grad * z).sum(-1, keepdim=True, dtype=length.dtype)
        return ((grad - z * radial) / length).to(ctx.dtype), None


def unit_rows(x: Tensor, dtype: torch.dtype) -> Tensor:
    """See :func:`contrastive_core.losses._inputs.unit_rows`."""
    z: Tensor = _UnitRows.apply(x, dtype)
    return z


def paired_similarity(a: Tensor, b: Tensor) -> Tensor:
    """a_i . b_i for unit rows: [N, D], [N, D] -> [N] in float64.

    Written as (|a_i|^2 + |b_i|^2 - |a_i - b_i|^2) / 2 with the lengths, 1 or 0, as constants. The gradient with respect
    to a_i is then b_i - a_i instead of b_i: a_i is radial and drops out when the unit length is differentiated, but for
    close rows it is most of b_i, and its rounding would be most of the gradient's error.
    """
    a2, b2, distance = (x.square().sum(1, dtype=exact_dtype(a)) for x in (a.detach(), b.detach(), a - b))
    return (a2 + b2 - distance) / 2
