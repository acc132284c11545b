"""Unit vectors and similarities of pairs, with more accurate gradients than those of autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from contrastive_core.similarity.autograd import once_in_forward_mode, traceable
from contrastive_core.similarity.precision import exact_dtype

Forward = Callable[[Tensor, torch.dtype], tuple[Tensor, Tensor]]
Backward = Callable[[Tensor, Tensor, Tensor, torch.dtype], Tensor]


def unit_rows(x: Tensor, dtype: torch.dtype) -> Tensor:
    """See :func:`contrastive_core.losses._inputs.unit_rows`."""
    return differentiable_unit_rows(x, dtype, _forward, _backward)


def differentiable_unit_rows(x: Tensor, dtype: torch.dtype, forward: Forward, backward: Backward) -> Tensor:
    """Compute unit rows with derivatives of every order, in reverse and forward mode and under `torch.func`.

    Args:
        x: Rows [..., D].
        dtype: Type of the result.
        forward: Function that returns the unit rows [..., D] and lengths [..., 1] of x; lengths are infinite for rows
            that are treated as zero.
        backward: Function that returns the gradient with respect to x, given that of the unit rows, the unit rows, the
            lengths and x's dtype; called if no second derivative is required.
    """
    function = _TracedUnitRows if torch.compiler.is_compiling() else _UnitRows
    z: Tensor = function.apply(x, dtype, forward, backward)[0]
    return z


def paired_similarity(a: Tensor, b: Tensor) -> Tensor:
    """Compute a_i . b_i for unit rows: [N, D], [N, D] -> [N] in float64.

    Written as (|a_i|^2 + |b_i|^2 - |a_i - b_i|^2) / 2 with the lengths, 1 or 0, as constants. The gradient with respect
    to a_i is then b_i - a_i instead of b_i: a_i is radial and drops out when the unit length is differentiated, but for
    close rows it is most of b_i, and its rounding would be most of the gradient's error. On unit vectors both
    expressions are the same function, so that higher derivatives agree too.
    """
    a2, b2, distance = (x.square().sum(1, dtype=exact_dtype(a)) for x in (a.detach(), b.detach(), a - b))
    return (a2 + b2 - distance) / 2


class _UnitRows(Function):
    """Unit rows and lengths.

    The lengths are an output, so that autograd tracks how the gradient, which contains them, depends on x.
    """

    @staticmethod
    def forward(x: Tensor, dtype: torch.dtype, forward: Forward, backward: Backward) -> tuple[Tensor, Tensor]:
        del backward
        return forward(x, dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.dtype, ctx.fast_backward = inputs[0].dtype, inputs[3]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*output)
        ctx.save_for_forward(*output, inputs[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, length_grad: Tensor | None) -> tuple[Tensor | None, None, None, None]:
        z, length = ctx.saved_tensors
        if length_grad is None and grad is not None and not torch.is_grad_enabled():
            return ctx.fast_backward(grad, z, length, ctx.dtype), None, None, None
        out = None if grad is None else _backward(grad, z, length, ctx.dtype)
        if length_grad is not None:
            by_length = (z * length_grad).to(ctx.dtype)
            out = by_length if out is None else out + by_length
        return out, None, None, None

    @staticmethod
    def jvp(ctx: Any, x_tangent: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        z, length, x = ctx.saved_tensors
        once_in_forward_mode(x)
        radial = (x_tangent * z).sum(-1, keepdim=True, dtype=length.dtype)
        return ((x_tangent - z * radial) / length).to(z.dtype), torch.where(length == torch.inf, 0.0, radial)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], x: Tensor, *others: Any) -> tuple[Any, tuple[int, int]]:
        return _UnitRows.apply(x.movedim(in_dims[0], 0), *others), (0, 0)


_TracedUnitRows = traceable(_UnitRows)


def _forward(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Compute lengths and quotients in float64; only the result is rounded.

    Rounding the length to float32 would change every similarity of a row by the same 1e-7, and leave as much of the
    gradient's radial part, which can be a hundred times the tangential one when two views are close.
    """
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
    # Neither in place nor converted to its own type: if an operation returns its input tensor unchanged,
    # torch.compile of torch 2.11 loses the gradient.
    z: Tensor = exact / length
    return z if z.dtype == dtype else z.to(dtype), length * top


def _backward(grad: Tensor, z: Tensor, length: Tensor, dtype: torch.dtype) -> Tensor:
    """Divide the component of the gradient orthogonal to z by the length: (dz - z (z . dz)) / |x|."""
    radial = (grad * z).sum(-1, keepdim=True, dtype=length.dtype)
    return ((grad - z * radial) / length).to(dtype)
