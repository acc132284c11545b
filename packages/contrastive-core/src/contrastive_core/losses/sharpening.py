"""Sharpened probabilities: the targets of PAWS and MixMatch."""

from __future__ import annotations

from torch import Tensor

from contrastive_core.losses.rows import check_floating, check_temperature


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
