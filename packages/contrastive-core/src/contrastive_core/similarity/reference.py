"""Reference backend for tests: the formula with the whole matrix and plain autograd, in memory O(N^2)."""

from __future__ import annotations

import torch
from torch import Tensor

from contrastive_core.similarity.precision import exact_dtype, full


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
    del max_norm, half  # hints for faster implementations
    z = full(z)
    row, column = _indices(z, z)
    left_out = row == column
    if skip is not None:
        left_out = left_out | ((row - column).abs() == skip)
    return _lse(z, z, scale, left_out | _wrong_class((classes, classes) if classes is not None else None, among))


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
    del max_norm, half
    q, k = full(q), full(k)
    row, column = _indices(q, k)
    left_out = (column - row == self_offset) if self_offset is not None else torch.zeros_like(row == column)
    return _lse(q, k, scale, left_out | _wrong_class(classes, among))


def _indices(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    return torch.arange(len(q), device=q.device)[:, None], torch.arange(len(k), device=q.device)[None, :]


def _wrong_class(classes: tuple[Tensor, Tensor] | None, among: str) -> Tensor | bool:
    if classes is None:
        return False
    same = classes[0][:, None] == classes[1][None, :]
    return ~same if among == "same" else same


def _lse(q: Tensor, k: Tensor, scale: float, left_out: Tensor) -> Tensor:
    with torch.autocast(q.device.type, enabled=False):
        logits = (scale * (q @ k.T)).masked_fill(left_out, -torch.inf)
    # A row without candidates gives -inf, and no NaN in the backward pass.
    empty = left_out.all(1)
    return logits.masked_fill(empty[:, None], 0).logsumexp(1).masked_fill(empty, -torch.inf).to(exact_dtype(q))
