"""Class probabilities of an anchor from the labels of its neighbours, and their sharpening (PAWS, MixMatch)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from contrastive_core.losses._inputs import check_floating, check_temperature
from contrastive_core.similarity.autograd import Looped, remember, traceable
from contrastive_core.similarity.precision import full_precision

_BLOCK = 512


def class_shares(
    rows: Tensor, candidates: Tensor, weights: Tensor, *, scale: float, first: int | None = None
) -> Tensor:
    """Softmax of the similarities with the candidates, times their weights for the classes: [n, D], [N, D] -> [n, C].

    Blocks of anchors are computed again in the backward pass: memory O(N (D + C)) and one block of 512 rows.

    Args:
        rows: the anchors, unit vectors [n, D].
        candidates: unit vectors [N, D].
        weights: of the candidates for the classes [N, C].
        scale: one over the temperature.
        first: place of the first anchor among the candidates, whose next ones are the others; an anchor is not its own
            candidate. None: they are not among them.
    """
    function = _TracedShares if torch.compiler.is_compiling() else _Shares
    blocks = [
        function.apply(block, candidates, weights, scale, None if first is None else first + i * _BLOCK)
        for i, block in enumerate(torch.split(rows, _BLOCK))
    ]
    return torch.cat(blocks)


class _Shares(Looped):
    """Shares of one block of anchors, whose softmax is not kept but computed again in the backward pass."""

    @staticmethod
    def forward(rows: Tensor, candidates: Tensor, weights: Tensor, scale: float, first: int | None) -> Tensor:
        with full_precision(rows.device):
            return _softmax(rows, candidates, scale, first) @ weights

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.scale, ctx.first = inputs
        remember(ctx, output, *tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        # Differentiable operations all, so that higher derivatives are autograd's.
        if grad is None:
            return (None,) * 5
        shares, rows, candidates, weights = ctx.saved_tensors
        with full_precision(rows.device):
            softmax = _softmax(rows, candidates, ctx.scale, ctx.first)
            d_logits = softmax * (grad @ weights.T - (grad * shares).sum(1, keepdim=True)) * ctx.scale
            needs = ctx.needs_input_grad
            return (
                d_logits @ candidates if needs[0] else None,
                d_logits.T @ rows if needs[1] else None,
                softmax.T @ grad if needs[2] else None,
                None,
                None,
            )

    @staticmethod
    def jvp(
        ctx: Any,
        rows_tangent: Tensor | None,
        candidates_tangent: Tensor | None,
        weights_tangent: Tensor | None,
        *_: Any,
    ) -> Tensor:
        shares, rows, candidates, weights = ctx.saved_tensors
        with full_precision(rows.device):
            softmax = _softmax(rows, candidates, ctx.scale, ctx.first)
            out = torch.zeros_like(shares)
            if weights_tangent is not None:
                out = out + softmax @ weights_tangent
            for x, y in ((rows_tangent, candidates), (rows, candidates_tangent)):
                if x is not None and y is not None:
                    moved = softmax * (x @ y.T) * ctx.scale
                    out = out + moved @ weights - moved.sum(1, keepdim=True) * shares
            return out


_TracedShares = traceable(_Shares)


def _softmax(rows: Tensor, candidates: Tensor, scale: float, first: int | None) -> Tensor:
    logits = scale * rows @ candidates.T
    if first is not None:
        logits.diagonal(first).fill_(-torch.inf)
    return logits.softmax(1)


def sharpen(probabilities: Tensor, *, temperature: float) -> Tensor:
    """Probabilities as if their logits were divided by a temperature: p_c^(1 / temperature), normalised to sum 1.

    Args:
        probabilities: [N, C, ...].
        temperature: Below 1 the likeliest classes gain, near 0 the likeliest takes all; 1 changes nothing.

    Returns:
        [N, C, ...], differentiable.

    Edges: probabilities that are all 0 have no direction; the result is NaN.

    Raises:
        ValueError: a temperature that is not positive and finite; no dimension of classes.
        TypeError: not floating point.

    Reference: Berthelot et al. 2019, "MixMatch", equation 7.

    >>> import torch
    >>> sharpen(torch.tensor([[0.8, 0.2]]), temperature=0.5)
    tensor([[0.9412, 0.0588]])
    """
    check_temperature("sharpen", temperature)
    check_probabilities("sharpen", probabilities)
    # The largest is 1 then: no power of small numbers underflows to a row of zeros.
    powered = (probabilities / probabilities.detach().amax(1, keepdim=True)) ** (1 / temperature)
    return powered / powered.sum(1, keepdim=True)


def check_probabilities(name: str, probabilities: Tensor) -> None:
    """Raises TypeError unless it is floating point, ValueError unless it has classes in dimension 1."""
    check_floating(name, probabilities=probabilities)
    if probabilities.ndim < 2 or probabilities.shape[1] == 0:
        raise ValueError(f"{name}: probabilities have shape {list(probabilities.shape)}, expected [N, C, ...]")
