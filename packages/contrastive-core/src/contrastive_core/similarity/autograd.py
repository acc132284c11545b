"""Differentiate the row-wise log-sum-exp, unit vectors and similarities of pairs, for every backend.

With S = scale * q k^T and P_ij = exp(S_ij - lse_i) over the candidates of row i,

    lse'_i = sum_j P_ij S'_ij                                         (forward mode)
    dq_i   = scale * g_i sum_j P_ij k_j,   dk_j = scale * sum_i g_i P_ij q_i    (reverse mode)

:func:`torch_backend.second_order` differentiates both once more, in either mode, and :func:`torch_backend.third_order`
differentiates the second order in reverse mode. All of them recompute the matrix in tiles and take O(N D) memory.
Fourth derivatives raise an error.

The square form is the rectangular form with q = k = z; only its value and gradient have separate, faster operators.

Unit vectors and similarities of pairs have explicit gradients, which are more accurate than those of autograd.

The functions support `torch.func` (`grad`, `vmap`, `jvp`, `jacrev`, `hessian`, ...). Under torch.compile the operators
are called directly instead, with the gradient that :func:`register` gives them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.autograd import Function

from contrastive_core.similarity.precision import exact_dtype, full, full_precision
from contrastive_core.similarity.reference import Entries
from contrastive_core.similarity.torch_backend import (
    candidates_of,
    diagonals_of_rows,
    diagonals_of_self,
    lse_second_order,
    lse_third_order,
    rectangular_backward,
)

# ruff: noqa: PLR0917 - arguments of autograd functions and operators are positional


Diagonals = tuple[int, ...]
More = tuple[Any, ...]
"""Arguments that only the operators of PyTorch take."""

_TORCH, _NATIVE = "contrastive_core", "contrastive_core_native"


def self_lse(z: Tensor, entries: Entries, *, compiled: bool = False) -> Tensor:
    """Compute :func:`contrastive_core.similarity.self_lse` with the compiled library or with PyTorch."""
    namespace, more = (_NATIVE, ()) if compiled else (_TORCH, (entries.half,))
    classes = None if entries.classes is None else entries.classes[0]
    arguments = (
        z if compiled else full(z), entries.scale, entries.excluded, classes, entries.among, entries.max_norm,
    )  # fmt: skip
    out: Tensor
    if torch.compiler.is_compiling():
        out = getattr(torch.ops, namespace).self_lse(*arguments, *more)
    else:
        out = _SelfLse.apply(*arguments, namespace, more)
    return out


def row_lse(q: Tensor, k: Tensor, entries: Entries, *, compiled: bool = False) -> Tensor:
    """Compute :func:`contrastive_core.similarity.row_lse` with the compiled library or with PyTorch."""
    namespace, more = (_NATIVE, ()) if compiled else (_TORCH, (entries.max_norm, entries.half))
    rows = (q, k) if compiled else (full(q), full(k))
    arguments = (*rows, entries.scale, entries.excluded, *(entries.classes or (None, None)), entries.among)
    out: Tensor
    if torch.compiler.is_compiling():
        out = getattr(torch.ops, namespace).row_lse(*arguments, *more)
    else:
        out = _RowLse.apply(*arguments, namespace, more)
    return out


def traceable(function: type[Function]) -> type[Function]:
    """Copy an autograd function without its rules for forward mode and vmap, which torch.compile does not support."""
    parts = {name: function.__dict__[name] for name in ("forward", "setup_context", "backward")}
    return type(f"Traced{function.__name__}", (Function,), parts)


class Looped(Function):
    """Autograd function that `torch.vmap` calls once for each element of the batch."""

    @classmethod
    def vmap(cls, info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
        """Call the function for each element and stack the results."""
        if info.batch_size == 0:
            raise ValueError("contrastive_core: torch.vmap runs over an empty dimension, expected at least one element")
        results = [
            cls.apply(
                *(x.select(dim, i) if isinstance(dim, int) else x for x, dim in zip(arguments, in_dims, strict=True))
            )
            for i in range(info.batch_size)
        ]
        if isinstance(results[0], tuple):
            return tuple(torch.stack(parts) for parts in zip(*results, strict=True)), (0,) * len(results[0])
        return torch.stack(results), 0


def remember(ctx: Any, *tensors: Tensor | None) -> None:
    """Save tensors for the backward pass and for forward mode."""
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors)
    ctx.save_for_forward(*tensors)


def once_in_forward_mode(x: Tensor) -> Tensor:
    """Return a copy of a tensor saved for a `jvp` that makes a second differentiation in forward mode an error.

    PyTorch does not differentiate the operations of a `jvp` in forward mode; the result would silently lack terms.
    """
    out: Tensor = _OnceInForwardMode.apply(x)
    return out


class _OnceInForwardMode(Looped):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        del ctx, inputs, output  # the identity: nothing to save

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> NoReturn:
        _refuse_forward_over_forward()


def _refuse_forward_over_forward() -> NoReturn:
    raise RuntimeError(
        "contrastive_core: losses cannot be differentiated twice in forward mode; use forward over reverse mode "
        "(torch.func.hessian, or torch.func.jvp or jacfwd of torch.func.grad), or reverse mode twice"
    )


class _SelfLse(Looped):
    @staticmethod
    def forward(
        z: Tensor, scale: float, skip: int | None, classes: Tensor | None, among: str, max_norm: float | None,
        namespace: str, more: More,
    ) -> Tensor:  # fmt: skip
        out: Tensor = getattr(torch.ops, namespace).self_lse(z, scale, skip, classes, among, max_norm, *more)
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        z, *ctx.settings = inputs
        remember(ctx, output, z, ctx.settings.pop(2))

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        lse, z, classes = ctx.saved_tensors
        dz = None if grad is None else _SelfGradient.apply(grad, lse, z, classes, *ctx.settings)
        return dz, *[None] * 7

    @staticmethod
    def jvp(ctx: Any, z_tangent: Tensor, *_: Any) -> Tensor:
        lse, z, classes = ctx.saved_tensors
        scale, skip, among, *_ = ctx.settings
        out: Tensor = _Tangent.apply(
            lse, z, z, z_tangent, z_tangent, classes, classes, scale, diagonals_of_self(skip), among
        )
        return out


class _SelfGradient(Looped):
    @staticmethod
    def forward(
        grad: Tensor, lse: Tensor, z: Tensor, classes: Tensor | None, scale: float, skip: int | None, among: str,
        max_norm: float | None, namespace: str, more: More,
    ) -> Tensor:  # fmt: skip
        operators = getattr(torch.ops, namespace)
        dz: Tensor = operators.self_lse_backward(grad, lse, z, scale, skip, classes, among, max_norm, *more)
        return dz

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        grad, lse, z, classes, *ctx.settings = inputs
        remember(ctx, grad, lse, z, classes)

    @staticmethod
    def backward(ctx: Any, u: Tensor | None) -> tuple[Tensor | None, ...]:
        grad, lse, z, classes = ctx.saved_tensors
        if u is None:
            return (None,) * 10
        rate, dq, dk = _second_order_of_self(ctx, grad, lse, z, classes, u)
        return rate, -grad * rate, dq + dk, *[None] * 7

    @staticmethod
    def jvp(
        ctx: Any, grad_tangent: Tensor | None, lse_tangent: Tensor | None, z_tangent: Tensor | None, *_: Any
    ) -> Tensor:
        grad, lse, z, classes = ctx.saved_tensors
        weight = _weight_tangent(grad, grad_tangent, lse_tangent)
        out: Tensor = torch.zeros_like(z)
        if weight is not None:
            out = out + _SelfGradient.apply(weight, lse, z, classes, *ctx.settings)
        if z_tangent is not None:
            dq, dk = _second_order_of_self(ctx, grad, lse, z, classes, z_tangent)[1:]
            out = out + dq + dk
        return out


class _RowLse(Looped):
    @staticmethod
    def forward(
        q: Tensor, k: Tensor, scale: float, self_offset: int | None, q_classes: Tensor | None,
        k_classes: Tensor | None, among: str, namespace: str, more: More,
    ) -> Tensor:  # fmt: skip
        operators = getattr(torch.ops, namespace)
        out: Tensor = operators.row_lse(q, k, scale, self_offset, q_classes, k_classes, among, *more)
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        q, k, scale, self_offset, q_classes, k_classes, among, namespace, more = inputs
        ctx.settings = scale, diagonals_of_rows(self_offset), among, namespace, more
        remember(ctx, output, q, k, q_classes, k_classes)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        needs = tuple(ctx.needs_input_grad[:2])
        if grad is None or not any(needs):
            return (None,) * 9
        dq, dk = _RowGradient.apply(grad, *ctx.saved_tensors, *ctx.settings, *needs)
        return dq if needs[0] else None, dk if needs[1] else None, *[None] * 7

    @staticmethod
    def jvp(ctx: Any, q_tangent: Tensor | None, k_tangent: Tensor | None, *_: Any) -> Tensor:
        lse, q, k, q_classes, k_classes = ctx.saved_tensors
        scale, diagonals, among, *_ = ctx.settings
        out: Tensor = _Tangent.apply(lse, q, k, q_tangent, k_tangent, q_classes, k_classes, scale, diagonals, among)
        return out


class _RowGradient(Looped):
    @staticmethod
    def forward(
        grad: Tensor, lse: Tensor, q: Tensor, k: Tensor, q_classes: Tensor | None, k_classes: Tensor | None,
        scale: float, diagonals: Diagonals, among: str, namespace: str, more: More, needs_q: bool, needs_k: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        if len(diagonals) > 1:  # square form, whose operator returns only the sum of both gradients
            candidates = candidates_of(diagonals, q_classes, k_classes, among)
            with full_precision(q.device):
                return rectangular_backward(grad, lse, q, k, candidates, scale=scale, needs=(needs_q, needs_k))
        self_offset = diagonals[0] if diagonals else None
        parts: tuple[Tensor, Tensor] = getattr(torch.ops, namespace).row_lse_backward(
            grad, lse, q, k, scale, self_offset, q_classes, k_classes, among, needs_q, needs_k, *more
        )
        return parts

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        *tensors, scale, diagonals, among, namespace, more, needs_q, needs_k = inputs
        ctx.settings = scale, diagonals, among, namespace, more, needs_q, needs_k
        remember(ctx, *tensors)

    @staticmethod
    def backward(ctx: Any, u: Tensor | None, v: Tensor | None) -> tuple[Tensor | None, ...]:
        grad, lse, q, k, q_classes, k_classes = ctx.saved_tensors
        scale, diagonals, among, _, _, needs_q, needs_k = ctx.settings
        # An empty tensor replaces a gradient that was not required; ignore its own gradient.
        u, v = u if needs_q else None, v if needs_k else None
        if u is None and v is None:
            return (None,) * 13
        rate, dq, dk = _SecondOrder.apply(grad, lse, q, k, u, v, q_classes, k_classes, scale, diagonals, among)
        return rate, -grad * rate, dq, dk, *[None] * 9

    @staticmethod
    def jvp(
        ctx: Any,
        grad_tangent: Tensor | None,
        lse_tangent: Tensor | None,
        q_tangent: Tensor | None,
        k_tangent: Tensor | None,
        *_: Any,
    ) -> tuple[Tensor, Tensor]:
        grad, lse, q, k, q_classes, k_classes = ctx.saved_tensors
        scale, diagonals, among, _, _, needs_q, needs_k = ctx.settings
        classes = q_classes, k_classes
        weight = _weight_tangent(grad, grad_tangent, lse_tangent)
        out = torch.zeros_like(q) if needs_q else q.new_zeros(0), torch.zeros_like(k) if needs_k else k.new_zeros(0)
        if weight is not None:
            parts = _RowGradient.apply(weight, lse, q, k, *classes, *ctx.settings)
            out = out[0] + parts[0], out[1] + parts[1]
        if q_tangent is not None or k_tangent is not None:
            _, dq, dk = _SecondOrder.apply(grad, lse, q, k, q_tangent, k_tangent, *classes, scale, diagonals, among)
            out = out[0] + dq if needs_q else out[0], out[1] + dk if needs_k else out[1]
        return out


class _Tangent(Looped):
    """Tangent [Nq] of the log-sum-exp for tangents u of q and v of k: scale * sum_j P_ij (u_i . k_j + q_i . v_j)."""

    @staticmethod
    def forward(
        lse: Tensor, q: Tensor, k: Tensor, u: Tensor | None, v: Tensor | None, q_classes: Tensor | None,
        k_classes: Tensor | None, scale: float, diagonals: Diagonals, among: str,
    ) -> Tensor:  # fmt: skip
        one = torch.ones_like(lse)
        out: Tensor = lse_second_order(one, lse, q, k, u, v, q_classes, k_classes, scale, diagonals, among, True)[0]
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, scale, diagonals, among = inputs
        ctx.settings = scale, diagonals, among
        remember(ctx, *tensors)

    @staticmethod
    def backward(ctx: Any, weight: Tensor | None) -> tuple[Tensor | None, ...]:
        if weight is None:
            return (None,) * 10
        lse, q, k, u, v, q_classes, k_classes = ctx.saved_tensors
        scale, diagonals, among = ctx.settings
        rate, dq, dk = _SecondOrder.apply(weight, lse, q, k, u, v, q_classes, k_classes, scale, diagonals, among)
        du, dv = _RowGradient.apply(
            weight, lse, q, k, q_classes, k_classes, scale, diagonals, among, _TORCH, (None, False), True, True
        )
        return -weight * rate, dq, dk, None if u is None else du, None if v is None else dv, *[None] * 5

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> NoReturn:
        _refuse_forward_over_forward()


class _SecondOrder(Looped):
    @staticmethod
    def forward(
        grad: Tensor, lse: Tensor, q: Tensor, k: Tensor, u: Tensor | None, v: Tensor | None, q_classes: Tensor | None,
        k_classes: Tensor | None, scale: float, diagonals: Diagonals, among: str,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        parts: tuple[Tensor, Tensor, Tensor] = lse_second_order(
            grad, lse, q, k, u, v, q_classes, k_classes, scale, diagonals, among, False
        )
        return parts

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        *tensors, scale, diagonals, among = inputs
        ctx.settings = scale, diagonals, among
        remember(ctx, *tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if all(x is None for x in grads):
            return (None,) * 11
        parts = _ThirdOrder.apply(*grads, *ctx.saved_tensors, *ctx.settings)
        gradients = (part if need else None for part, need in zip(parts, ctx.needs_input_grad, strict=False))
        return *gradients, *[None] * 5

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> NoReturn:
        raise RuntimeError(
            "contrastive_core: third derivatives of a loss exist in reverse mode only (torch.func.jacrev), not in "
            "forward mode (jvp, jacfwd)"
        )


class _ThirdOrder(Looped):
    @staticmethod
    def forward(
        rate_grad: Tensor | None, q_grad: Tensor | None, k_grad: Tensor | None, grad: Tensor, lse: Tensor, q: Tensor,
        k: Tensor, u: Tensor | None, v: Tensor | None, q_classes: Tensor | None, k_classes: Tensor | None,
        scale: float, diagonals: Diagonals, among: str,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        parts: tuple[Tensor, ...] = lse_third_order(
            rate_grad, q_grad, k_grad, grad, lse, q, k, u, v, q_classes, k_classes, scale, diagonals, among
        )
        return parts

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        del ctx, inputs, output  # nothing to save: derivatives raise an error

    @staticmethod
    def backward(ctx: Any, *_: Any) -> NoReturn:
        _refuse_fourth_derivative()

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> NoReturn:
        _refuse_fourth_derivative()


def _refuse_fourth_derivative() -> NoReturn:
    raise RuntimeError(
        "contrastive_core: losses can be differentiated three times, not four times; for a fourth derivative, compute "
        'the loss inside `with contrastive_core.similarity.use_backend("reference")`, which stores the full similarity '
        "matrix"
    )


def _second_order_of_self(
    ctx: Any, grad: Tensor, lse: Tensor, z: Tensor, classes: Tensor | None, u: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    scale, skip, among, *_ = ctx.settings
    parts: tuple[Tensor, Tensor, Tensor] = _SecondOrder.apply(
        grad, lse, z, z, u, u, classes, classes, scale, diagonals_of_self(skip), among
    )
    return parts


def _weight_tangent(grad: Tensor, grad_tangent: Tensor | None, lse_tangent: Tensor | None) -> Tensor | None:
    """Return the tangent of the factors g_i exp(-lse_i), divided by exp(-lse_i)."""
    by_lse = None if lse_tangent is None else -grad * lse_tangent
    if grad_tangent is None or by_lse is None:
        return by_lse if grad_tangent is None else grad_tangent
    return grad_tangent + by_lse


def register(namespace: str) -> None:
    """Register the shapes, types and gradients of a namespace's four operators for torch.compile."""
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
    # Without these, a second derivative would silently omit the gradient's dependence on the inputs.
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


def _refuse_second_derivative(*_: Any) -> NoReturn:
    raise RuntimeError(
        "contrastive_core: a compiled loss can be differentiated once, not twice; for a second derivative, compute the "
        "loss outside torch.compile"
    )


register(_TORCH)


def differentiable_once(loss: Tensor, *inputs: Tensor) -> Tensor:
    """Return the loss; under torch.compile, a copy whose second derivative with respect to the inputs is an error.

    The gradient of a compiled graph cannot be differentiated. PyTorch raises an error only if the gradient is computed
    from an input of the graph that requires one; otherwise, a second derivative silently lacks terms.
    """
    return _differentiable_once(loss, inputs) if torch.compiler.is_compiling() else loss


@torch.library.custom_op("contrastive_core::differentiable_once", mutates_args=())
def _differentiable_once(x: Tensor, inputs: Sequence[Tensor]) -> Tensor:
    return x.clone()


@torch.library.custom_op("contrastive_core::first_derivative", mutates_args=())
def _first_derivative(grad: Tensor) -> Tensor:
    # With create_graph, autograd runs the backward pass in this mode, but that of AOTAutograd without.
    if torch.is_grad_enabled():
        _refuse_second_derivative()
    return grad.clone()


def _save_inputs(ctx: Any, inputs: tuple[Tensor, Sequence[Tensor]], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1])


def _differentiate_once(ctx: Any, grad: Tensor) -> tuple[Tensor, list[None]]:
    inputs = ctx.saved_tensors  # read in the backward pass, so that AOTAutograd raises an error
    return _differentiable_once(_first_derivative(grad), inputs), [None] * len(inputs)


_differentiable_once.register_fake(lambda x, _: torch.empty_like(x))
_first_derivative.register_fake(torch.empty_like)
_differentiable_once.register_autograd(_differentiate_once, setup_context=_save_inputs)


Forward = Callable[[Tensor, torch.dtype], tuple[Tensor, Tensor]]
Backward = Callable[[Tensor, Tensor, Tensor, torch.dtype], Tensor]


def unit_rows(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Compute :func:`contrastive_core.losses._inputs.unit_rows` with PyTorch."""
    return differentiable_unit_rows(x, dtype, _forward, _backward)


def differentiable_unit_rows(x: Tensor, dtype: torch.dtype, forward: Forward, backward: Backward) -> Tensor:
    """Compute unit rows with derivatives of every order, in reverse and forward mode and under `torch.func`.

    Args:
        x: Rows [..., D].
        dtype: Type of the result.
        forward: Function that returns the unit rows [..., D] and the lengths [..., 1] of x; lengths are infinite for
            rows that are treated as zero.
        backward: Function that returns the gradient with respect to x, given the gradient with respect to the unit
            rows, the unit rows, the lengths and x's dtype; used if no second derivative is required.
    """
    function = _TracedUnitRows if torch.compiler.is_compiling() else _UnitRows
    z: Tensor = function.apply(x, dtype, forward, backward)[0]
    return z


def paired_similarity(a: Tensor, b: Tensor) -> Tensor:
    """Compute a_i . b_i for unit rows: [N, D], [N, D] -> [N] in float64.

    The similarity is computed as (|a_i|^2 + |b_i|^2 - |a_i - b_i|^2) / 2 with the lengths, 1 or 0, as constants. The
    gradient with respect to a_i is then b_i - a_i instead of b_i. The difference, a_i, is radial and cancels when the
    normalisation is differentiated, but for close rows it makes up most of b_i, and its rounding would be most of the
    gradient's error. On unit vectors both expressions are the same function, so that higher derivatives also agree.
    """
    a2, b2, distance = (x.square().sum(1, dtype=exact_dtype(a)) for x in (a.detach(), b.detach(), a - b))
    return (a2 + b2 - distance) / 2


class _UnitRows(Function):
    """Unit rows and lengths of x.

    The lengths are an output, so that autograd tracks how the gradient, which contains them, depends on x.
    """

    @staticmethod
    def forward(x: Tensor, dtype: torch.dtype, forward: Forward, backward: Backward) -> tuple[Tensor, Tensor]:
        del backward
        return forward(x, dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.dtype, ctx.fast_backward = inputs[0].dtype, inputs[3]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*output)
        ctx.save_for_forward(*output, inputs[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, length_grad: Tensor | None) -> tuple[Tensor | None, None, None, None]:
        z, length = ctx.saved_tensors
        if length_grad is None and grad is not None and not torch.is_grad_enabled():
            return ctx.fast_backward(grad, z, length, ctx.dtype), None, None, None
        out = None if grad is None else _backward(grad, z, length, ctx.dtype)
        if length_grad is not None:
            by_length = (z * length_grad).to(ctx.dtype)
            out = by_length if out is None else out + by_length
        return out, None, None, None

    @staticmethod
    def jvp(ctx: Any, x_tangent: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        z, length, x = ctx.saved_tensors
        once_in_forward_mode(x)
        radial = (x_tangent * z).sum(-1, keepdim=True, dtype=length.dtype)
        return ((x_tangent - z * radial) / length).to(z.dtype), torch.where(length == torch.inf, 0.0, radial)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], x: Tensor, *others: Any) -> tuple[Any, tuple[int, int]]:
        return _UnitRows.apply(x.movedim(in_dims[0], 0), *others), (0, 0)


_TracedUnitRows = traceable(_UnitRows)


def _forward(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Compute unit rows and lengths in float64 and round only the result.

    Rounding the length to float32 would change every similarity of a row by the same 1e-7. It would also leave 1e-7 of
    the radial part of the gradient, which can be a hundred times the tangential part if two views are close.
    """
    exact = x.to(exact_dtype(x))
    top: Tensor | float = 1.0
    if exact.dtype == x.dtype:
        # There is no wider type for the squares, so divide by the largest entry first.
        top = x.abs().amax(-1, keepdim=True)
        top = top.masked_fill(top == 0, 1.0)
        exact = exact / top
    length = torch.linalg.vector_norm(exact, dim=-1, keepdim=True)
    # The inverse of a length below float32's smallest normal number would be infinite. NaN compares false and remains.
    dead = length * top < torch.finfo(torch.promote_types(x.dtype, torch.float32)).tiny
    # An infinite divisor makes the row and its gradient 0.
    length = length.masked_fill(dead, torch.inf)
    # Avoid operations that return their input tensor unchanged (in place, or to its own type): torch.compile of
    # torch 2.11 loses their gradient.
    z: Tensor = exact / length
    return z if z.dtype == dtype else z.to(dtype), length * top


def _backward(grad: Tensor, z: Tensor, length: Tensor, dtype: torch.dtype) -> Tensor:
    """Divide the component of the gradient orthogonal to z by the length: (dz - z (z . dz)) / |x|."""
    radial = (grad * z).sum(-1, keepdim=True, dtype=length.dtype)
    return ((grad - z * radial) / length).to(dtype)
