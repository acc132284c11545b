"""The primitive as differentiable operators that torch.compile, autocast and fake tensors understand."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor

from contrastive_core.similarity.backend import backend_for


def self_lse(z: Tensor, *, scale: float) -> Tensor:
    """Log-sum-exp of every row's similarities to all other rows.

    ``lse[i] = log sum over j != i of exp(scale * z_i . z_j)``

    Shapes: z ``[N, D]``, any strides -> ``[N]``, float32 (float64 for a float64 z). One row has nobody: -inf.

    Memory O(N D), whatever N; time that of two N x N x D matrix products, forward and backward together. float16 and
    bfloat16 are computed in float32 and their gradient is returned in their dtype. Differentiable once: asking for a second
    derivative raises RuntimeError.

    Raises:
        ValueError: z is not a floating-point matrix.
    """
    _check("z", z)
    lse: Tensor = torch.ops.contrastive_core.self_lse(_compute(z), scale)
    return lse


def row_lse(q: Tensor, k: Tensor, *, scale: float, self_offset: int | None = None) -> Tensor:
    """Log-sum-exp of every query's similarities to the keys.

    ``lse[i] = log sum over j != i + self_offset of exp(scale * q_i . k_j)``; with ``self_offset=None`` over all j.

    Shapes: q ``[Nq, D]``, k ``[Nk, D]`` -> ``[Nq]``. For rows gathered from other processes (self_offset: where this
    process's rows begin) and memory banks. dtype, memory and derivatives as :func:`self_lse`; time of four products.

    Raises:
        ValueError: an operand is not a floating-point matrix, or their widths differ.
    """
    _check("q", q)
    _check("k", k)
    if q.shape[1] != k.shape[1]:
        raise ValueError(f"q and k must have the same width, got {tuple(q.shape)} and {tuple(k.shape)}")
    q, k = _compute(q), _compute(k)
    dtype = torch.promote_types(q.dtype, k.dtype)
    lse: Tensor = torch.ops.contrastive_core.row_lse(q.to(dtype), k.to(dtype), scale, self_offset)
    return lse


def _check(name: str, operand: Tensor) -> None:
    if operand.ndim != 2 or not operand.is_floating_point():
        raise ValueError(f"{name} must be a floating-point matrix [N, D], got {operand.dtype} {tuple(operand.shape)}")


def _compute(operand: Tensor) -> Tensor:
    return operand if operand.dtype == torch.float64 else operand.float()


# Operators rather than autograd functions: they are opaque to torch.compile, so that no graph breaks and none unrolls the
# loop over blocks, and autocast does not reach inside them.


@torch.library.custom_op("contrastive_core::self_lse", mutates_args=())
def _self_lse(z: Tensor, scale: float) -> Tensor:
    with _no_autocast(z):
        return backend_for(z).self_lse(z, scale=scale)


@torch.library.custom_op("contrastive_core::self_lse_backward", mutates_args=())
def _self_lse_backward(grad: Tensor, z: Tensor, lse: Tensor, scale: float) -> Tensor:
    with _no_autocast(z):
        return backend_for(z).self_lse_backward(grad, z, lse, scale=scale)


@torch.library.custom_op("contrastive_core::row_lse", mutates_args=())
def _row_lse(q: Tensor, k: Tensor, scale: float, self_offset: int | None) -> Tensor:
    with _no_autocast(q):
        return backend_for(q).row_lse(q, k, scale=scale, self_offset=self_offset)


@torch.library.custom_op("contrastive_core::row_lse_backward", mutates_args=())
def _row_lse_backward(
    grad: Tensor, q: Tensor, k: Tensor, lse: Tensor, scale: float, self_offset: int | None, need_q: bool, need_k: bool
) -> tuple[Tensor, Tensor]:
    with _no_autocast(q):
        return backend_for(q).row_lse_backward(
            grad, q, k, lse, scale=scale, self_offset=self_offset, need_q=need_q, need_k=need_k
        )


def _no_autocast(operand: Tensor) -> torch.autocast:
    return torch.autocast(operand.device.type, enabled=False)


@_self_lse.register_fake
def _(z: Tensor, scale: float) -> Tensor:
    return z.new_empty(z.shape[0])


@_self_lse_backward.register_fake
def _(grad: Tensor, z: Tensor, lse: Tensor, scale: float) -> Tensor:
    return torch.empty_like(z)


@_row_lse.register_fake
def _(q: Tensor, k: Tensor, scale: float, self_offset: int | None) -> Tensor:
    return q.new_empty(q.shape[0])


@_row_lse_backward.register_fake
def _(
    grad: Tensor, q: Tensor, k: Tensor, lse: Tensor, scale: float, self_offset: int | None, need_q: bool, need_k: bool
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q if need_q else q[:0]), torch.empty_like(k if need_k else k[:0])


def _save_self(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    z, ctx.scale = inputs
    ctx.save_for_backward(z, output)


def _grad_self(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    z, lse = ctx.saved_tensors
    return torch.ops.contrastive_core.self_lse_backward(grad, z, lse, ctx.scale), None


def _save_rows(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    q, k, ctx.scale, ctx.self_offset = inputs
    ctx.save_for_backward(q, k, output)


def _grad_rows(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    q, k, lse = ctx.saved_tensors
    need_q, need_k = ctx.needs_input_grad[:2]
    grad_q, grad_k = torch.ops.contrastive_core.row_lse_backward(
        grad, q, k, lse, ctx.scale, ctx.self_offset, need_q, need_k
    )
    return grad_q if need_q else None, grad_k if need_k else None, None, None


def _twice(ctx: Any, *grads: Tensor) -> NoReturn:
    raise RuntimeError(
        "contrastive_core losses can be differentiated once, not twice: their backward pass recomputes the similarities "
        "and keeps no graph. For a second derivative write the loss with a full similarity matrix"
    )


_self_lse.register_autograd(_grad_self, setup_context=_save_self)
_row_lse.register_autograd(_grad_rows, setup_context=_save_rows)
# Without this a second derivative would come out silently wrong.
_self_lse_backward.register_autograd(_twice)
_row_lse_backward.register_autograd(_twice)
