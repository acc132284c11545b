"""The compiled operators: what autograd and torch.compile have to know about them, and the two functions of a backend.

Tensors on other devices go to the PyTorch path, except where the experimental kernels of CUDA are asked for
(`CONTRASTIVE_CORE_CUDA=1`, or `symmetric` for those that compute every similarity once) and agree with it.
"""

from __future__ import annotations

import functools
import os
import warnings
from typing import Any

import torch
from torch import Tensor

from contrastive_core.native.library import NotLoadedError, load, load_cuda
from contrastive_core.similarity import blocks
from contrastive_core.similarity.differentiation import register
from contrastive_core.similarity.native_directions import register_fakes
from contrastive_core.similarity.precision import full

CUDA_VARIABLE = "CONTRASTIVE_CORE_CUDA"
_OPS: Any = torch.ops.contrastive_core_native
_TYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


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
        return blocks.self_lse(z, scale=scale, skip=skip, classes=classes, among=among, max_norm=max_norm)
    z = z if z.dtype in _TYPES else full(z)
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
        return blocks.row_lse(q, k, scale=scale, self_offset=self_offset, classes=classes, among=among)
    q, k = (q, k) if q.dtype in _TYPES else (full(q), full(k))
    q_classes, k_classes = classes or (None, None)
    out: Tensor = _OPS.row_lse(q, k, scale, self_offset, q_classes, k_classes, among)
    return out
