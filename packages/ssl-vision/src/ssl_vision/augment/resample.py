"""Separable resampling of a batch with different weights for every image: bicubic, antialiased, Gaussian.

Every output row is a weighted sum of K input rows, its taps, and `embedding_bag` is the fused kernel for that. It sums
the taps in order, per row, whatever else is in the batch and however many threads work, so that the result of an image
is bit for bit the same in any batch. The horizontal direction is the vertical one of the transposed image: a crop
yields *transposed planes* [3, n, W, H], which colour operations do not mind, and transposing back waits until the
result is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache, reduce
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ssl_vision.augment.color import per_image, transposed_planes

Padding = Literal["zero", "reflect"]

_KEYS_STEPS = 1024


class Taps(NamedTuple):
    """Which rows make an output row: `row` int64 and `weight` float32, both [N, out, K]."""

    row: Tensor
    weight: Tensor

    def pick(self, which: Tensor | slice) -> Taps:
        """The taps of some of the images."""
        return Taps(self.row[which], self.weight[which])


def keys_taps(length: Tensor, *, out: int, flip: Tensor | None = None) -> Taps:
    """Bicubic taps of `tf.image.resize` (Keys, a = -1/2, half-pixel centres, no antialias) along one axis.

    Output position i looks at row (i + 1/2) * length / out - 1/2 of the crop. As in TensorFlow the four weights come
    from a table of 1024 steps, taps outside of the crop weigh nothing, and the others are normalised to sum 1.

    Args:
        length: rows of each crop, int64 [N].
        out: rows to make.
        flip: crops to mirror along this axis, bool [N].
    """
    source = output_places(out, flip, device=length.device).add(0.5) * (length.to(torch.float32) / out)[:, None] - 0.5
    left = source.floor()
    step = source.sub_(left).mul_(_KEYS_STEPS).round_().long()
    weight = _keys_table().to(length.device, non_blocking=True).index_select(0, step.view(-1)).view(*step.shape, 4)
    row = left.long()[..., None] + torch.arange(-1, 3, device=length.device)
    index = row.clamp_min(0).minimum((length - 1)[:, None, None])
    weight.mul_(index == row)
    weight.div_(_total(weight))
    return Taps(index, weight)


def output_places(out: int, flip: Tensor | None, *, device: torch.device) -> Tensor:
    """Output positions [1 or N, out], counted from the other end in flipped images."""
    place = torch.arange(out, dtype=torch.float32, device=device)[None]
    return place if flip is None else (place - (out - 1) * flip[:, None]).abs_()


@cache
def _keys_table() -> Tensor:
    """Keys' cubic, a = -1/2, at distances 1 + t, t, 1 - t, 2 - t for t = 0, 1/1024, ..., 1: float32 [1025, 4]."""
    near = torch.arange(_KEYS_STEPS + 1, dtype=torch.float32) / _KEYS_STEPS
    return _keys_cubic(torch.stack((near + 1, near, 1 - near, 2 - near), -1))


def _total(weight: Tensor) -> Tensor:
    """Sum over the taps [N, out, 1], one after the other.

    Trailing zeros, of which a batch with a larger image has more, then change no bit; in the order that `sum` chooses
    they might.
    """
    return reduce(torch.add, weight.unbind(-1))[..., None]


def antialias_taps(length: Tensor, *, out: int, flip: Tensor | None = None, cubic: bool = False) -> Taps:
    """Taps of PIL's and torchvision's antialiased resize along one axis: a triangle (or Keys' cubic, a = -1/2).

    The filter is stretched by length / out when that makes the image smaller. Arguments as in `keys_taps`; K is the
    largest number of taps in the batch, and further taps weigh nothing.
    """
    scale = (length.to(torch.float32) / out)[:, None]
    stretch = scale.clamp_min(1)
    support = stretch * (2.0 if cubic else 1.0)
    centre = (output_places(out, flip, device=length.device) + 0.5) * scale
    low = (centre - support + 0.5).floor_().clamp_min_(0)
    high = torch.minimum((centre + support + 0.5).floor_(), length[:, None])
    offset = torch.arange(max(1, int((high - low).max())) if len(length) else 1, device=length.device)
    row = low[..., None] + offset
    distance = ((row - centre[..., None] + 0.5) / stretch[..., None]).abs_()
    weight = _keys_cubic(distance) if cubic else (1 - distance).clamp_min_(0)
    weight.mul_(row < high[..., None])
    weight.div_(_total(weight))
    index = torch.minimum(row, high[..., None] - 1).long()
    return Taps(index, weight)


def _keys_cubic(d: Tensor, a: float = -0.5) -> Tensor:
    """Keys' cubic at distances d >= 0."""
    inner = ((a + 2) * d - (a + 3)) * d * d + 1
    outer = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return torch.where(d <= 1, inner, outer * (d < 2))


def gaussian_kernel(sigma: NDArray[np.float32], *, radius: int) -> Tensor:
    """exp(-k^2 / (2 sigma^2)), |k| <= radius, normalised to sum 1: sigma [N] in pixels -> float32 [N, 1, taps]."""
    offset = np.arange(-radius, radius + 1, dtype=np.float64)
    kernel = np.exp(-(offset**2) / (2 * sigma[:, None].astype(np.float64) ** 2))
    return torch.from_numpy((kernel / kernel.sum(1, keepdims=True)).astype(np.float32)[:, None])


def gaussian_rows(length: int, *, radius: int, padding: Padding, device: torch.device) -> tuple[Tensor, Tensor]:
    """Which rows the taps of a blur look at, int64 [length, taps], and 1 or 0 for those that count, float32.

    Rows outside of the image are zeros (`padding="zero"`) or the mirrored inside without the border row repeated
    (`padding="reflect"`).
    """
    row = torch.arange(length, device=device)[:, None] + torch.arange(-radius, radius + 1, device=device)
    if padding == "zero":
        nearest = row.clamp(0, length - 1)
        return nearest, (nearest == row).float()
    if radius >= length:
        raise ValueError(
            f"a kernel of {2 * radius + 1} taps needs images of more than {radius} pixels a side to reflect, "
            f"got {length}: take a smaller kernel"
        )
    mirrored = (length - 1) - ((length - 1) - row.abs()).abs()
    return mirrored, torch.ones(length, 1, device=device)


_SMALL_IMAGE = 1 << 14  # pixels


def weighted_rows(table: Tensor, row: Tensor, weight: Tensor) -> Tensor:
    """Sums of weighted rows of `table` [R, D] (contiguous float32): row, weight [..., K] -> [..., D]."""
    bags = F.embedding_bag(
        row.reshape(-1),
        table,
        _starts(row.numel(), row.shape[-1], row.device),
        mode="sum",
        per_sample_weights=weight.reshape(-1),
    )
    return bags.view(*row.shape[:-1], table.shape[1])


@lru_cache(maxsize=16)
def _starts(count: int, step: int, device: torch.device) -> Tensor:
    """Where each sum of `step` rows begins."""
    return torch.arange(0, count, step, device=device)


def crop_planes(
    images: Tensor | Sequence[Tensor],
    boxes: NDArray[np.int64],
    taps_y: Taps,
    taps_x: Taps,
    *,
    which: NDArray[np.int64] | None = None,
) -> Tensor:
    """Resample crops of uint8 or float images to transposed planes [3, n, out_x, out_y].

    Values keep their scale: `unit_taps` takes bytes to [0, 1].

    Args:
        images: [N, 3, H, W], or N images [3, H_i, W_i] of their own sizes.
        boxes: top, left, height and width of the crops, int64 [n, 4].
        taps_y: rows of every view, counted within its crop.
        taps_x: columns of every view.
        which: the image of every view, int64 [n]; all in their order if left out.
    """
    n, c = len(boxes), images[0].shape[0] if len(images) else 3
    source = np.arange(n) if which is None else which
    device = taps_x.row.device
    if isinstance(images, Tensor) and (device.type != "cpu" or images.shape[2] * images.shape[3] <= _SMALL_IMAGE):
        _, _, height, width = images.shape
        corner = torch.from_numpy(boxes[:, :2] + source[:, None] * [height, 0]).to(device, non_blocking=True)
        columns = _resample_rows(images, taps_y.row + corner[:, :1, None], taps_y.weight).flatten(0, 2)
        first = torch.arange(c * n, device=device).mul_(width).view(c, n) + corner[:, 1]
    else:
        # Large images: cutting first saves more than working on all images at once.
        parts = []
        for i, (top, left, height, width) in enumerate(boxes.tolist()):
            window = images[int(source[i])].narrow(1, top, height).narrow(2, left, width)[None]
            taps = taps_y if n == 1 else taps_y.pick(slice(i, i + 1))
            parts.append(_resample_rows(window, taps.row, taps.weight).flatten(0, 2))
        columns = torch.cat(parts) if n > 1 else parts[0]
        widths = boxes[:, 3]
        first = torch.from_numpy(np.arange(c)[:, None] * widths + c * (widths.cumsum() - widths)).to(device)
    return weighted_rows(columns, taps_x.row + first[..., None, None], taps_x.weight.expand(c, -1, -1, -1))


def unit_taps(taps: Taps, images: Tensor | Sequence[Tensor]) -> Taps:
    """Taps that also take bytes 0..255 to [0, 1]."""
    is_bytes = len(images) > 0 and images[0].dtype == torch.uint8
    return Taps(taps.row, taps.weight * (1 / 255)) if is_bytes else taps


def _resample_rows(images: Tensor, row: Tensor, weight: Tensor) -> Tensor:
    """The vertical half of a crop: [n, 3, H, W], rows counted over all images, to transposed planes [3, m, W, out]."""
    n, c, h, w = images.shape
    # A row of the table holds the three channels, filled up to 16 values, because `embedding_bag` compiles itself for
    # every length of rows. Rows a multiple of 128 values apart would fight for the same lines of the cache when
    # transposed.
    width = -(-w // 16) * 16
    width += 16 if width % 128 == 0 else 0
    table = torch.empty(n, h, c, width, device=images.device)
    table.narrow(3, 0, w).copy_(images.permute(0, 2, 1, 3))  # what fills the rows up is never looked at
    rows = weighted_rows(table.view(n * h, c * width), row, weight)
    return rows.view(*row.shape[:2], c, width).narrow(3, 0, w).permute(2, 0, 3, 1).contiguous()


class Blur:
    """Gaussian blur of transposed planes of one size, with a kernel for each image."""

    def __init__(self, width: int, height: int, *, radius: int, padding: Padding, device: torch.device) -> None:
        self.across = gaussian_rows(width, radius=radius, padding=padding, device=device)
        self.down = self.across
        if height != width:
            self.down = gaussian_rows(height, radius=radius, padding=padding, device=device)

    def __call__(self, planes: Tensor, kernel: Tensor, *, which: Tensor | None = None) -> Tensor:
        """Blur images of planes [3, N, W, H] with their kernels [n, 1, taps]: across, then down.

        Args:
            planes: transposed planes.
            kernel: one for each image to blur.
            which: these images, int64 [n]; all if left out.

        Returns:
            Upright images [n, 3, H, W].
        """
        c, total, w, h = planes.shape
        n, device = len(kernel), planes.device
        row, inside = self.across
        first = torch.arange(c * total, device=device).mul_(w).view(c, total, 1, 1)
        first = first if which is None else first.index_select(1, which)
        x = weighted_rows(planes.view(-1, h), row + first, (kernel * inside).expand(c, -1, -1, -1))
        x = x.transpose(2, 3).contiguous()
        row, inside = self.down
        first = torch.arange(c * n, device=device).mul_(h).view(c, n, 1, 1).transpose(0, 1)
        return weighted_rows(x.view(-1, w), row + first, (kernel * inside)[:, None].expand(-1, c, -1, -1))


def blur_images(images: Tensor, sigma: float | Tensor, *, kernel_size: int, padding: Padding) -> Tensor:
    """Blur images [N, 3, H, W] with one sigma, or one each, over kernel_size pixels, made odd."""
    _, _, h, w = images.shape
    widths = per_image("sigma", sigma, images)[:, 0].cpu().numpy()
    if not (widths > 0).all():
        raise ValueError(f"sigma must be positive (in pixels), got {widths.min()}")
    if kernel_size < 1:
        raise ValueError(f"kernel_size must be at least 1, got {kernel_size}")
    radius = kernel_size // 2
    blur = Blur(w, h, radius=radius, padding=padding, device=images.device)
    return blur(transposed_planes(images), gaussian_kernel(widths, radius=radius).to(images.device))


def upright(planes: Tensor) -> Tensor:
    """Transposed planes [3, n, W, H] as images [n, 3, H, W]."""
    return planes.permute(1, 0, 3, 2).contiguous()
