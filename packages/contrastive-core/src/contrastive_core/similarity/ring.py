"""Compute the row-wise log-sum-exp over the rows of all other processes, passed around a ring instead of gathered.

Each process keeps its queries and holds the keys of two other processes at a time. This takes O(n D) memory for n rows
per process, whereas a gather takes O(W n D) for W processes. The results for the parts received so far are merged by
log-sum-exp. In the backward pass the keys are passed around once more together with their gradient: each process adds
the contribution of its queries, and the last hop returns the gradient to its owner. Each pass takes W - 1 hops of keys,
and the backward pass takes W hops of gradients; each hop overlaps with the computation of a part.
"""

# ruff: noqa: PLR0917 - arguments of autograd functions and operators are positional

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor

from contrastive_core.distributed import Hop, refuse_unequal, visitors
from contrastive_core.similarity.api import row_lse, row_lse_gradient
from contrastive_core.similarity.autograd import Looped
from contrastive_core.similarity.precision import exact_dtype
from contrastive_core.similarity.reference import NO_CLASS
from contrastive_core.synchronization import free_to_read

_GRADIENT = 1  # tag of the hops that carry gradients
_INPUTS = "Tensor q, Tensor k, float scale, Tensor? q_classes, Tensor? k_classes"


def ring_lse(q: Tensor, k: Tensor, *, scale: float, classes: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Compute the log-sum-exp of this process's queries over the keys of all other processes.

    The result is that of :func:`contrastive_core.similarity.row_lse` with gathered keys, with gradients to queries and
    keys. Every process must call the function, and all must run the backward pass if one does. Second derivatives and
    forward mode are not supported.

    Args:
        q: Queries [n, D] of this process, in float32 or float64.
        k: Keys [n, D] of this process, of the same type.
        scale: One over the temperature.
        classes: Class numbers [n] of q and of k, both ascending on every process; keys of class NO_CLASS are excluded.

    Returns:
        Log-sum-exp [1, n] over all keys; with classes [2, n], over the keys of the query's class and over those of
        other classes. The value is -inf for a query without candidates.

    Raises:
        ValueError: The processes hold different numbers of rows, or rows of different size or type (raised on each).
    """
    q_classes, k_classes = classes or (None, None)
    out: Tensor
    if torch.compiler.is_compiling():
        out = _ring_lse(q, k, scale, q_classes, k_classes)
    else:
        out = _RingLse.apply(q, k, scale, q_classes, k_classes)
    return out


class _RingLse(Looped):
    @staticmethod
    def forward(q: Tensor, k: Tensor, scale: float, q_classes: Tensor | None, k_classes: Tensor | None) -> Tensor:
        out: Tensor = _ring_lse(q, k, scale, q_classes, k_classes)
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _save(ctx, inputs, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        lse, q, k, q_classes, k_classes = ctx.saved_tensors
        needs = tuple(ctx.needs_input_grad[:2])
        dq, dk = _RingGradient.apply(grad, lse, q, k, ctx.scale, q_classes, k_classes, *needs)
        return dq if needs[0] else None, dk if needs[1] else None, None, None, None

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> NoReturn:
        _refuse_second_derivative(ctx)


class _RingGradient(Looped):
    @staticmethod
    def forward(
        grad: Tensor, lse: Tensor, q: Tensor, k: Tensor, scale: float, q_classes: Tensor | None,
        k_classes: Tensor | None, needs_q: bool, needs_k: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        parts: tuple[Tensor, Tensor] = _ring_lse_backward(
            grad, lse, q, k, scale, q_classes, k_classes, needs_q, needs_k
        )
        return parts

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        del ctx, inputs, output  # nothing to save: derivatives raise an error

    @staticmethod
    def backward(ctx: Any, *_: Any) -> NoReturn:
        _refuse_second_derivative(ctx)

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> NoReturn:
        _refuse_second_derivative(ctx)


# Communication is wrapped in custom operators, which torch.compile does not trace into.


@torch.library.custom_op("contrastive_core::ring_lse", mutates_args=(), schema=f"({_INPUTS}) -> Tensor")
def _ring_lse(q: Tensor, k: Tensor, scale: float, q_classes: Tensor | None, k_classes: Tensor | None) -> Tensor:
    refuse_unequal(k)
    kinds = _kinds(q_classes)
    total = q.new_full((len(kinds), len(q)), -torch.inf, dtype=exact_dtype(q))
    for block, *block_classes in _labelled_blocks(_passing(k, k_classes)):
        for i, among in enumerate(kinds):
            lse = row_lse(q, block, scale=scale, classes=_pair(q_classes, block_classes), among=among)
            total[i] = torch.logaddexp(total[i], lse)
    return total


@torch.library.custom_op(
    "contrastive_core::ring_lse_backward",
    mutates_args=(),
    schema=f"(Tensor grad, Tensor lse, {_INPUTS}, bool needs_q, bool needs_k) -> (Tensor, Tensor)",
)
def _ring_lse_backward(
    grad: Tensor,
    lse: Tensor,
    q: Tensor,
    k: Tensor,
    scale: float,
    q_classes: Tensor | None,
    k_classes: Tensor | None,
    needs_q: bool,
    needs_k: bool,
) -> tuple[Tensor, Tensor]:
    dq, dk = _gradients(q, k, needs_q, needs_k)
    hop: Hop | None = None
    for block, *block_classes in _labelled_blocks(_passing(k, k_classes)):
        dk = torch.zeros_like(dk)
        for i, among in enumerate(_kinds(q_classes)):
            parts = row_lse_gradient(
                grad[i], lse[i], q, block, scale=scale, classes=_pair(q_classes, block_classes), among=among,
                needs=(needs_q, needs_k),
            )  # fmt: skip
            dq += parts[0]
            if needs_k:
                dk[: len(block)] += parts[1]
        if needs_k:
            # Add the part of the block's gradient that the left neighbour has sent.
            if hop:
                dk += hop.wait()[0]
            hop = Hop([dk], tag=_GRADIENT)
    return dq, hop.wait()[0] if hop else dk


def _kinds(classes: Tensor | None) -> tuple[Any, ...]:
    return ("all",) if classes is None else ("same", "other")


def _passing(k: Tensor, classes: Tensor | None) -> Any:
    if len(k) == 0:
        return iter(())
    return visitors(k) if classes is None else visitors(k, classes)


def _labelled_blocks(blocks: Any) -> Any:
    """Yield the blocks, on the CPU without their keys of class NO_CLASS, which come last."""
    for block, *classes in blocks:
        count = int((classes[0] != NO_CLASS).sum()) if classes and free_to_read(classes[0]) else len(block)
        yield block[:count], *(x[:count] for x in classes)


def _pair(q_classes: Tensor | None, block_classes: list[Tensor]) -> tuple[Tensor, Tensor] | None:
    return None if q_classes is None else (q_classes, block_classes[0])


def _gradients(q: Tensor, k: Tensor, needs_q: bool, needs_k: bool) -> tuple[Tensor, Tensor]:
    """Return zeros for the required gradients, and an empty tensor for the others."""
    dq, dk = (torch.zeros_like(x, memory_format=torch.contiguous_format) for x in (q, k))
    return dq if needs_q else q.new_empty(0), dk if needs_k else k.new_empty(0)


@_ring_lse.register_fake
def _(q: Tensor, k: Tensor, scale: float, q_classes: Tensor | None, k_classes: Tensor | None) -> Tensor:
    return q.new_empty(len(_kinds(q_classes)), len(q), dtype=exact_dtype(q))


@_ring_lse_backward.register_fake
def _(grad: Tensor, lse: Tensor, q: Tensor, k: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    return _gradients(q, k, *others[-2:])


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    q, k, ctx.scale, q_classes, k_classes = inputs
    ctx.save_for_backward(output, q, k, q_classes, k_classes)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    lse, q, k, q_classes, k_classes = ctx.saved_tensors
    needs_q, needs_k = ctx.needs_input_grad[:2]
    dq, dk = _ring_lse_backward(grad, lse, q, k, ctx.scale, q_classes, k_classes, needs_q, needs_k)
    return dq if needs_q else None, dk if needs_k else None, None, None, None


def _refuse_second_derivative(ctx: Any, *_: Any) -> NoReturn:
    raise RuntimeError(
        'contrastive_core: a loss with gather="ring" can be differentiated once, in reverse mode; for a second '
        'derivative or forward mode, use gather="all"'
    )


_ring_lse.register_autograd(_differentiate, setup_context=_save)
_ring_lse_backward.register_autograd(_refuse_second_derivative)
