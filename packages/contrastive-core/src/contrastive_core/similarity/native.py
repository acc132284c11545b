"""The compiled operators: what autograd and torch.compile have to know about them, and the two functions of a backend.

Tensors that are not on the CPU go to the PyTorch path.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from contrastive_core.native.library import load
from contrastive_core.similarity import blocks
from contrastive_core.similarity.differentiation import register
from contrastive_core.similarity.precision import full

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


def self_lse(
    z: Tensor, *, scale: float, skip: int | None, classes: Tensor | None, among: str, max_norm: float | None
) -> Tensor:
    """See :func:`contrastive_core.similarity.self_lse`."""
    if z.device.type != "cpu":
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
    if q.device.type != "cpu":
        return blocks.row_lse(q, k, scale=scale, self_offset=self_offset, classes=classes, among=among)
    q, k = (q, k) if q.dtype in _TYPES else (full(q), full(k))
    q_classes, k_classes = classes or (None, None)
    out: Tensor = _OPS.row_lse(q, k, scale, self_offset, q_classes, k_classes, among)
    return out
