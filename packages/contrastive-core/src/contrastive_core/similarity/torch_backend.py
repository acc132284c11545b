"""PyTorch backend, which computes the similarity matrix in tiles and never stores it.

The backward pass recomputes the tiles, so that only the inputs and the result are saved, in O(N D) memory. The four
operators are registered with torch.compile; :mod:`contrastive_core.similarity.autograd` makes them differentiable.

Square form. S is symmetric, and with E = exp(S) the gradient of sum_i g_i lse_i with respect to z is

    dz_i = scale * sum_j E_ij (a_i + a_j) z_j,    a_i = g_i / sum_j E_ij,

so that the tiles on and above the diagonal are sufficient. The forward pass takes half a matrix product N x N x D; the
backward pass takes another half to recompute the tiles, and one product for the gradient. The exponential is computed
without a shift, which is safe while |S| is well inside the range of the type (:func:`symmetric_limit`).

Rectangular form. The maximum of every row is tracked, so that any scale is safe. The forward pass takes one matrix
product Nq x Nk x D. The backward pass recomputes P_ij = exp(S_ij - lse_i) and

    dq_i = scale * g_i sum_j P_ij k_j,     dk_j = scale * sum_i g_i P_ij q_i.

scale * log2(e) is folded into the vectors, because exp2 is three times as fast as exp.
"""

# ruff: noqa: PLR0917 - arguments of operators are positional

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from contrastive_core.similarity import tensor_cores
from contrastive_core.similarity.precision import exact_dtype, full, full_precision
from contrastive_core.similarity.reference import NO_CLASS
from contrastive_core.synchronization import free_to_read

# On the CPU measured, 512 is a tenth faster than 1024. A GPU needs larger tiles; their size is an estimate.
_BLOCK = {"cpu": 512}
_BLOCK_ELSEWHERE = 4096
# Pairs of one class are close to the diagonal; small tiles contain few other pairs.
_BLOCK_WITHIN_CLASSES = 256

# Smallest share of negligible rows for which selecting the others saves time; measured on one CPU.
_WORTH_LEAVING_OUT = 0.3
# After this many tiles in succession without rows to omit, stop checking: a check costs a fifth of a product.
_MISSES = 8

_LN2 = math.log(2)
_NAME = "contrastive_core::"
_SELF = "Tensor z, float scale, SymInt? skip, Tensor? classes, str among, float? max_norm"
_ROW = "Tensor q, Tensor k, float scale, SymInt? self_offset, Tensor? q_classes, Tensor? k_classes, str among"
# Arguments that the operators of the compiled library do not have.
_SELF_MORE = "bool half=False"
_ROW_MORE = "float? max_norm=None, bool half=False"


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
    candidates = candidates_of(diagonals_of_self(skip), classes, classes, among)
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
    candidates = candidates_of(diagonals_of_self(skip), classes, classes, among)
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
    candidates = candidates_of(diagonals_of_rows(self_offset), q_classes, k_classes, among)
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
    candidates = candidates_of(diagonals_of_rows(self_offset), q_classes, k_classes, among)
    needs = (needs_q, needs_k)
    if max_norm is not None and _on_tensor_cores(q, k, candidates, scale, max_norm):
        problem = tensor_cores.Problem(q, k, candidates.diagonals, candidates.classes, scale, max_norm, half)
        return tensor_cores.backward(problem, grad, lse, needs=needs)
    with full_precision(q.device):
        return rectangular_backward(grad, lse, q, k, candidates, scale=scale, needs=needs)


_CANDIDATES = "Tensor? q_classes, Tensor? k_classes, float scale, int[] diagonals, str among"
_SECOND = f"Tensor grad, Tensor lse, Tensor q, Tensor k, Tensor? u, Tensor? v, {_CANDIDATES}"


# These functions are operators although torch.compile never calls them: `is_grads_batched` and `vectorize=True` of
# torch.autograd call an operator once per element of the batch, but pass the whole batch to other functions.
@torch.library.custom_op(
    f"{_NAME}lse_second_order",
    mutates_args=(),
    schema=f"({_SECOND}, bool only_rate) -> (Tensor, Tensor, Tensor)",
)
def lse_second_order(
    grad: Tensor,
    lse: Tensor,
    q: Tensor,
    k: Tensor,
    u: Tensor | None,
    v: Tensor | None,
    q_classes: Tensor | None,
    k_classes: Tensor | None,
    scale: float,
    diagonals: Sequence[int],
    among: str,
    only_rate: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute :func:`second_order` as a custom operator."""
    candidates = candidates_of(diagonals, q_classes, k_classes, among)
    return second_order(grad, lse, q, k, u, v, candidates, scale=scale, only_rate=only_rate)


@torch.library.custom_op(
    f"{_NAME}lse_third_order",
    mutates_args=(),
    schema=f"(Tensor? rate_grad, Tensor? q_grad, Tensor? k_grad, {_SECOND}) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def lse_third_order(
    rate_grad: Tensor | None,
    q_grad: Tensor | None,
    k_grad: Tensor | None,
    grad: Tensor,
    lse: Tensor,
    q: Tensor,
    k: Tensor,
    u: Tensor | None,
    v: Tensor | None,
    q_classes: Tensor | None,
    k_classes: Tensor | None,
    scale: float,
    diagonals: Sequence[int],
    among: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Compute :func:`third_order` as a custom operator."""
    u, v = (torch.zeros_like(x) if y is None else y for x, y in ((q, u), (k, v)))
    candidates = candidates_of(diagonals, q_classes, k_classes, among)
    return third_order((rate_grad, q_grad, k_grad), (grad, lse, q, k, u, v), candidates, scale=scale)


def _on_tensor_cores(q: Tensor, k: Tensor, candidates: Candidates, scale: float, max_norm: float) -> bool:
    """Return whether exp(S) needs no row maximum and should be computed on the tensor cores of a GPU.

    Pairs of the same class form small blocks, for which the small tiles of this backend are faster.
    """
    return (
        scale * max_norm**2 <= symmetric_limit(torch.float32)
        and not (candidates.classes and candidates.same)
        and tensor_cores.take(q, k)
    )


def _is_bounded(z: Tensor, scale: float, max_norm: float | None) -> bool:
    """Return whether every |S| is small enough to omit the row maximum, which would break the symmetry."""
    if max_norm is not None:
        return scale * max_norm**2 <= symmetric_limit(z.dtype)
    # NaN compares false; the rectangular form propagates it.
    return len(z) > 0 and bool(scale * z.square().sum(1).amax() <= symmetric_limit(z.dtype))


def candidates_of(
    diagonals: Sequence[int], q_classes: Tensor | None, k_classes: Tensor | None, among: str
) -> Candidates:
    """Build the candidates that exclude `diagonals` and are restricted to the classes selected by `among`."""
    classes = None if q_classes is None or k_classes is None else (q_classes, k_classes)
    return Candidates(tuple(diagonals), classes, same=among == "same")


def diagonals_of_self(skip: int | None) -> tuple[int, ...]:
    """Return the diagonals excluded from the square form, see :func:`contrastive_core.similarity.self_lse`."""
    return (0,) if skip is None else (0, skip, -skip)


def diagonals_of_rows(self_offset: int | None) -> tuple[int, ...]:
    """Return the diagonals excluded from the rectangular form, see :func:`contrastive_core.similarity.row_lse`."""
    return () if self_offset is None else (self_offset,)


_LIMIT = {torch.float32: 40.0, torch.float64: 300.0}


def symmetric_limit(dtype: torch.dtype) -> float:
    """Return the largest |S| for which sums of exp(S), their inverses and products with gradients are normal numbers.

    exp(40) is 2e17. Sums over 1e6 rows are therefore below 1e24 and their inverses above 1e-24, while float32 covers
    1e-38 to 3e38.
    """
    return _LIMIT[dtype]


def symmetric_forward(z: Tensor, candidates: Candidates, *, scale: float) -> Tensor:
    """Compute the log-sum-exp [N] of each row over its candidates, which must be symmetric."""
    folded = z.contiguous() * _factor(scale)
    total = z.new_zeros(len(z), dtype=exact_dtype(z))
    for rows, columns, s in tiles(folded, folded, candidates, upper=True):
        e = s.exp2_()
        total[rows] += e.sum(1)
        if rows != columns:
            total[columns] += e.sum(0)
    return total.log_()


def symmetric_backward(grad: Tensor, lse: Tensor, z: Tensor, candidates: Candidates, *, scale: float) -> Tensor:
    """Compute the gradient [N, D] with respect to z."""
    folded = z.contiguous() * _factor(scale)
    # A row without candidates has lse -inf: no gradient.
    weight = torch.where(lse == -torch.inf, 0.0, grad * torch.exp(-lse)).to(z.dtype)
    out = torch.zeros_like(folded)
    sieve = _Sieve(_least_entry(grad, len(z), lse, z, z, scale))
    buffer: Tensor | None = None
    for rows, columns, s in tiles(folded, folded, candidates, upper=True):
        # The first tile is the largest.
        buffer = torch.empty_like(s) if buffer is None else buffer
        pair_weight = torch.add(weight[rows, None], weight[columns], out=buffer.view(-1)[: s.numel()].view_as(s))
        e = s.exp2_().mul_(pair_weight)
        indices = sieve.rows(e)
        if indices is None:
            out[rows].addmm_(e, folded[columns])
            if rows != columns:
                out[columns].addmm_(e.T, folded[rows])
        elif len(indices):
            e = e[indices]
            out[rows].index_add_(0, indices, e @ folded[columns])
            if rows != columns:
                out[columns].addmm_(e.T, folded[rows][indices])
    return out.mul_(scale / _factor(scale))


def _least_entry(grad: Tensor, count: int, lse: Tensor, q: Tensor, k: Tensor, scale: float) -> float | None:
    """Return the bound below which entries of the weights are negligible against the rounding of the gradient.

    A row sums at most `count` entries. Omitting all entries below the bound changes the gradient by less than an eighth
    of the type's precision, relative to the norm of `grad`. At low temperatures most entries are that small. The result
    is None if there are no such entries, or if the device is a GPU, because checking would synchronise with it.
    """
    if not free_to_read(q) or q.numel() == 0 or k.numel() == 0:
        return None
    size = float(torch.linalg.vector_norm(grad)) / math.sqrt(grad.numel())
    least = torch.finfo(q.dtype).eps / 8 * size / count
    lengths = (float(x.square().sum(1).amax()) for x in (q, k))
    lowest = math.exp(-min(scale * math.sqrt(math.prod(lengths)), 700.0))
    weights = (grad.abs() * torch.exp(-lse)).masked_fill(lse == -torch.inf, torch.inf)
    # NaN compares false, so that nothing is omitted.
    return least if least > 0 and lowest * float(weights.amin()) < least else None


class _Sieve:
    """Selection of the rows of a tile of weights that are not negligible."""

    def __init__(self, least: float | None) -> None:
        self.least = least
        self.misses = 0

    def rows(self, weights: Tensor) -> Tensor | None:
        """Return the indices of the rows with an entry of at least `least`, or None if nearly all rows have one."""
        if self.least is None:
            return None
        low, high = weights.aminmax(dim=1)
        small = (high < self.least) & (low > -self.least)
        if int(small.sum()) > _WORTH_LEAVING_OUT * len(weights):
            self.misses = 0
            return (~small).nonzero().flatten()
        self.misses += 1
        if self.misses == _MISSES:
            self.least = None
        return None


def _factor(scale: float) -> float:
    return math.sqrt(scale * math.log2(math.e))


def rectangular_forward(q: Tensor, k: Tensor, candidates: Candidates, *, scale: float) -> Tensor:
    """Compute the log-sum-exp [Nq] of each query over its candidates."""
    top = q.new_full((len(q),), -torch.inf)
    total = q.new_zeros(len(q), dtype=exact_dtype(q))
    for rows, _, s in tiles(_fold(q, scale), k.contiguous(), candidates, upper=False):
        highest = torch.maximum(top[rows], s.amax(1))
        # -inf: no candidate so far, and -inf - -inf would be NaN.
        shift = highest.masked_fill(highest == -torch.inf, 0.0)
        total[rows] *= torch.exp2(top[rows] - shift)
        total[rows] += s.sub_(shift[:, None]).exp2_().sum(1)
        top[rows] = highest
    return total.log2_().add_(top).mul_(_LN2)


def rectangular_backward(
    grad: Tensor, lse: Tensor, q: Tensor, k: Tensor, candidates: Candidates, *, scale: float, needs: tuple[bool, bool]
) -> tuple[Tensor, Tensor]:
    """Compute the gradients with respect to q and k; a gradient that is not required is an empty tensor."""
    folded, k = _fold(q, scale), k.contiguous()
    dq = torch.zeros_like(folded) if needs[0] else q.new_empty(0)
    dk = torch.zeros_like(k) if needs[1] else k.new_empty(0)
    shift, factor = _shift(lse, q.dtype)
    weight = (grad * factor).to(q.dtype)
    sieve = _Sieve(_least_entry(grad, max(len(q), len(k)), lse, q, k, scale))
    for rows, columns, s in tiles(folded, k, candidates, upper=False):
        p = s.sub_(shift[rows, None]).exp2_().mul_(weight[rows, None])
        indices = sieve.rows(p)
        if indices is None:
            if needs[0]:
                dq[rows].addmm_(p, k[columns])
            if needs[1]:
                dk[columns].addmm_(p.T, folded[rows])
        elif len(indices):
            p = p[indices]
            if needs[0]:
                dq[rows].index_add_(0, indices, p @ k[columns])
            if needs[1]:
                dk[columns].addmm_(p.T, folded[rows][indices])
    return dq.mul_(scale), dk.mul_(_LN2)


def second_order(
    grad: Tensor,
    lse: Tensor,
    q: Tensor,
    k: Tensor,
    u: Tensor | None,
    v: Tensor | None,
    candidates: Candidates,
    *,
    scale: float,
    only_rate: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Differentiate L = sum_i u_i . dq_i + sum_j v_j . dk_j, where dq and dk are the gradients of the log-sum-exp.

    With M_ij = u_i . k_j + q_i . v_j, L equals scale * sum_ij g_i P_ij M_ij, and

        rate_i = dL/dg_i = scale * sum_j P_ij M_ij,   dL/dlse_i = -g_i rate_i,
        dL/dq_i = scale * g_i sum_j P_ij (scale M_ij k_j + v_j),
        dL/dk_j = scale * sum_i g_i P_ij (scale M_ij q_i + u_i).

    The matrix of second derivatives is symmetric, so that these results are also the tangents of lse (the rate), dq and
    dk for tangents u of q and v of k. The computation takes five to seven matrix products Nq x Nk x D.

    Args:
        grad: Gradient g [Nq] with respect to the log-sum-exp.
        lse: Log-sum-exp [Nq].
        q: Queries [Nq, D].
        k: Keys [Nk, D].
        u: Tensor [Nq, D], or None for zeros.
        v: Tensor [Nk, D], or None for zeros.
        candidates: Entries that the log-sum-exp includes.
        scale: One over the temperature.
        only_rate: Whether to leave the other two results empty.

    Returns:
        rate [Nq], dL/dq [Nq, D] and dL/dk [Nk, D].
    """
    dtypes = q.dtype, k.dtype
    with full_precision(q.device):
        q, k = full(q).contiguous(), full(k).contiguous()
        u, v = (None if x is None else full(x).contiguous() for x in (u, v))
        shift, factor = _shift(lse, q.dtype)
        factor = factor.to(q.dtype)
        rate = torch.zeros_like(lse)
        dq, dk = (x.new_empty(0) if only_rate else torch.zeros_like(x) for x in (q, k))
        for rows, columns, s in tiles(_fold(q, scale), k, candidates, upper=False):
            p = s.sub_(shift[rows, None]).exp2_().mul_(factor[rows, None])
            tangent = torch.zeros_like(p)
            if u is not None:
                tangent.addmm_(u[rows], k[columns].T)
            if v is not None:
                tangent.addmm_(q[rows], v[columns].T)
            rate[rows] += (p * tangent).sum(1, dtype=rate.dtype)
            if only_rate:
                continue
            p.mul_(grad[rows, None].to(p.dtype))
            tangent.mul_(p).mul_(scale)
            dq[rows].addmm_(tangent, k[columns])
            dk[columns].addmm_(tangent.T, q[rows])
            if v is not None:
                dq[rows].addmm_(p, v[columns])
            if u is not None:
                dk[columns].addmm_(p.T, u[rows])
    return rate.mul_(scale), dq.mul_(scale).to(dtypes[0]), dk.mul_(scale).to(dtypes[1])


def third_order(
    outer: tuple[Tensor | None, Tensor | None, Tensor | None],
    inner: tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor],
    candidates: Candidates,
    *,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Compute the gradient of :func:`second_order`, written for readability rather than speed.

    With gradients a of the rate, b of dL/dq and c of dL/dk, and n_ij = b_i . k_j + q_i . c_j, it is the gradient of

        scale * sum_ij P_ij W_ij,    W_ij = a_i M_ij + g_i (scale M_ij n_ij + b_i . v_j + u_i . c_j).

    Args:
        outer: Gradients a [Nq], b [Nq, D] and c [Nk, D]; None for zeros.
        inner: Arguments grad, lse, q, k, u and v of `second_order`.
        candidates: Entries that the log-sum-exp includes.
        scale: One over the temperature.

    Returns:
        Gradients with respect to the six arguments.
    """
    dtypes = [x.dtype for x in inner]
    work = torch.promote_types(inner[2].dtype, torch.float32)
    zeros = (torch.zeros_like(x) for x in (inner[0], inner[2], inner[3]))
    a, b, c = ((zero if x is None else x).to(work) for x, zero in zip(outer, zeros, strict=True))
    shift, factor = _shift(inner[1], work)
    g, _, q, k, u, v = (x.to(work).contiguous() for x in inner)
    dg, dlse, dq, dk, du, dv = out = [torch.zeros_like(x, dtype=work) for x in inner]
    with full_precision(q.device):
        for rows, columns, s in tiles(_fold(q, scale), k, candidates, upper=False):
            p = s.sub_(shift[rows, None]).exp2_().mul_((scale * factor[rows, None]).to(work))
            qi, ui, bi, kj, vj, cj = q[rows], u[rows], b[rows], k[columns], v[columns], c[columns]
            ai, gi = a[rows, None], g[rows, None]
            m, n = ui @ kj.T + qi @ vj.T, bi @ kj.T + qi @ cj.T
            by_g = scale * m * n + bi @ vj.T + ui @ cj.T
            by_logit = p * (ai * m + gi * by_g)
            by_m, by_n, by_rest = p * (ai + scale * gi * n), p * (scale * gi * m), p * gi
            dg[rows] += (p * by_g).sum(1)
            dlse[rows] -= by_logit.sum(1)
            dq[rows] += scale * by_logit @ kj + by_m @ vj + by_n @ cj
            dk[columns] += scale * by_logit.T @ qi + by_m.T @ ui + by_n.T @ bi
            du[rows] += by_m @ kj + by_rest @ cj
            dv[columns] += by_m.T @ qi + by_rest.T @ bi
    dg, dlse, dq, dk, du, dv = (x.to(dtype) for x, dtype in zip(out, dtypes, strict=True))
    return dg, dlse, dq, dk, du, dv


def _shift(lse: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return log2 of each row's sum of exponentials, rounded to the type, and the factor that corrects the rounding.

    The rounding is the same for a whole row. For a row without candidates the results are 0 and 1.
    """
    log2_total = torch.where(lse == -torch.inf, 0.0, lse / _LN2)
    shift = log2_total.to(dtype)
    return shift, torch.exp2(shift - log2_total)


def _fold(q: Tensor, scale: float) -> Tensor:
    return q.contiguous() * (scale / _LN2)


@dataclass(frozen=True)
class Candidates:
    """Entries (row, column) of the matrix that are candidates."""

    diagonals: tuple[int, ...] = ()
    """Values of column - row whose entries are excluded."""
    classes: tuple[Tensor, Tensor] | None = None
    """Classes of rows and columns, ascending; entries of NO_CLASS are excluded. None: no restriction."""
    same: bool = False
    """Whether entries of the same class are candidates, rather than those of different classes."""

    def blank(self, tile: Tensor, rows: slice, columns: slice) -> Tensor:
        """Fill the excluded diagonals of a tile with -inf and return it."""
        for diagonal in self.diagonals:
            offset = diagonal + rows.start - columns.start
            if -tile.shape[0] < offset < tile.shape[1]:
                tile.diagonal(offset).fill_(-torch.inf)
        return tile


def tiles(q: Tensor, k: Tensor, candidates: Candidates, *, upper: bool) -> Iterator[tuple[slice, slice, Tensor]]:
    """Yield the rows, the columns and q k^T of each tile that contains a candidate, in a fixed order.

    Other entries of a tile are -inf. Each tile overwrites the previous one. With `upper`, only the tiles on and above
    the diagonal are computed, because the matrix is symmetric.
    """
    block = _block_size(q, k, candidates)
    row_pieces, column_pieces = _pieces(len(q), block), _pieces(len(k), block)
    kinds = None
    if candidates.classes:
        read = free_to_read(q) or (candidates.same and len(row_pieces) * len(column_pieces) > 1)
        kinds = _Kinds(candidates.classes, candidates.same, row_pieces, column_pieces, read=read)
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


def _block_size(q: Tensor, k: Tensor, candidates: Candidates) -> int:
    block = _BLOCK.get(q.device.type, _BLOCK_ELSEWHERE)
    within_classes = candidates.classes is not None and candidates.same
    # On a GPU, a single tile is masked instead, because choosing small tiles would require reading the classes.
    if within_classes and (free_to_read(q) or max(len(q), len(k)) > block):
        return min(block, _BLOCK_WITHIN_CLASSES)
    return block


def _pieces(n: int, block: int) -> list[slice]:
    return [slice(start, min(start + block, n)) for start in range(0, n, block)]


class _Kind(Enum):
    WANTED = 0
    UNWANTED = 1
    MIXED = 2


class _Kinds:
    """Kind of each tile: whether it holds pairs of the same class, of different classes, or both.

    With `read`, the classes at the ends of each piece are read once, which is sufficient because classes ascend.
    Without `read`, every tile is assumed to hold both.
    """

    def __init__(
        self, classes: tuple[Tensor, Tensor], same: bool, rows: Sequence[slice], columns: Sequence[slice], *, read: bool
    ) -> None:
        self.classes, self.same = classes, same
        self.rows, self.columns = (
            _ends(x, pieces) if read else None for x, pieces in zip(classes, (rows, columns), strict=True)
        )

    def of(self, i: int, j: int) -> _Kind:
        if self.rows is None or self.columns is None:
            return _Kind.MIXED
        (first, last), (left, right) = self.rows[i], self.columns[j]
        if NO_CLASS in (last, right):
            return _Kind.MIXED
        if last < left or right < first:
            return _Kind.UNWANTED if self.same else _Kind.WANTED
        if first == last == left == right:
            return _Kind.WANTED if self.same else _Kind.UNWANTED
        return _Kind.MIXED

    def unwanted(self, rows: slice, columns: slice) -> Tensor:
        row, column = self.classes[0][rows, None], self.classes[1][None, columns]
        unlabelled = (row == NO_CLASS) | (column == NO_CLASS)
        return unlabelled | (row != column if self.same else row == column)


def _ends(classes: Tensor, pieces: Sequence[slice]) -> list[tuple[int, int]]:
    if not pieces:
        return []
    ends = torch.tensor([[piece.start, piece.stop - 1] for piece in pieces], device=classes.device)
    return [(first, last) for first, last in classes[ends].tolist()]
