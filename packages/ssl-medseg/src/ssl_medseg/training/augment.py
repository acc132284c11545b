"""Augment slices and their labels: affine maps, elastic deformation, brightness and contrast.

A whole batch at once; the random draws of an image are a function of its id.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from contrastive_core.errors import UserError
from contrastive_core.rng import uniform

__all__ = ["AugmentOptions", "deform", "jitter_intensity"]


@dataclass(frozen=True)
class AugmentOptions:
    """How labelled slices are augmented, each by draws of its own.

    Attributes:
        affine: one of five with equal chance: a rotation by up to 15 degrees, a zoom of 0.95 to 1.05, a left-right
            flip half of the time, a rotation by a multiple of 45 degrees, nothing.
        elastic: standard deviation of the 3 x 3 random displacements that bend a slice, in pixels of a slice of 192,
            and in proportion for other sizes; 5 in the paper; 0: none.
        elastic_share: share of the slices that are bent. The released code bends all after a random place of the batch
            of 20, which is 0.525 of them on average.
        intensity: brightness and contrast as for the contrastive loss. The released code builds it and does not reach
            it; few labelled patients do not show how differently bright others are.
    """

    affine: bool = True
    elastic: float = 5.0
    elastic_share: float = 0.525
    intensity: bool = True

    def __post_init__(self) -> None:
        if self.elastic < 0 or not 0 <= self.elastic_share <= 1:
            raise UserError(
                f"augment.elastic is {self.elastic} and augment.elastic_share {self.elastic_share}; expected pixels of "
                "at least 0, and a share between 0 and 1"
            )


_KNOTS = 3
_FULL_SIZE = 192
_AFFINE_DRAWS, _ELASTIC_DRAWS = 2, 1 + 2 * _KNOTS**2
_ROTATE, _ZOOM, _FLIP, _TURN, _CHOICES = range(5)


@torch.no_grad()
def deform(
    images: Tensor, classes: Tensor, *, num_classes: int, seed: int, ids: Tensor, options: AugmentOptions
) -> tuple[Tensor, Tensor]:
    """Move the pixels of every image, and of its label with them.

    First the affine map of :class:`AugmentOptions`, about the centre, then the bending, as in the released code; but
    both in one bilinear interpolation, which blurs once. Labels are interpolated as class shares, so that a pixel on a
    border belongs to both sides in part. What lies outside is 0 and background.

    Args:
        images: float [N, 1, H, W].
        classes: integers [N, H, W].
        num_classes: C, the background included.
        seed: of the draws; give every step and view its own.
        ids: int64 [N]: an image's draws are a function of (seed, id).
        options: which maps.

    Returns:
        Images [N, 1, H, W] and class shares [N, C, H, W], which sum to 1.

    Time and memory: those of one ``grid_sample`` of C channels.
    """
    places = sampling_places(
        images.shape[-2:], seed=seed, ids=ids.to(images.device, non_blocking=True), options=options
    )
    structures = torch.arange(1, num_classes, device=images.device)[:, None, None]
    layers = torch.cat([images, (classes[:, None] == structures).to(images.dtype)], 1)
    moved = F.grid_sample(layers, places.to(images.dtype), mode="bilinear", padding_mode="zeros", align_corners=False)
    foreground = moved[:, 1:]
    background = (1 - foreground.sum(1, keepdim=True)).clamp(min=0)
    return moved[:, :1], torch.cat([background, foreground], 1)


def sampling_places(size: torch.Size, *, seed: int, ids: Tensor, options: AugmentOptions) -> Tensor:
    """Where in the image each pixel comes from: (x, y) as ``grid_sample`` takes them, float32 [N, H, W, 2]."""
    height, width = size
    draws = uniform(seed, ids, _AFFINE_DRAWS + _ELASTIC_DRAWS)
    half = torch.tensor([width / 2, height / 2]).to(ids.device, non_blocking=True)
    # Pixels relative to the centre, so that a rotation keeps angles on slices that are not square.
    places = _pixels(height, width).to(ids.device, non_blocking=True).expand(len(ids), -1, -1, -1)
    if options.elastic > 0:
        places = places + _bending(draws[:, _AFFINE_DRAWS:], height, width, options)
    if options.affine:
        places = torch.einsum("nhwi,nji->nhwj", places, _affine(draws))
    return places / half


def _affine(draws: Tensor) -> Tensor:
    """Matrices [N, 2, 2] from a pixel of the result to one of the image, about the centre."""
    choice = (draws[:, 0] * (_CHOICES + 1)).long()
    amount = draws[:, 1]
    angle = torch.where(choice == _ROTATE, math.radians(30) * (amount - 0.5), 0.0)
    angle = torch.where(choice == _TURN, math.pi / 4 * (8 * amount).floor(), angle)
    scale = torch.where(choice == _ZOOM, 1 / (0.95 + 0.1 * amount), 1.0)
    flip = torch.where((choice == _FLIP) & (amount < 0.5), -1.0, 1.0)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    return torch.stack([torch.stack([cos * flip, -sin], 1), torch.stack([sin * flip, cos], 1)], 1)


def _bending(draws: Tensor, height: int, width: int, options: AugmentOptions) -> Tensor:
    """Displacements [N, H, W, 2] in pixels: normal at 3 x 3 knots, bicubic between them."""
    # 2^-25 keeps the draw, of 24 bits, off 0 and 1, where the normal quantile is infinite.
    normal = math.sqrt(2) * torch.erfinv(2 * (draws[:, 1:] + 2**-25) - 1)
    knots = normal.view(-1, 2, _KNOTS, _KNOTS) * (options.elastic * max(height, width) / _FULL_SIZE)
    knots = knots * (draws[:, :1] < options.elastic_share)[..., None, None]
    rows, columns = (_bicubic(size).to(draws.device, non_blocking=True) for size in (height, width))
    return (rows @ knots @ columns.T).permute(0, 2, 3, 1)


@cache
def _pixels(height: int, width: int) -> Tensor:
    """Centres of the pixels relative to the centre of the image, (x, y) [H, W, 2]."""
    y, x = (torch.arange(n) - (n - 1) / 2 for n in (height, width))
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)


@cache
def _bicubic(size: int) -> Tensor:
    """Weights [size, 3] of the knots along an axis."""
    knots = torch.eye(_KNOTS)[None, :, :, None]
    return F.interpolate(knots, size=(size, 1), mode="bicubic", align_corners=True)[0, :, :, 0].T.contiguous()


@torch.no_grad()
def jitter_intensity(
    images: Tensor, *, seed: int, ids: Tensor, brightness: float = 0.3, contrast: float = 0.3, largest: float = 1.5
) -> Tensor:
    """Change brightness, then contrast about the image's mean, then clip to [0, largest].

        x <- x + b,   x <- (x - mean x) c + mean x,   b ~ U(-brightness, brightness),  c ~ U(1 - contrast, 1 + contrast)

    The pixels stay where they are, so labels stay valid. The released code draws one b and one c for the batch; here
    every image has its own.

    Args:
        images: float [N, 1, H, W], about 0 to 1.
        seed: of the draws; give every step and view its own.
        ids: int64 [N]: an image's draws are a function of (seed, id).
        brightness: largest change; 0.3 in the released code.
        contrast: largest change of the factor; 0.3 in the released code.
        largest: value above which is clipped.
    """
    draws = uniform(seed, ids.to(images.device, non_blocking=True), 2).to(images.dtype)[..., None, None, None]
    shift, factor = brightness * (2 * draws[:, 0] - 1), 1 + contrast * (2 * draws[:, 1] - 1)
    shifted = images + shift
    mean = shifted.mean((1, 2, 3), keepdim=True)
    return ((shifted - mean) * factor + mean).clamp(0, largest)
