"""Native backend: the compiled operators, registered with autograd and torch.compile.

Tensors on other devices use the PyTorch backend, unless the experimental CUDA kernels are enabled
(`CONTRASTIVE_CORE_CUDA=1`, or `symmetric` for those that compute every similarity once) and pass their self-check.
"""

from __future__ import annotations

import functools
import os
import warnings
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from contrastive_core.native.library import NotLoadedError, load, load_cuda
from contrastive_core.similarity import torch_backend, unit_vectors
from contrastive_core.similarity.precision import full
from contrastive_core.similarity.torch_backend import register

CUDA_VARIABLE = "CONTRASTIVE_CORE_CUDA"
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


def _takes(x: Tensor) -> bool:
    return x.device.type == "cpu" or (x.device.type == "cuda" and cuda_is_used())


@functools.cache
def cuda_is_used() -> bool:
    """Whether the experimental kernels of CUDA compute: asked for, loaded, and found to agree with the PyTorch path."""
    wanted = os.environ.get(CUDA_VARIABLE, "0")
    if wanted not in ("1", "symmetric"):
        return False
    try:
        load_cuda(symmetric=wanted == "symmetric")
    except NotLoadedError as error:
        warnings.warn(f"contrastive_core: {CUDA_VARIABLE}={wanted}, but the library of CUDA is {error}", stacklevel=3)
        return False
    if worst := _disagreement("cuda"):
        warnings.warn(
            f"contrastive_core: the experimental CUDA kernels are not used: their {worst} differs from the PyTorch "
            "path's; please report the device and this message",
            stacklevel=3,
        )
        return False
    return True


def cuda_state() -> str:
    """What computes on CUDA devices here, and how to change it."""
    if not torch.cuda.is_available():
        return "no device"
    if cuda_is_used():
        return f"experimental kernels ({CUDA_VARIABLE}={os.environ[CUDA_VARIABLE]})"
    wanted = os.environ.get(CUDA_VARIABLE, "0")
    reason = "asked for, but not used: see the warning" if wanted in ("1", "symmetric") else "off"
    how = f"`python -m contrastive_core build --cuda` makes them, {CUDA_VARIABLE}=1 or =symmetric turns them on"
    return f"PyTorch path; experimental kernels are {reason} ({how})"


def _disagreement(device: str) -> str:
    """What the kernels get wrong on a little problem with ragged ends; empty if nothing."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.nn.functional.normalize(torch.randn(n, 37, generator=generator)).to(device) for n in (70, 129))
    gradient = torch.rand(70, generator=generator, dtype=torch.float64).to(device) + 0.1
    found = []
    for ops in (_OPS, torch.ops.contrastive_core):
        lse = ops.row_lse(x, y, 10.0, 3, None, None, "all")
        own = ops.self_lse(x, 10.0, 35, None, "all", 1.0)
        of_own = ops.self_lse_backward(gradient, own, x, 10.0, 35, None, "all", 1.0)
        dq, dk = ops.row_lse_backward(gradient, lse, x, y, 10.0, 3, None, None, "all", True, True)
        found.append((lse, own, of_own, dq, dk))
    names = ("row_lse", "self_lse", "gradient of self_lse", "gradient of queries", "gradient of keys")
    results = zip(names, *found, strict=True)
    return " and ".join(name for name, a, b in results if not (a - b).norm() <= 1e-5 * b.norm())


def self_lse(
    z: Tensor, *, scale: float, skip: int | None, classes: Tensor | None, among: str, max_norm: float | None
) -> Tensor:
    """See :func:`contrastive_core.similarity.self_lse`."""
    if not _takes(z):
        return torch_backend.self_lse(z, scale=scale, skip=skip, classes=classes, among=among, max_norm=max_norm)
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
) -> Tensor:
    """See :func:`contrastive_core.similarity.row_lse`."""
    if not _takes(q):
        return torch_backend.row_lse(q, k, scale=scale, self_offset=self_offset, classes=classes, among=among)
    q, k = (q, k) if q.dtype in _LSE_TYPES else (full(q), full(k))
    q_classes, k_classes = classes or (None, None)
    out: Tensor = _OPS.row_lse(q, k, scale, self_offset, q_classes, k_classes, among)
    return out


_HALF = (torch.float16, torch.bfloat16)
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
    known = x.dtype in _HALF or x.dtype in _UNIT_TYPES
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
