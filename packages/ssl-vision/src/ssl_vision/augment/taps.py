"""Which rows, with which weights, make each output row of a resampling: bicubic, antialiased, Gaussian.

Everything is a few numbers per row of the result, for a batch of images with a crop or a blur of their own. Rows of a
crop are counted from its first.
"""

from __future__ import annotations

from functools import cache, reduce
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

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
    weight = _keys_table().to(length.device).index_select(0, step.view(-1)).view(*step.shape, 4)
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
