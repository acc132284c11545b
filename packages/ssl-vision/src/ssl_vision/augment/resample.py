"""Separable resampling of a batch with other weights for every image, as sums of a few weighted rows.

Every output row is a weighted sum of K input rows, and `embedding_bag` is the fused kernel for that. Its sum runs
over the taps in order, per row, whatever else is in the batch and however many threads work: the result of an image
is the same bits in any company. The horizontal direction is the vertical one of the transposed image, so what comes
out of a crop are *transposed planes* [3, n, W, H]: colour does not mind, and transposing back can wait until the
result is written.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_vision.augment.taps import GaussianTaps, Padding, Taps

_SMALL_IMAGE = 1 << 14  # pixels


def weighted_rows(table: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """Sums of weighted rows of `table` [R, D] (contiguous float32): index, weight [..., K] -> [..., D]."""
    k = index.shape[-1]
    bags = F.embedding_bag(index.reshape(-1, k), table, mode="sum", per_sample_weights=weight.reshape(-1, k))
    return bags.view(*index.shape[:-1], table.shape[1])


def crop_planes(images: Tensor | Sequence[Tensor], boxes: Tensor, taps_y: Taps, taps_x: Taps) -> Tensor:
    """Resample crops of uint8 or float images to transposed planes [3, n, out_x, out_y] with values in [0, 1].

    Args:
        images: [n, 3, H, W], or n images [3, H_i, W_i] of their own sizes.
        boxes: top, left, height and width of the crops, int64 [n, 4].
        taps_y: rows of every view, counted within its crop.
        taps_x: columns of every view.
    """
    n, c = len(boxes), 3
    if isinstance(images, Tensor) and (images.is_cuda or images.shape[2] * images.shape[3] <= _SMALL_IMAGE):
        width = images.shape[3]
        boxes = boxes.to(images.device)
        columns = _resample_rows(images, taps_y.row + boxes[:, :1, None], taps_y.weight).flatten(0, 2)
        first = torch.arange(c * n, device=columns.device).mul_(width).view(c, n) + boxes[:, 1]
    else:
        # Large images: cutting first saves more than working on all images at once.
        parts = []
        for i, (top, left, height, width) in enumerate(boxes.tolist()):
            window = images[i][None, :, top : top + height, left : left + width]
            parts.append(_resample_rows(window, *taps_y.pick(slice(i, i + 1))).flatten(0, 2))
        columns = torch.cat(parts) if n > 1 else parts[0]
        widths = boxes[:, 3].to(columns.device)
        first = torch.arange(c, device=columns.device)[:, None] * widths + c * (widths.cumsum(0) - widths)
    index = taps_x.row + first[..., None, None]
    return weighted_rows(columns, index, taps_x.weight.expand(c, -1, -1, -1))


def _resample_rows(images: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """[n, 3, H, W] to transposed planes [3, n, W, out]: the vertical half of a crop."""
    n, c, h, w = images.shape
    # A row of the table holds the three channels, filled up to 16 values, because `embedding_bag` compiles itself for
    # every length of rows. Rows a multiple of 128 values apart would fight for the same lines of the cache when
    # transposed.
    width = -(-w // 16) * 16
    width += 16 if width % 128 == 0 else 0
    table = torch.empty(n, h, c, width, device=images.device)
    table[..., :w].copy_(images.permute(0, 2, 1, 3))
    if width > w:
        table[..., w:].zero_()
    if n > 1:
        index = torch.arange(n, device=images.device).mul_(h)[:, None, None] + index
    if images.dtype == torch.uint8:
        weight = weight * (1 / 255)
    rows = weighted_rows(table.view(n * h, c * width), index, weight)
    return rows.view(n, -1, c, width)[..., :w].permute(2, 0, 3, 1).contiguous()


class Blur:
    """Gaussian blur of transposed planes of one size, with one sigma per image."""

    def __init__(self, width: int, height: int, *, radius: int, padding: Padding, device: torch.device) -> None:
        self.across = GaussianTaps(width, radius=radius, padding=padding, device=device)
        self.down = (
            self.across if height == width else GaussianTaps(height, radius=radius, padding=padding, device=device)
        )

    def __call__(self, planes: Tensor, sigma: Tensor, *, which: slice = slice(None)) -> Tensor:
        """Blur the images `which` of planes [3, N, W, H], sigma [n], across then down, to images [n, 3, H, W]."""
        c, total, w, h = planes.shape
        n, device = len(sigma), planes.device
        across = self.across(sigma)
        down = across if self.down is self.across else self.down(sigma)
        first = torch.arange(c * total, device=device).mul_(w).view(c, total, 1, 1)[:, which]
        x = weighted_rows(planes.view(-1, h), across.row + first, across.weight.expand(c, -1, -1, -1))
        x = x.transpose(2, 3).contiguous()
        first = torch.arange(c * n, device=device).mul_(h).view(c, n, 1, 1).transpose(0, 1)
        return weighted_rows(x.view(-1, w), down.row[:, None] + first, down.weight[:, None].expand(-1, c, -1, -1))


def upright(planes: Tensor) -> Tensor:
    """Transposed planes [3, n, W, H] as images [n, 3, H, W]."""
    return planes.permute(1, 0, 3, 2).contiguous()
