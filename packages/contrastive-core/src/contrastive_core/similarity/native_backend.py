"""Native backend, which calls the operators of the compiled library for tensors on the CPU.

Tensors on other devices use the PyTorch backend.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from contrastive_core.native.library import load
from contrastive_core.similarity import autograd
from contrastive_core.similarity.precision import HALF_DTYPES
from contrastive_core.similarity.reference import Entries

_OPS: Any = torch.ops.contrastive_core_native
_UNIT_TYPES = (torch.float32, torch.float64)


@functools.cache
def load_operators() -> None:
    """Load the library and register its operators with torch.compile, once per process.

    Raises:
        NotLoadedError: The library cannot be loaded, see :func:`contrastive_core.native.library.load`.
    """
    load()
    autograd.register("contrastive_core_native")
    register_fakes()


def self_lse(z: Tensor, entries: Entries) -> Tensor:
    """Compute :func:`contrastive_core.similarity.self_lse`, with the compiled library if it supports the tensor."""
    return autograd.self_lse(z, entries, compiled=_takes(z))


def row_lse(q: Tensor, k: Tensor, entries: Entries) -> Tensor:
    """Compute :func:`contrastive_core.similarity.row_lse`, with the compiled library if it supports the tensors."""
    return autograd.row_lse(q, k, entries, compiled=_takes(q))


def _takes(x: Tensor) -> bool:
    return x.device.type == "cpu" and (x.dtype in _UNIT_TYPES or x.dtype in HALF_DTYPES)


def unit_rows(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Compute :func:`contrastive_core.losses._inputs.unit_rows`, with the compiled library if it supports the types."""
    is_supported = x.dtype in HALF_DTYPES or x.dtype in _UNIT_TYPES
    if x.device.type != "cpu" or not is_supported or dtype not in _UNIT_TYPES or (x.dtype, dtype) == _UNIT_TYPES[::-1]:
        return autograd.unit_rows(x, dtype)
    return autograd.differentiable_unit_rows(x, dtype, _unit_forward, _unit_backward)


def _unit_forward(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    z, length = _OPS.unit_rows(x, dtype == torch.float64)
    return z, length[..., None]


def _unit_backward(grad: Tensor, z: Tensor, length: Tensor, dtype: torch.dtype) -> Tensor:
    out: Tensor = _OPS.unit_rows_backward(grad, z, length[..., 0], dtype == torch.float64)
    return out.to(dtype)


def paired_similarity(a: Tensor, b: Tensor) -> Tensor:
    """Compute :func:`contrastive_core.losses._inputs.paired_similarity`, with the compiled library if possible."""
    if a.device.type != "cpu" or a.dtype not in _UNIT_TYPES or a.dtype != b.dtype:
        return autograd.paired_similarity(a, b)
    function = _TracedPairedSimilarity if torch.compiler.is_compiling() else _PairedSimilarity
    out: Tensor = function.apply(a, b)
    return out


class _PairedSimilarity(autograd.Looped):
    """Compiled form of `autograd.paired_similarity`, whose docstring explains why the gradient is b - a."""

    @staticmethod
    def forward(a: Tensor, b: Tensor) -> Tensor:
        out: Tensor = _OPS.pair_similarity(a, b)
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        autograd.remember(ctx, *inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        a, b = ctx.saved_tensors
        if grad is None:
            return None, None
        if not torch.is_grad_enabled():
            da, db = _OPS.pair_similarity_backward(grad, a, b)
            return da, db
        towards = (grad[:, None] * (b - a)).to(a.dtype)
        return towards, -towards

    @staticmethod
    def jvp(ctx: Any, a_tangent: Tensor | None, b_tangent: Tensor | None) -> Tensor:
        a, b = ctx.saved_tensors
        parts = [
            (x * y).sum(1, dtype=torch.float64) for x, y in ((a_tangent, b - a), (b_tangent, a - b)) if x is not None
        ]
        out: Tensor = sum(parts[1:], parts[0])
        return out


_TracedPairedSimilarity = autograd.traceable(_PairedSimilarity)


def register_fakes() -> None:
    """Register the shapes and types of the operators for torch.compile."""

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
