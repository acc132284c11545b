"""Separable resampling of a batch with other weights for every image, as sums of a few weighted rows.

Every output row is a weighted sum of K input rows, and `embedding_bag` is the fused kernel for that. Its sum runs over the
taps in order, per row, whatever else is in the batch and however many threads work: the result of an image is the same bits
in any company. The horizontal direction is the vertical one of the transposed image.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_vision.augment._images import to_float

_KEYS_TABLE = 1024  # TensorFlow looks the cubic up in a table of this many steps


class Taps(NamedTuple):
    """Which rows make an output row: `index` int64 and `weight` float32, both [N, out, K]."""

    index: Tensor
    weight: Tensor

    def rows(self, which: Tensor | slice) -> Taps:
        """The taps of some of the images."""
        return Taps(self.index[which], self.weight[which])


def keys_taps(start: Tensor, length: Tensor, *, out: int, flip: Tensor | None = None) -> Taps:
    """Bicubic taps of `tf.image.resize` (Keys, a = -1/2, half-pixel centres, no antialias) along one axis.

    Output position i looks at (i + 1/2) * length / out - 1/2 of the crop [start, start + length). As in TensorFlow the four
    weights come from a table of 1024 steps, taps outside of the crop weigh nothing, and the others are normalised to sum 1.

    Args:
        start: first row of each crop, int64 [N].
        length: rows of each crop, int64 [N].
        out: rows to make.
        flip: images to mirror along this axis, bool [N].
    """
    place = _places(out, start.device, flip)
    source = (place + 0.5) * (length.to(torch.float32) / out)[:, None] - 0.5
    left = source.floor()
    near = (source - left).mul_(_KEYS_TABLE).round_().div_(_KEYS_TABLE)
    far = 1 - near
    weight = torch.stack((_keys_outer(near + 1), _keys_inner(near), _keys_inner(far), _keys_outer(far + 1)), -1)
    row = left.long()[..., None] + torch.arange(-1, 3, device=start.device)
    last = length[:, None, None] - 1
    index = row.clamp_min(0).minimum(last)
    weight *= index == row
    weight /= weight.sum(-1, keepdim=True)
    return Taps(index.add_(start[:, None, None]), weight)


def _places(out: int, device: torch.device, flip: Tensor | None) -> Tensor:
    """Output positions [1 or N, out], counted from the other end in flipped images."""
    place = torch.arange(out, dtype=torch.float32, device=device)[None]
    return place if flip is None else torch.where(flip[:, None], out - 1 - place, place)


def _keys_inner(d: Tensor, a: float = -0.5) -> Tensor:
    """Keys' cubic at distances d in [0, 1]."""
    return ((a + 2) * d - (a + 3)) * d * d + 1


def _keys_outer(d: Tensor, a: float = -0.5) -> Tensor:
    """Keys' cubic at distances d in [1, 2]."""
    return ((a * d - 5 * a) * d + 8 * a) * d - 4 * a


def weighted_rows(table: Tensor, taps: Taps, *, first_row: Tensor) -> Tensor:
    """Sums of weighted rows for every channel of every image.

    Args:
        table: rows of all the images, [R, D], contiguous float32.
        taps: for n images, rows counted from the first row of a channel.
        first_row: where each channel of each image begins in `table`, int64 [C, n].

    Returns:
        [C, n, out, D].
    """
    index = first_row[..., None, None] + taps.index
    weight = taps.weight.expand(index.shape)
    k = index.shape[-1]
    rows = F.embedding_bag(index.view(-1, k), table, mode="sum", per_sample_weights=weight.reshape(-1, k))
    return rows.view(*index.shape[:-1], table.shape[1])


def first_rows(channels: int, images: int, height: int, *, image_major: bool, device: torch.device) -> Tensor:
    """Where the channels begin [channels, images] in a table of rows laid out image by image or channel by channel."""
    c = torch.arange(channels, device=device)[:, None]
    n = torch.arange(images, device=device)[None]
    return (n * channels + c) * height if image_major else (c * images + n) * height


def resample(images: Tensor, taps_y: Taps, taps_x: Taps) -> Tensor:
    """Resample float images [n, C, H, W] to *transposed planes* [C, n, out_x, out_y].

    Planes because colour operations want each channel in one piece, transposed because that saves a pass over memory.
    """
    n, c, h, w = images.shape
    first = first_rows(c, n, h, image_major=True, device=images.device)
    x = weighted_rows(images.reshape(-1, w), taps_y, first_row=first)
    x = x.transpose(2, 3).contiguous()
    first = first_rows(c, n, w, image_major=False, device=images.device)
    return weighted_rows(x.view(-1, x.shape[-1]), taps_x, first_row=first)


def crop_images(images: Tensor, taps_y: Taps, taps_x: Taps) -> Tensor:
    """Resample images [N, 3, H, W] to upright images [N, 3, out_y, out_x]."""
    return resample(to_float(images), taps_y, taps_x).permute(1, 0, 3, 2).contiguous()
