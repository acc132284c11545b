"""The block path in PyTorch, as operators that torch.compile keeps whole.

Tiles of the matrix are computed, used and dropped, and computed again in the backward pass, for which only the inputs
and the result are kept: O(N D).
"""

# ruff: noqa: PLR0917 - arguments of operators are positional

from __future__ import annotations

import torch
from torch import Tensor

from contrastive_core.similarity import rectangular, symmetric
from contrastive_core.similarity.differentiation import register
from contrastive_core.similarity.precision import full, full_precision
from contrastive_core.similarity.tiles import Candidates

_NAME = "contrastive_core::"
_SELF = "Tensor z, float scale, SymInt? skip, Tensor? classes, str among, float? max_norm"
_ROW = "Tensor q, Tensor k, float scale, SymInt? self_offset, Tensor? q_classes, Tensor? k_classes, str among"


def self_lse(
    z: Tensor, *, scale: float, skip: int | None, classes: Tensor | None, among: str, max_norm: float | None
) -> Tensor:
    """See :func:`contrastive_core.similarity.self_lse`."""
    out: Tensor = _self_lse(full(z), scale, skip, classes, among, max_norm)
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
    q_classes, k_classes = classes or (None, None)
    out: Tensor = _row_lse(full(q), full(k), scale, self_offset, q_classes, k_classes, among)
    return out


@torch.library.custom_op(f"{_NAME}self_lse", mutates_args=(), schema=f"({_SELF}) -> Tensor")
def _self_lse(
    z: Tensor, scale: float, skip: int | None, classes: Tensor | None, among: str, max_norm: float | None
) -> Tensor:
    candidates = _candidates_of_self(skip, classes, among)
    with full_precision(z.device):
        if _is_bounded(z, scale, max_norm):
            return symmetric.forward(z, candidates, scale=scale)
        return rectangular.forward(z, z, candidates, scale=scale)


@torch.library.custom_op(
    f"{_NAME}self_lse_backward", mutates_args=(), schema=f"(Tensor grad, Tensor lse, {_SELF}) -> Tensor"
)
def _self_lse_backward(
    grad: Tensor,
    lse: Tensor,
    z: Tensor,
    scale: float,
    skip: int | None,
    classes: Tensor | None,
    among: str,
    max_norm: float | None,
) -> Tensor:
    candidates = _candidates_of_self(skip, classes, among)
    with full_precision(z.device):
        if _is_bounded(z, scale, max_norm):
            return symmetric.backward(grad, lse, z, candidates, scale=scale)
        dq, dk = rectangular.backward(grad, lse, z, z, candidates, scale=scale, needs=(True, True))
        return dq.add_(dk)


@torch.library.custom_op(f"{_NAME}row_lse", mutates_args=(), schema=f"({_ROW}) -> Tensor")
def _row_lse(
    q: Tensor,
    k: Tensor,
    scale: float,
    self_offset: int | None,
    q_classes: Tensor | None,
    k_classes: Tensor | None,
    among: str,
) -> Tensor:
    candidates = _candidates_of_rows(self_offset, q_classes, k_classes, among)
    with full_precision(q.device):
        return rectangular.forward(q, k, candidates, scale=scale)


@torch.library.custom_op(
    f"{_NAME}row_lse_backward",
    mutates_args=(),
    schema=f"(Tensor grad, Tensor lse, {_ROW}, bool needs_q, bool needs_k) -> (Tensor, Tensor)",
)
def _row_lse_backward(
    grad: Tensor,
    lse: Tensor,
    q: Tensor,
    k: Tensor,
    scale: float,
    self_offset: int | None,
    q_classes: Tensor | None,
    k_classes: Tensor | None,
    among: str,
    needs_q: bool,
    needs_k: bool,
) -> tuple[Tensor, Tensor]:
    candidates = _candidates_of_rows(self_offset, q_classes, k_classes, among)
    with full_precision(q.device):
        return rectangular.backward(grad, lse, q, k, candidates, scale=scale, needs=(needs_q, needs_k))


def _is_bounded(z: Tensor, scale: float, max_norm: float | None) -> bool:
    """Whether every |S| is small enough to do without the maximum of the row, which costs the symmetry."""
    if max_norm is not None:
        return scale * max_norm**2 <= symmetric.limit(z.dtype)
    # NaN compares false, and the other path carries it through.
    return len(z) > 0 and bool(scale * z.square().sum(1).amax() <= symmetric.limit(z.dtype))


def _candidates_of_self(skip: int | None, classes: Tensor | None, among: str) -> Candidates:
    diagonals = (0,) if skip is None else (0, skip, -skip)
    return Candidates(diagonals, None if classes is None else (classes, classes), same=among == "same")


def _candidates_of_rows(
    self_offset: int | None, q_classes: Tensor | None, k_classes: Tensor | None, among: str
) -> Candidates:
    classes = None if q_classes is None or k_classes is None else (q_classes, k_classes)
    return Candidates(() if self_offset is None else (self_offset,), classes, same=among == "same")


register("contrastive_core")
