"""PyTorch backend: the similarity matrix is computed in tiles and never stored.

The tiles are recomputed in the backward pass, for which only the inputs and the result are kept: memory O(N D). The
operators are registered with autograd and torch.compile; there is no second derivative.

Square form. S is symmetric, and with E = exp(S) the gradient of sum_i g_i lse_i with respect to z is

    dz_i = scale * sum_j E_ij (a_i + a_j) z_j,    a_i = g_i / sum_j E_ij,

so the tiles on and above the diagonal serve both sides: half a matrix product N x N x D in the forward pass, half of
one to recompute the tiles, and one for the gradient. The exponential is taken without a shift, which is safe while |S|
stays well inside the range of the type (:func:`symmetric_limit`).

Rectangular form. The maximum of every row is carried along, so that any scale is safe. One matrix product Nq x Nk x D
in the forward pass; in the backward pass P_ij = exp(S_ij - lse_i) is recomputed, and

    dq_i = scale * g_i sum_j P_ij k_j,     dk_j = scale * sum_i g_i P_ij q_i.

scale * log2(e) is folded into the vectors, because exp2 is three times as fast as exp.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, NoReturn

import torch
from torch import Tensor

from contrastive_core.similarity import tensor_cores
from contrastive_core.similarity.precision import exact_dtype, full, full_precision

# Measured on one CPU: 512 is a tenth faster than 1024. A GPU needs larger tiles to be busy; that size is an estimate.
_BLOCK = {"cpu": 512}
_BLOCK_ELSEWHERE = 4096
# Rows of one class lie close to the diagonal: with small tiles, little is computed in vain beside it.
_BLOCK_WITHIN_CLASSES = 256


@dataclass(frozen=True)
class Candidates:
    """Which entries (row, column) of the matrix count."""

    diagonals: tuple[int, ...] = ()
    """Left out are the entries with column - row equal to one of these."""
    classes: tuple[Tensor, Tensor] | None = None
    """Of rows and columns, ascending; None: all entries count."""
    same: bool = False
    """Whether those of the same class count, or those of different ones."""

    def blank(self, tile: Tensor, rows: slice, columns: slice) -> Tensor:
        """The tile with -inf on the diagonals left out."""
        for diagonal in self.diagonals:
            offset = diagonal + rows.start - columns.start
            if -tile.shape[0] < offset < tile.shape[1]:
                tile.diagonal(offset).fill_(-torch.inf)
        return tile


def tiles(q: Tensor, k: Tensor, candidates: Candidates, *, upper: bool) -> Iterator[tuple[slice, slice, Tensor]]:
    """Rows, columns and q k^T of every tile in which an entry counts, -inf where one does not, in a fixed order.

    The next tile overwrites the last. With `upper` only tiles on and above the diagonal: the matrix is symmetric.
    """
    block = _block_size(q.device, candidates)
    row_pieces, column_pieces = _pieces(len(q), block), _pieces(len(k), block)
    kinds = _Kinds(candidates.classes, candidates.same, row_pieces, column_pieces) if candidates.classes else None
    buffer = q.new_empty(min(len(q), block) * min(len(k), block))
    for i, rows in enumerate(row_pieces):
        for j, columns in enumerate(column_pieces):
            kind = kinds.of(i, j) if kinds else _Kind.WANTED
            if kind is _Kind.UNWANTED or (upper and j < i):
                continue
            height, width = rows.stop - rows.start, columns.stop - columns.start
            tile = torch.mm(q[rows], k[columns].T, out=buffer[: height * width].view(height, width))
            if kinds and kind is _Kind.MIXED:
                tile.masked_fill_(kinds.unwanted(rows, columns), -torch.inf)
            yield rows, columns, candidates.blank(tile, rows, columns)


def _block_size(device: torch.device, candidates: Candidates) -> int:
    block = _BLOCK.get(device.type, _BLOCK_ELSEWHERE)
    return min(block, _BLOCK_WITHIN_CLASSES) if candidates.classes and candidates.same else block


def _pieces(n: int, block: int) -> list[slice]:
    return [slice(start, min(start + block, n)) for start in range(0, n, block)]


class _Kind(Enum):
    WANTED = 0
    UNWANTED = 1
    MIXED = 2


class _Kinds:
    """Which tiles hold pairs of the same class, of different ones, or both.

    The classes at the ends of each piece are read once; as classes ascend, they tell all without looking into a tile.
    """

    def __init__(
        self, classes: tuple[Tensor, Tensor], same: bool, rows: Sequence[slice], columns: Sequence[slice]
    ) -> None:
        self.classes, self.same = classes, same
        self.rows, self.columns = _ends(classes[0], rows), _ends(classes[1], columns)

    def of(self, i: int, j: int) -> _Kind:
        (first, last), (left, right) = self.rows[i], self.columns[j]
        if last < left or right < first:
            return _Kind.UNWANTED if self.same else _Kind.WANTED
        if first == last == left == right:
            return _Kind.WANTED if self.same else _Kind.UNWANTED
        return _Kind.MIXED

    def unwanted(self, rows: slice, columns: slice) -> Tensor:
        row, column = self.classes[0][rows, None], self.classes[1][None, columns]
        return row != column if self.same else row == column


def _ends(classes: Tensor, pieces: Sequence[slice]) -> list[tuple[int, int]]:
    if not pieces:
        return []
    ends = torch.tensor([[piece.start, piece.stop - 1] for piece in pieces], device=classes.device)
    return [(first, last) for first, last in classes[ends].tolist()]


# ruff: noqa: PLR0917 - arguments of operators are positional


_NAME = "contrastive_core::"
_SELF = "Tensor z, float scale, SymInt? skip, Tensor? classes, str among, float? max_norm"
_ROW = "Tensor q, Tensor k, float scale, SymInt? self_offset, Tensor? q_classes, Tensor? k_classes, str among"
# Arguments that the operators of the compiled library do without.
_SELF_MORE = "bool half=False"
_ROW_MORE = "float? max_norm=None, bool half=False"


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
    out: Tensor = _self_lse(full(z), scale, skip, classes, among, max_norm, half)
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
    q_classes, k_classes = classes or (None, None)
    out: Tensor = _row_lse(full(q), full(k), scale, self_offset, q_classes, k_classes, among, max_norm, half)
    return out


@torch.library.custom_op(f"{_NAME}self_lse", mutates_args=(), schema=f"({_SELF}, {_SELF_MORE}) -> Tensor")
def _self_lse(
    z: Tensor,
    scale: float,
    skip: int | None,
    classes: Tensor | None,
    among: str,
    max_norm: float | None,
    half: bool = False,
) -> Tensor:
    candidates = _candidates_of_self(skip, classes, among)
    if max_norm is not None and _on_tensor_cores(z, z, candidates, scale, max_norm):
        problem = tensor_cores.Problem(z, None, candidates.diagonals, candidates.classes, scale, max_norm, half)
        return tensor_cores.forward(problem)
    with full_precision(z.device):
        if _is_bounded(z, scale, max_norm):
            return symmetric_forward(z, candidates, scale=scale)
        return rectangular_forward(z, z, candidates, scale=scale)


@torch.library.custom_op(
    f"{_NAME}self_lse_backward", mutates_args=(), schema=f"(Tensor grad, Tensor lse, {_SELF}, {_SELF_MORE}) -> Tensor"
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
    half: bool = False,
) -> Tensor:
    candidates = _candidates_of_self(skip, classes, among)
    if max_norm is not None and _on_tensor_cores(z, z, candidates, scale, max_norm):
        problem = tensor_cores.Problem(z, None, candidates.diagonals, candidates.classes, scale, max_norm, half)
        return tensor_cores.backward(problem, grad, lse)[0]
    with full_precision(z.device):
        if _is_bounded(z, scale, max_norm):
            return symmetric_backward(grad, lse, z, candidates, scale=scale)
        dq, dk = rectangular_backward(grad, lse, z, z, candidates, scale=scale, needs=(True, True))
        return dq.add_(dk)


@torch.library.custom_op(f"{_NAME}row_lse", mutates_args=(), schema=f"({_ROW}, {_ROW_MORE}) -> Tensor")
def _row_lse(
    q: Tensor,
    k: Tensor,
    scale: float,
    self_offset: int | None,
    q_classes: Tensor | None,
    k_classes: Tensor | None,
    among: str,
    max_norm: float | None = None,
    half: bool = False,
) -> Tensor:
    candidates = _candidates_of_rows(self_offset, q_classes, k_classes, among)
    if max_norm is not None and _on_tensor_cores(q, k, candidates, scale, max_norm):
        problem = tensor_cores.Problem(q, k, candidates.diagonals, candidates.classes, scale, max_norm, half)
        return tensor_cores.forward(problem)
    with full_precision(q.device):
        return rectangular_forward(q, k, candidates, scale=scale)


@torch.library.custom_op(
    f"{_NAME}row_lse_backward",
    mutates_args=(),
    schema=f"(Tensor grad, Tensor lse, {_ROW}, bool needs_q, bool needs_k, {_ROW_MORE}) -> (Tensor, Tensor)",
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
    max_norm: float | None = None,
    half: bool = False,
) -> tuple[Tensor, Tensor]:
    candidates = _candidates_of_rows(self_offset, q_classes, k_classes, among)
    needs = (needs_q, needs_k)
    if max_norm is not None and _on_tensor_cores(q, k, candidates, scale, max_norm):
        problem = tensor_cores.Problem(q, k, candidates.diagonals, candidates.classes, scale, max_norm, half)
        return tensor_cores.backward(problem, grad, lse, needs=needs)
    with full_precision(q.device):
        return rectangular_backward(grad, lse, q, k, candidates, scale=scale, needs=needs)


def _on_tensor_cores(q: Tensor, k: Tensor, candidates: Candidates, scale: float, max_norm: float) -> bool:
    """Whether exp(S) needs no maximum, and the tensor cores of a GPU are to compute it.

    Candidates of the same class lie in small blocks, which the tiles here compute without their surroundings.
    """
    return (
        scale * max_norm**2 <= symmetric_limit(torch.float32)
        and not (candidates.classes and candidates.same)
        and tensor_cores.take(q, k)
    )


def _is_bounded(z: Tensor, scale: float, max_norm: float | None) -> bool:
    """Whether every |S| is small enough to do without the maximum of the row, which costs the symmetry."""
    if max_norm is not None:
        return scale * max_norm**2 <= symmetric_limit(z.dtype)
    # NaN compares false, and the other path carries it through.
    return len(z) > 0 and bool(scale * z.square().sum(1).amax() <= symmetric_limit(z.dtype))


def _candidates_of_self(skip: int | None, classes: Tensor | None, among: str) -> Candidates:
    diagonals = (0,) if skip is None else (0, skip, -skip)
    return Candidates(diagonals, None if classes is None else (classes, classes), same=among == "same")


def _candidates_of_rows(
    self_offset: int | None, q_classes: Tensor | None, k_classes: Tensor | None, among: str
) -> Candidates:
    classes = None if q_classes is None or k_classes is None else (q_classes, k_classes)
    return Candidates(() if self_offset is None else (self_offset,), classes, same=among == "same")


_LIMIT = {torch.float32: 40.0, torch.float64: 300.0}


def symmetric_limit(dtype: torch.dtype) -> float:
    """Largest |S| for which sums of exp(S), their inverses and products with gradients are normal numbers.

    exp(40) = 2e17: sums over 1e6 rows stay below 1e24, inverses above 1e-24, where float32 reaches from 1e-38 to 3e38.
    """
    return _LIMIT[dtype]


def symmetric_forward(z: Tensor, candidates: Candidates, *, scale: float) -> Tensor:
    """Log-sum-exp [N] of each row over its candidates, which must be symmetric."""
    folded = z.contiguous() * _factor(scale)
    total = z.new_zeros(len(z), dtype=exact_dtype(z))
    for rows, columns, s in tiles(folded, folded, candidates, upper=True):
        e = s.exp2_()
        total[rows] += e.sum(1)
        if rows != columns:
            total[columns] += e.sum(0)
    return total.log_()


def symmetric_backward(grad: Tensor, lse: Tensor, z: Tensor, candidates: Candidates, *, scale: float) -> Tensor:
    """Gradient [N, D] with respect to z."""
    folded = z.contiguous() * _factor(scale)
    # A row without candidates has lse -inf: no gradient.
    weight = torch.where(lse == -torch.inf, 0.0, grad * torch.exp(-lse)).to(z.dtype)
    out = torch.zeros_like(folded)
    buffer: Tensor | None = None
    for rows, columns, s in tiles(folded, folded, candidates, upper=True):
        # The first tile is the largest.
        buffer = torch.empty_like(s) if buffer is None else buffer
        both = torch.add(weight[rows, None], weight[columns], out=buffer.view(-1)[: s.numel()].view_as(s))
        e = s.exp2_().mul_(both)
        out[rows].addmm_(e, folded[columns])
        if rows != columns:
            out[columns].addmm_(e.T, folded[rows])
    return out.mul_(scale / _factor(scale))


def _factor(scale: float) -> float:
    return math.sqrt(scale * math.log2(math.e))


_LN2 = math.log(2)


def rectangular_forward(q: Tensor, k: Tensor, candidates: Candidates, *, scale: float) -> Tensor:
    """Log-sum-exp [Nq] of each query over its candidates."""
    top = q.new_full((len(q),), -torch.inf)
    total = q.new_zeros(len(q), dtype=exact_dtype(q))
    for rows, _, s in tiles(_fold(q, scale), k.contiguous(), candidates, upper=False):
        highest = torch.maximum(top[rows], s.amax(1))
        # -inf: nothing counted so far, and -inf - -inf would be NaN.
        shift = highest.masked_fill(highest == -torch.inf, 0.0)
        total[rows] *= torch.exp2(top[rows] - shift)
        total[rows] += s.sub_(shift[:, None]).exp2_().sum(1)
        top[rows] = highest
    return total.log2_().add_(top).mul_(_LN2)


def rectangular_backward(
    grad: Tensor, lse: Tensor, q: Tensor, k: Tensor, candidates: Candidates, *, scale: float, needs: tuple[bool, bool]
) -> tuple[Tensor, Tensor]:
    """Gradients with respect to q and k; one that is not needed is an empty tensor."""
    folded, k = _fold(q, scale), k.contiguous()
    dq = torch.zeros_like(folded) if needs[0] else q.new_empty(0)
    dk = torch.zeros_like(k) if needs[1] else k.new_empty(0)
    log2_total = torch.where(lse == -torch.inf, 0.0, lse / _LN2)
    # What rounding takes from the exponent, the same for a whole row, goes into its factor.
    shift = log2_total.to(q.dtype)
    weight = (grad * torch.exp2(shift - log2_total)).to(q.dtype)
    for rows, columns, s in tiles(folded, k, candidates, upper=False):
        p = s.sub_(shift[rows, None]).exp2_().mul_(weight[rows, None])
        if needs[0]:
            dq[rows].addmm_(p, k[columns])
        if needs[1]:
            dk[columns].addmm_(p.T, folded[rows])
    return dq.mul_(scale), dk.mul_(_LN2)


def _fold(q: Tensor, scale: float) -> Tensor:
    return q.contiguous() * (scale / _LN2)


def register(namespace: str) -> None:
    """Register fake tensors and derivatives of the four operators of a namespace."""
    ops = getattr(torch.ops, namespace)

    def differentiate_self(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        lse, z, classes = ctx.saved_tensors
        dz = ops.self_lse_backward(grad, lse, z, ctx.scale, ctx.skip, classes, ctx.among, ctx.max_norm, *ctx.more)
        return dz, *[None] * (5 + len(ctx.more))

    def differentiate_rows(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        lse, q, k, q_classes, k_classes = ctx.saved_tensors
        needs_q, needs_k = ctx.needs_input_grad[:2]
        dq, dk = ops.row_lse_backward(
            grad, lse, q, k, ctx.scale, ctx.self_offset, q_classes, k_classes, ctx.among, needs_q, needs_k, *ctx.more
        )
        return dq if needs_q else None, dk if needs_k else None, *[None] * (5 + len(ctx.more))

    for name, fake in _FAKES.items():
        torch.library.register_fake(f"{namespace}::{name}", fake)
    torch.library.register_autograd(f"{namespace}::self_lse", differentiate_self, setup_context=_save_self)
    torch.library.register_autograd(f"{namespace}::row_lse", differentiate_rows, setup_context=_save_rows)
    # Without these, a second derivative would leave out the gradient's dependence on the inputs.
    for name in ("self_lse_backward", "row_lse_backward"):
        torch.library.register_autograd(f"{namespace}::{name}", _refuse_second_derivative)


def _lse_like(x: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape[:1], dtype=exact_dtype(x))


def _contiguous_like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _self_gradient(grad: Tensor, lse: Tensor, z: Tensor, *_: Any) -> Tensor:
    return _contiguous_like(z)


def _row_gradients(grad: Tensor, lse: Tensor, q: Tensor, k: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    needs_q, needs_k = others[5:7]
    return _contiguous_like(q) if needs_q else q.new_empty(0), _contiguous_like(k) if needs_k else k.new_empty(0)


_FAKES: dict[str, Callable[..., Any]] = {
    "self_lse": _lse_like,
    "self_lse_backward": _self_gradient,
    "row_lse": _lse_like,
    "row_lse_backward": _row_gradients,
}


def _save_self(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    z, ctx.scale, ctx.skip, classes, ctx.among, ctx.max_norm, *ctx.more = inputs
    ctx.save_for_backward(output, z, classes)


def _save_rows(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    q, k, ctx.scale, ctx.self_offset, q_classes, k_classes, ctx.among, *ctx.more = inputs
    ctx.save_for_backward(output, q, k, q_classes, k_classes)


def _refuse_second_derivative(ctx: Any, *grads: Tensor) -> NoReturn:
    raise RuntimeError(
        "contrastive_core: losses can be differentiated once, not twice; where a second derivative is needed, write "
        "the loss with the full similarity matrix"
    )


register("contrastive_core")
