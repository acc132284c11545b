"""Soft nearest-neighbour class probabilities and their sharpening (PAWS, MixMatch)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from contrastive_core.losses._inputs import check_floating, check_temperature
from contrastive_core.similarity.autograd import Looped, once_in_forward_mode, remember, traceable
from contrastive_core.similarity.precision import full_precision

_BLOCK = 512


def class_shares(
    rows: Tensor, candidates: Tensor, weights: Tensor, *, scale: float, first: int | None = None
) -> Tensor:
    """Average the class weights of the candidates, weighted by the softmax of their similarities to each anchor.

        shares_ic = sum_j softmax_j(scale * rows_i . candidates_j) weights_jc

    The backward pass recomputes blocks of 512 anchors: memory O(N (D + C)) and one block of 512 x N.

    Args:
        rows: Anchors, unit vectors [n, D].
        candidates: Unit vectors [N, D].
        weights: Class weights [N, C] of the candidates.
        scale: One over the temperature.
        first: Index of the first anchor among the candidates, which the other anchors follow; an anchor is then not its
            own candidate. None: the anchors are not among the candidates.

    Returns:
        Class shares [n, C] of the anchors.
    """
    function = _TracedShares if torch.compiler.is_compiling() else _Shares
    blocks = [
        function.apply(block, candidates, weights, scale, None if first is None else first + i * _BLOCK)
        for i, block in enumerate(torch.split(rows, _BLOCK))
    ]
    return torch.cat(blocks)


class _Shares(Looped):
    """Class shares of one block of anchors, whose softmax is recomputed in the backward pass instead of saved."""

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
        # Only differentiable operations, so that autograd provides higher derivatives.
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
        shares = ctx.saved_tensors[0]
        rows, candidates, weights = (once_in_forward_mode(x) for x in ctx.saved_tensors[1:])
        with full_precision(rows.device):
            softmax = _softmax(rows, candidates, ctx.scale, ctx.first)
            out = torch.zeros_like(shares)
            if weights_tangent is not None:
                out = out + softmax @ weights_tangent
            for x, y in ((rows_tangent, candidates), (rows, candidates_tangent)):
                if x is not None and y is not None:
                    tangent = softmax * (x @ y.T) * ctx.scale
                    out = out + tangent @ weights - tangent.sum(1, keepdim=True) * shares
            return out


_TracedShares = traceable(_Shares)


def _softmax(rows: Tensor, candidates: Tensor, scale: float, first: int | None) -> Tensor:
    logits = scale * rows @ candidates.T
    if first is not None:
        logits.diagonal(first).fill_(-torch.inf)
    return logits.softmax(1)


def sharpen(probabilities: Tensor, *, temperature: float) -> Tensor:
    """Sharpen probabilities as if dividing their logits by a temperature: p_c^(1 / temperature), normalised to sum 1.

    Args:
        probabilities: Class probabilities [N, C, ...].
        temperature: Values below 1 favour the most probable classes, and near 0 the result is one-hot; 1 has no effect.

    Returns:
        Probabilities [N, C, ...], differentiable; NaN for a sample whose probabilities are all 0.

    Raises:
        ValueError: The temperature is not positive and finite, or there is no class dimension.
        TypeError: Probabilities are not floating point.

    Reference: Berthelot et al. 2019, "MixMatch", equation 7.

    >>> import torch
    >>> sharpen(torch.tensor([[0.8, 0.2]]), temperature=0.5)
    tensor([[0.9412, 0.0588]])
    """
    temperature = check_temperature("sharpen", temperature)
    check_probabilities("sharpen", probabilities)
    # Scale the largest to 1, so that powers of small numbers do not underflow to a row of zeros.
    powers = (probabilities / probabilities.detach().amax(1, keepdim=True)) ** (1 / temperature)
    return powers / powers.sum(1, keepdim=True)


def check_probabilities(name: str, probabilities: Tensor) -> None:
    """Raise TypeError unless probabilities are floating point, and ValueError unless dimension 1 holds the classes."""
    check_floating(name, probabilities=probabilities)
    if probabilities.ndim < 2 or probabilities.shape[1] == 0:
        raise ValueError(f"{name}: probabilities have shape {list(probabilities.shape)}, expected [N, C, ...]")
