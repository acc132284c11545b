"""Refine pseudo-labels with a fully connected CRF over each slice."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from contrastive_core.errors import UserError
from contrastive_core.similarity.precision import full

CrfName = Literal["off", "mild", "official", "official-prostate"]

# Intensities are scaled so that two percentiles become 0 and 1; only a few percent of the pixels exceed this range.
_DARKEST, _BRIGHTEST = -0.5, 2.0
_LOST = 0.5
# Lower bound of probabilities, about the rounding error of 1 in float32.
_TINY = 1e-7


@dataclass(frozen=True)
class CrfOptions:
    """Parameters of a CRF with two Gaussian kernels between all pixels of a slice.

    Args:
        smooth_sigma: Standard deviation of the smoothness kernel (positions only), in pixels.
        smooth_weight: Weight of the smoothness kernel; 0 disables it.
        bilateral_sigma: Spatial standard deviation of the bilateral kernel (positions and intensities), in pixels.
        bilateral_intensity: Intensity standard deviation of the bilateral kernel, in units of the scaled intensity.
        bilateral_weight: Weight of the bilateral kernel; 0 disables it.
        iterations: Number of mean-field iterations.
    """

    smooth_sigma: float
    smooth_weight: float
    bilateral_sigma: float
    bilateral_intensity: float
    bilateral_weight: float
    iterations: int

    def __post_init__(self) -> None:
        for name in ("smooth_sigma", "bilateral_sigma", "bilateral_intensity"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"{name} of the CRF is {getattr(self, name)}; expected a positive number")
        for name in ("smooth_weight", "bilateral_weight", "iterations"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"{name} of the CRF is {getattr(self, name)}; expected 0 or more")


SETTINGS: dict[str, CrfOptions] = {
    # Our choice: smoothing over about two pixels that stops at image edges.
    "mild": CrfOptions(1.5, 1.0, 3.0, 0.1, 2.0, 5),
    # Settings of the released code for ACDC and MM-WHS, and for the prostate. With a sigma of 0.01 pixels, the
    # bilateral kernel reaches no other pixel: it only reinforces the current label of each pixel.
    "official": CrfOptions(10.0, 30.0, 0.01, 0.5, 10.0, 30),
    "official-prostate": CrfOptions(5.0, 30.0, 0.01, 0.5, 10.0, 30),
}


def dense_crf(images: Tensor, probabilities: Tensor, options: CrfOptions) -> Tensor:
    """Run mean-field inference of a fully connected CRF with Potts compatibility on each slice.

        Q_i <- softmax over classes of ( log p_i + sum_m w_m sum_j n_i K_m(i, j) n_j Q_j ),
        n_i = (sum_j K_m(i, j))^(-1/2)

    The smoothness kernel is K_1 = exp(-d^2 / 2 sigma^2) with the distance d in pixels; the bilateral kernel is
    K_2 = K_1 exp(-(I_i - I_j)^2 / 2 s^2). The sums include j = i, as in the library of the released code. K_1 is
    separable and computed exactly; the intensity factor of K_2 is approximated by a sum of products over a few
    intensity levels (Nystroem), with an error of about 1e-4.

    Args:
        images: [S, K, H, W], intensities scaled to about 0 .. 1 and clamped to -0.5 .. 2. Each of K channels has its
            own kernel K_2 with 1 / K of the weight.
        probabilities: [S, C, H, W].
        options: Parameters of the kernels.

    Returns:
        Q [S, C, H, W], in float32 or better.

    Time: O(iterations C (1 + levels) H W (H + W)) per slice.

    Raises:
        ValueError: The shapes do not match.

    Reference: Kraehenbuehl and Koltun 2011, "Efficient inference in fully connected CRFs with Gaussian edge
    potentials".
    """
    if images.ndim != 4 or not images.shape[1] or probabilities.ndim != 4:
        raise ValueError(f"dense_crf: images {list(images.shape)}, expected [S, K, H, W] to match [S, C, H, W]")
    if images.shape[0::2] != probabilities.shape[0::2] or images.shape[3] != probabilities.shape[3]:
        raise ValueError(f"dense_crf: images {list(images.shape)} and probabilities {list(probabilities.shape)} differ")
    log_p = full(probabilities).clamp(min=_TINY).log()
    kernels = []
    if options.smooth_weight:
        kernels.append((options.smooth_weight, _Kernel(log_p, options.smooth_sigma, None)))
    if options.bilateral_weight:
        for channel in torch.split(images.to(log_p.dtype), 1, 1):
            basis = _intensity_basis(channel, options.bilateral_intensity)
            weight = options.bilateral_weight / images.shape[1]
            kernels.append((weight, _Kernel(log_p, options.bilateral_sigma, basis)))
    q = log_p.softmax(1)
    for _ in range(options.iterations):
        total = log_p
        for weight, kernel in kernels:
            total = total + weight * kernel(q)
        q = total.softmax(1)
    return q


class Refined(NamedTuple):
    """Hard labels after CRF refinement."""

    labels: Tensor
    """int64 [S, H, W]."""
    rejected: Tensor
    """bool [S]: slices whose CRF result was rejected; they keep the prediction of the network."""


def refine(images: Tensor, probabilities: Tensor, options: CrfOptions, *, most_lost: float = _LOST) -> Refined:
    """Refine labels with `dense_crf`, but keep the prediction of slices in which a class would lose too much area.

    A strong CRF erases structures that are thin compared with its sigma.

    Args:
        images: [S, K, H, W], as in `dense_crf`.
        probabilities: [S, C, H, W].
        options: Parameters of the kernels.
        most_lost: Largest fraction of its area that a class may lose in a slice.
    """
    before, after = probabilities.argmax(1), dense_crf(images, probabilities, options).argmax(1)
    areas = [torch.nn.functional.one_hot(x, probabilities.shape[1]).sum((1, 2)) for x in (before, after)]
    rejected = (areas[1] < (1 - most_lost) * areas[0]).any(1)
    return Refined(torch.where(rejected[:, None, None], before, after), rejected)


class _Kernel:
    """Normalised kernel n K n over positions and, given a basis [S, L, H, W], over intensities."""

    def __init__(self, like: Tensor, sigma: float, basis: Tensor | None) -> None:
        self.rows, self.columns = (_gaussian(like, side, sigma) for side in like.shape[2:])
        self.basis = basis
        self.norm: Tensor | float = 1.0
        self.norm = self._apply(torch.ones_like(like[:, :1])).clamp(min=1e-20).rsqrt()

    def __call__(self, q: Tensor) -> Tensor:
        return self.norm * self._apply(self.norm * q)

    def _apply(self, x: Tensor) -> Tensor:
        if self.basis is None:
            return self.rows @ x @ self.columns
        total = torch.zeros_like(x)
        for level in torch.split(self.basis, 1, 1):
            total += level * (self.rows @ (level * x) @ self.columns)
        return total


def _gaussian(like: Tensor, side: int, sigma: float) -> Tensor:
    """Return exp(-(i - j)^2 / 2 sigma^2), [side, side]."""
    place = torch.arange(side, device=like.device, dtype=torch.float64)
    return torch.exp(-0.5 * ((place[:, None] - place) / sigma) ** 2).to(like.dtype)


def _intensity_basis(images: Tensor, sigma: float) -> Tensor:
    """Return B [S, L, H, W] with exp(-(I_i - I_j)^2 / 2 sigma^2) = sum_l B_il B_jl, to about 1e-4."""
    value = images.double().clamp(_DARKEST, _BRIGHTEST)
    low, high = (float(x) for x in value.aminmax())
    levels = torch.linspace(low, high, math.ceil((high - low) / (0.7 * sigma)) + 3, dtype=torch.float64)
    levels = levels.to(images.device)
    between = torch.exp(-0.5 * ((levels[:, None] - levels) / sigma) ** 2)
    # K ~ A G^-1 A^T with A between pixels and levels, G between levels: B = A G^(-1/2).
    strength, direction = torch.linalg.eigh(between)
    usable = strength > 1e-8
    root = direction[:, usable] * strength[usable].rsqrt()
    to_levels = torch.exp(-0.5 * ((value - levels[:, None, None]) / sigma) ** 2)
    return torch.einsum("slhw,lk->skhw", to_levels, root).to(images.dtype)
