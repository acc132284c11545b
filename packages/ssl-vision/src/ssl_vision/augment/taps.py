"""Which rows, with which weights, make each output row of a resampling: bicubic, antialiased, Gaussian; other in every image.

All are plain arithmetic on small tensors, the same bits on every device.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Padding = Literal["zero", "reflect"]
Filter = Literal["bilinear", "bicubic"]

_KEYS_TABLE = 1024  # TensorFlow looks the cubic up in a table of this many steps


class Taps(NamedTuple):
    """Which rows make an output row: `index` int64 and `weight` float32, both [N, out, K]."""

    index: Tensor
    weight: Tensor

    def pick(self, which: Tensor | slice) -> Taps:
        """The taps of some of the images."""
        return Taps(self.index[which], self.weight[which])


def keys_taps(start: Tensor, length: Tensor, *, out: int, flip: Tensor | None = None) -> Taps:
    """Bicubic taps of `tf.image.resize` (Keys, a = -1/2, half-pixel centres, no antialias) along one axis.

    Output position i looks at (i + 1/2) * length / out - 1/2 of the crop [start, start + length). As in TensorFlow the
    four weights come from a table of 1024 steps, taps outside of the crop weigh nothing, and the others are normalised to
    sum 1.

    Args:
        start: first row of each crop, int64 [N].
        length: rows of each crop, int64 [N].
        out: rows to make.
        flip: crops to mirror along this axis, bool [N].
    """
    source = _places(out, start.device, flip).add(0.5) * (length.to(torch.float32) / out)[:, None] - 0.5
    left = source.floor()
    near = source.sub_(left).mul_(_KEYS_TABLE).round_().div_(_KEYS_TABLE)
    far = 1 - near
    weight = torch.stack((_keys_outer(near + 1), _keys_inner(near), _keys_inner(far), _keys_outer(far + 1)), -1)
    row = left.long()[..., None] + torch.arange(-1, 3, device=start.device)
    index = row.clamp_min(0).minimum(length[:, None, None] - 1)
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
    kernel = (kernel / kernel.sum(1, keepdim=True)).float()[:, None, :]
    row = torch.arange(length, device=sigma.device)[:, None] + offset
    if padding == "zero":
        index = row.clamp(0, length - 1)
        weight = kernel * (index == row)
    else:
        if radius >= length:
            raise ValueError(
                f"a kernel of {2 * radius + 1} taps needs images of more than {radius} pixels a side to reflect, "
                f"got {length}: take a smaller kernel"
            )
        index = (length - 1) - ((length - 1) - row.abs()).abs()
        weight = kernel.expand(-1, length, -1)
    return Taps(index.expand(len(sigma), -1, -1), weight)
