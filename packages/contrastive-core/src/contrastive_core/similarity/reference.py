"""Reference backend for tests, which applies plain autograd to the whole matrix, in O(N^2) memory."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from contrastive_core.similarity.precision import exact_dtype, full

NO_CLASS = 2**63 - 1
"""Class of unlabelled samples: a pair with such a sample counts neither as the same class nor as different classes.

The compiled library treats it like any other class, so that on the CPU callers must omit such rows.
"""


class Entries(NamedTuple):
    """Entries of the similarity matrix that a log-sum-exp includes, and what a backend may assume about them."""

    scale: float
    """One over the temperature."""
    excluded: int | None
    """Offset of the excluded diagonals: `skip` of the square form, `self_offset` of the rectangular one."""
    classes: tuple[Tensor, Tensor] | None
    """Classes of rows and columns, both ascending."""
    among: str
    """Classes of the candidates: all, same or other."""
    max_norm: float | None
    """Upper bound on the lengths of the vectors."""
    half: bool
    """Whether the vectors were computed from 16-bit numbers."""


def self_lse(z: Tensor, entries: Entries) -> Tensor:
    """Compute :func:`contrastive_core.similarity.self_lse` from the whole matrix."""
    z = full(z)
    row, column = _indices(z, z)
    left_out = row == column
    if entries.excluded is not None:
        left_out = left_out | ((row - column).abs() == entries.excluded)
    return _lse(z, z, entries, left_out)


def row_lse(q: Tensor, k: Tensor, entries: Entries) -> Tensor:
    """Compute :func:`contrastive_core.similarity.row_lse` from the whole matrix."""
    q, k = full(q), full(k)
    row, column = _indices(q, k)
    left_out = torch.zeros_like(row == column) if entries.excluded is None else column - row == entries.excluded
    return _lse(q, k, entries, left_out)


def _indices(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    return torch.arange(len(q), device=q.device)[:, None], torch.arange(len(k), device=q.device)[None, :]


def _lse(q: Tensor, k: Tensor, entries: Entries, left_out: Tensor) -> Tensor:
    if entries.classes is not None:
        q_class, k_class = entries.classes[0][:, None], entries.classes[1][None, :]
        same = q_class == k_class
        left_out = (
            left_out | (~same if entries.among == "same" else same) | (q_class == NO_CLASS) | (k_class == NO_CLASS)
        )
    with torch.autocast(q.device.type, enabled=False):
        logits = (entries.scale * (q @ k.T)).masked_fill(left_out, -torch.inf)
    # A row without candidates gives -inf, and no NaN in the backward pass.
    empty = left_out.all(1)
    return logits.masked_fill(empty[:, None], 0).logsumexp(1).masked_fill(empty, -torch.inf).to(exact_dtype(q))
