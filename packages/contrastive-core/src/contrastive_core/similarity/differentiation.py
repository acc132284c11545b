"""What autograd and torch.compile have to know about a set of operators: shapes, types, and which derives which.

The operators of a namespace are `self_lse`, `row_lse` and their `_backward`, with the arguments that
`contrastive_core.similarity.blocks` gives them. There is no second derivative.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor

from contrastive_core.similarity.precision import exact_dtype


def register(namespace: str) -> None:
    """Register fake tensors and derivatives of the four operators of a namespace."""
    ops = getattr(torch.ops, namespace)

    def differentiate_self(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        lse, z, classes = ctx.saved_tensors
        dz = ops.self_lse_backward(grad, lse, z, ctx.scale, ctx.skip, classes, ctx.among, ctx.max_norm)
        return dz, None, None, None, None, None

    def differentiate_rows(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        lse, q, k, q_classes, k_classes = ctx.saved_tensors
        needs_q, needs_k = ctx.needs_input_grad[:2]
        dq, dk = ops.row_lse_backward(
            grad, lse, q, k, ctx.scale, ctx.self_offset, q_classes, k_classes, ctx.among, needs_q, needs_k
        )
        return dq if needs_q else None, dk if needs_k else None, None, None, None, None, None

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
    needs_q, needs_k = others[-2:]
    return _contiguous_like(q) if needs_q else q.new_empty(0), _contiguous_like(k) if needs_k else k.new_empty(0)


_FAKES: dict[str, Callable[..., Any]] = {
    "self_lse": _lse_like,
    "self_lse_backward": _self_gradient,
    "row_lse": _lse_like,
    "row_lse_backward": _row_gradients,
}


def _save_self(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    z, ctx.scale, ctx.skip, classes, ctx.among, ctx.max_norm = inputs
    ctx.save_for_backward(output, z, classes)


def _save_rows(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    q, k, ctx.scale, ctx.self_offset, q_classes, k_classes, ctx.among = inputs
    ctx.save_for_backward(output, q, k, q_classes, k_classes)


def _refuse_second_derivative(ctx: Any, *grads: Tensor) -> NoReturn:
    raise RuntimeError(
        "contrastive_core: losses can be differentiated once, not twice; where a second derivative is needed, write "
        "the loss with the full similarity matrix"
    )
