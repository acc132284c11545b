"""Directions of vectors and similarities of pairs by the compiled library: one pass over the numbers each way."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from contrastive_core.similarity import directions

_OPS: Any = torch.ops.contrastive_core_native
_HALF = (torch.float16, torch.bfloat16)
_TYPES = (torch.float32, torch.float64)


class _UnitRows(torch.autograd.Function):
    """As `contrastive_core.similarity.directions`, which says why the gradient is written out."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, in_double: bool) -> Tensor:
        z: Tensor
        z, length = _OPS.unit_rows(x, in_double)
        ctx.save_for_backward(z, length)
        ctx.dtype = x.dtype
        return z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        out = _OPS.unit_rows_backward(grad, *ctx.saved_tensors, ctx.dtype == torch.float64)
        return out.to(ctx.dtype), None


class _PairedSimilarity(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        out: Tensor = _OPS.pair_similarity(a, b)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        da, db = _OPS.pair_similarity_backward(grad, *ctx.saved_tensors)
        return da, db


def unit_rows(x: Tensor, dtype: torch.dtype) -> Tensor:
    """See :func:`contrastive_core.losses.rows.unit_rows`."""
    known = x.dtype in _HALF or x.dtype in _TYPES
    if x.device.type != "cpu" or not known or dtype not in _TYPES or (x.dtype, dtype) == _TYPES[::-1]:
        return directions.unit_rows(x, dtype)
    z: Tensor = _UnitRows.apply(x, dtype == torch.float64)
    return z


def paired_similarity(a: Tensor, b: Tensor) -> Tensor:
    """See :func:`contrastive_core.losses.rows.paired_similarity`."""
    if a.device.type != "cpu" or a.dtype not in _TYPES or a.dtype != b.dtype:
        return directions.paired_similarity(a, b)
    out: Tensor = _PairedSimilarity.apply(a, b)
    return out


def register_fakes() -> None:
    """Shapes and types of the operators, for torch.compile."""

    def unit_rows(x: Tensor, in_double: bool) -> tuple[Tensor, Tensor]:
        dtype = torch.float64 if in_double else torch.float32
        return x.new_empty(x.shape, dtype=dtype), x.new_empty(x.shape[:-1], dtype=torch.float64)

    def unit_rows_backward(grad: Tensor, z: Tensor, length: Tensor, from_double: bool) -> Tensor:
        return z.new_empty(z.shape, dtype=torch.float64 if from_double else torch.float32)

    def pair_similarity(a: Tensor, b: Tensor) -> Tensor:
        return a.new_empty(a.shape[:-1], dtype=torch.float64)

    def pair_similarity_backward(grad: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return a.new_empty(a.shape), b.new_empty(b.shape)

    for fake in (unit_rows, unit_rows_backward, pair_similarity, pair_similarity_backward):
        torch.library.register_fake(f"contrastive_core_native::{fake.__name__}", fake)
