"""Gaussian blur with one width per image, as two passes of weighted rows."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ssl_vision.augment.resample import Taps, first_rows, weighted_rows

Padding = Literal["zero", "reflect"]


def gaussian_taps(sigma: Tensor, *, radius: int, length: int, padding: Padding) -> Taps:
    """Taps exp(-k^2 / (2 sigma^2)), |k| <= radius, normalised to sum 1, for `length` rows.

    Rows outside of the image are zeros (`padding="zero"`) or the mirrored inside without the border row repeated
    (`padding="reflect"`).

    Args:
        sigma: width in pixels per image, [N].
        radius: taps on either side.
        length: rows of the image.
        padding: what lies outside.
    """
    offset = torch.arange(-radius, radius + 1, device=sigma.device)
    kernel = torch.exp(-(offset.double() ** 2) / (2 * sigma.double()[:, None] ** 2))
    kernel = (kernel / kernel.sum(1, keepdim=True)).float()
    row = torch.arange(length, device=sigma.device)[:, None] + offset
    if padding == "zero":
        index = row.clamp(0, length - 1)
        weight = kernel[:, None, :] * (index == row)
    else:
        if radius >= length:
            raise ValueError(
                f"reflect padding needs more than {radius} pixels a side, got {length}: take a smaller kernel"
            )
        index = (length - 1) - ((length - 1) - row.abs()).abs()
        weight = kernel[:, None, :].expand(-1, length, -1)
    return Taps(index.expand(len(sigma), -1, -1), weight)


def blur_transposed(planes: Tensor, sigma: Tensor, *, radius: int, padding: Padding, first: int, total: int) -> Tensor:
    """Blur images of transposed planes, horizontally then vertically.

    Args:
        planes: [3, total, W, H], contiguous.
        sigma: width per image to blur, [n].
        radius: taps on either side.
        padding: what lies outside of the image.
        first: the first of the n images among the `total` of the planes.
        total: images in the planes.

    Returns:
        Upright images [n, 3, H, W].
    """
    c, _, w, h = planes.shape
    n = len(sigma)
    base = first_rows(c, total, w, image_major=False, device=planes.device)[:, first : first + n]
    x = weighted_rows(
        planes.view(-1, h), gaussian_taps(sigma, radius=radius, length=w, padding=padding), first_row=base
    )
    x = x.transpose(2, 3).contiguous()
    taps = gaussian_taps(sigma, radius=radius, length=h, padding=padding)
    base = first_rows(c, n, h, image_major=False, device=planes.device)
    return weighted_rows(x.view(-1, w), taps, first_row=base).transpose(0, 1)


def blur_images(images: Tensor, sigma: Tensor, *, radius: int, padding: Padding) -> Tensor:
    """Blur images [N, 3, H, W] with one sigma each."""
    planes = images.float().permute(1, 0, 3, 2).contiguous()
    n = len(images)
    return blur_transposed(planes, sigma, radius=radius, padding=padding, first=0, total=n).contiguous()
