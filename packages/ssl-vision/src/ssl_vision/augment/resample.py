"""Separable resampling of a batch with other weights for every image, as sums of a few weighted rows.

Every output row is a weighted sum of K input rows, and `embedding_bag` is the fused kernel for that. Its sum runs over the
taps in order, per row, whatever else is in the batch and however many threads work: the result of an image is the same
bits in any company. The horizontal direction is the vertical one of the transposed image, so what comes out of a crop are
*transposed planes* [3, n, W, H]: colour does not mind, and transposing back can wait until the result is written.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_vision.augment.taps import Padding, Taps, gaussian_taps


def weighted_rows(table: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """Sums of weighted rows of `table` [R, D] (contiguous float32): index, weight [..., K] -> [..., D]."""
    k = index.shape[-1]
    bags = F.embedding_bag(index.reshape(-1, k), table, mode="sum", per_sample_weights=weight.reshape(-1, k))
    return bags.view(*index.shape[:-1], table.shape[1])


def crop_planes(images: Tensor, taps_y: Taps, taps_x: Taps) -> Tensor:
    """Resample uint8 or float images [n, 3, H, W] to transposed planes [3, n, out_x, out_y] with values in [0, 1]."""
    n, c, h, w = images.shape
    device = images.device
    # A row holds the three channels. Rows a multiple of 128 values apart would fight for the same lines of the cache when
    # they are transposed below.
    width = w + 16 if w % 128 == 0 else w
    table = torch.empty(n, h, c, width, device=device)
    table[..., :w].copy_(images.permute(0, 2, 1, 3))
    table[..., w:].zero_()
    unit = 1 / 255 if images.dtype == torch.uint8 else 1.0
    first = torch.arange(n, device=device)[:, None, None] * h
    x = weighted_rows(table.view(n * h, c * width), taps_y.index + first, taps_y.weight * unit)
    x = x.view(n, -1, c, width)[..., :w].permute(2, 0, 3, 1).contiguous()
    first = torch.arange(c * n, device=device).view(c, n, 1, 1) * w
    return weighted_rows(x.view(c * n * w, -1), taps_x.index + first, taps_x.weight.expand(c, -1, -1, -1))


def blur_planes(planes: Tensor, sigma: Tensor, *, which: slice, radius: int, padding: Padding) -> Tensor:
    """Blur the images `which` of transposed planes [3, N, W, H], sigma [n], to upright images [n, 3, H, W]."""
    c, total, w, h = planes.shape
    n = len(sigma)
    taps = gaussian_taps(sigma, radius=radius, length=w, padding=padding)
    first = (torch.arange(c * total, device=planes.device) * w).view(c, total, 1, 1)[:, which]
    x = weighted_rows(planes.view(-1, h), taps.index + first, taps.weight.expand(c, -1, -1, -1))
    x = x.transpose(2, 3).contiguous()
    if h != w:
        taps = gaussian_taps(sigma, radius=radius, length=h, padding=padding)
    first = torch.arange(c * n, device=planes.device).view(c, n).t()[:, :, None, None] * h
    return weighted_rows(x.view(-1, w), taps.index[:, None] + first, taps.weight[:, None].expand(-1, c, -1, -1))


def upright(planes: Tensor) -> Tensor:
    """Transposed planes [3, n, W, H] as images [n, 3, H, W]."""
    return planes.permute(1, 0, 3, 2).contiguous()
