"""Native backend: the compiled operators, registered with autograd and torch.compile.

Tensors on other devices use the PyTorch backend.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from contrastive_core.native.library import load
from contrastive_core.similarity import torch_backend, unit_vectors
from contrastive_core.similarity.precision import HALF_DTYPES, full
from contrastive_core.similarity.torch_backend import register

_OPS: Any = torch.ops.contrastive_core_native
_LSE_TYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@functools.cache
def load_operators() -> None:
    """Load the library and make its operators known to autograd, once.

    Raises:
        NotLoadedError: see :func:`contrastive_core.native.library.load`.
    """
    load()
    register("contrastive_core_native")
    register_fakes()


def self_lse(
    z: Tensor,
    *,
    scale: float,
    skip: int | None,
    classes: Tensor | None,
    among: str,
    max_norm: float | None,
    half: bool,
) -> Tensor:
    """See :func:`contrastive_core.similarity.self_lse`."""
    if z.device.type != "cpu":
        return torch_backend.self_lse(
            z, scale=scale, skip=skip, classes=classes, among=among, max_norm=max_norm, half=half
        )
    z = z if z.dtype in _LSE_TYPES else full(z)
    out: Tensor = _OPS.self_lse(z, scale, skip, classes, among, max_norm)
    return out


def row_lse(
    q: Tensor,
    k: Tensor,
    *,
    scale: float,
    self_offset: int | None,
    classes: tuple[Tensor, Tensor] | None,
    among: str,
    max_norm: float | None,
    half: bool,
) -> Tensor:
    """See :func:`contrastive_core.similarity.row_lse`."""
    if q.device.type != "cpu":
        return torch_backend.row_lse(
            q, k, scale=scale, self_offset=self_offset, classes=classes, among=among, max_norm=max_norm, half=half
        )
    q, k = (q, k) if q.dtype in _LSE_TYPES else (full(q), full(k))
    q_classes, k_classes = classes or (None, None)
    out: Tensor = _OPS.row_lse(q, k, scale, self_offset, q_classes, k_classes, among)
    return out


_UNIT_TYPES = (torch.float32, torch.float64)


class _UnitRows(torch.autograd.Function):
    """As `contrastive_core.similarity.unit_vectors`, which says why the gradient is written out."""

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
    """See :func:`contrastive_core.losses._inputs.unit_rows`."""
    known = x.dtype in HALF_DTYPES or x.dtype in _UNIT_TYPES
    if x.device.type != "cpu" or not known or dtype not in _UNIT_TYPES or (x.dtype, dtype) == _UNIT_TYPES[::-1]:
        return unit_vectors.unit_rows(x, dtype)
    z: Tensor = _UnitRows.apply(x, dtype == torch.float64)
    return z


def paired_similarity(a: Tensor, b: Tensor) -> Tensor:
    """See :func:`contrastive_core.losses._inputs.paired_similarity`."""
    if a.device.type != "cpu" or a.dtype not in _UNIT_TYPES or a.dtype != b.dtype:
        return unit_vectors.paired_similarity(a, b)
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
