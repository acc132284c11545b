"""Colour operations in place on planes: [3, n, P] float32, channel first, P pixels in any order, a parameter per image.

They are written without comparisons and selections, because `where` costs as much as twenty additions, and with
nothing but correctly rounded arithmetic, so that a pixel's result does not depend on where in memory, in which batch
or by which thread it is worked on. They do not clip.
"""

from __future__ import annotations

import torch
from torch import Tensor

GREY = (0.2989, 0.587, 0.114)
_TINY = torch.finfo(torch.float32).tiny
_CENTRES = (0.0, 2.0, 4.0)  # of red, green and blue, in sixths of a turn


def scale_(x: Tensor, factor: Tensor) -> Tensor:
    """Multiply by factor [n, 1]: brightness of torchvision, and of SimCLR since the second paper."""
    return x.mul_(factor)


def shift_(x: Tensor, delta: Tensor) -> Tensor:
    """Add delta [n, 1]: brightness of the first SimCLR paper."""
    return x.add_(delta)


def channel_contrast_(x: Tensor, factor: Tensor) -> Tensor:
    """Away from the mean of each channel by factor [n, 1]: TensorFlow's contrast."""
    return _contrast_(x, x.mean(-1, keepdim=True), factor)


def grey_contrast_(x: Tensor, factor: Tensor) -> Tensor:
    """Away from the mean of the grey image by factor [n, 1]: torchvision's contrast."""
    # The mean of the grey image is the grey of the means. A mean of one single row would be split over the threads, and
    # its last bits would depend on their number.
    red, green, blue = x.mean(-1, keepdim=True).unbind(0)
    return _contrast_(x, red * GREY[0] + green * GREY[1] + blue * GREY[2], factor)


def _contrast_(x: Tensor, mean: Tensor, factor: Tensor) -> Tensor:
    return x.mul_(factor).add_(mean.mul_(1 - factor))


def hsv_saturation_(x: Tensor, factor: Tensor) -> Tensor:
    """Multiply the S of HSV by factor [n, 1] and clip it to [0, 1]: TensorFlow's saturation.

    With V the largest and d the range of a pixel's channels, S = d / V, and scaling S by k takes a channel c to
    V + (c - V) k. The clip, k S <= 1, is k <= V / d. Where the bicubic crop left V negative, TensorFlow takes S = 0;
    here the channels stay negative too, and the clip makes both black.
    """
    value = x.amax(0)
    k = value - x.amin(0)
    torch.div(value, k.clamp_min_(_TINY), out=k)
    torch.minimum(k, factor, out=k)
    return x.sub_(value).mul_(k).add_(value)


def grey_saturation_(x: Tensor, factor: Tensor) -> Tensor:
    """Away from the grey image by factor [n, 1]: torchvision's saturation."""
    grey = _grey(x)
    return x.mul_(factor).add_(grey.mul_(1 - factor))


def hue_(x: Tensor, delta: Tensor) -> Tensor:
    """Turn the H of HSV by delta [n, 1] turns: hue of both libraries."""
    return hue_sixths_(x, hue_shifts(delta))


def hue_shifts(delta: Tensor) -> Tensor:
    """How far a pixel of hue 0, turned by delta [n, 1], is from each channel: [3, n, 1] sixths of a turn in [-3, 3)."""
    centres = torch.tensor(_CENTRES, device=delta.device)[:, None, None]
    return torch.remainder(6 * delta - centres + 3, 6) - 3


def hue_sixths_(x: Tensor, shifts: Tensor) -> Tensor:
    """Turn the hue by `hue_shifts(delta)`.

    Measure hue in sixths of a turn from red. With a the channels scaled to [0, 1] within the pixel, its distance from
    red is 1 - a_R + a_G + a_B, on the side of green when G > B. A channel whose own hue is at distance y from the new
    hue is then clip(| |y| - 3 | - 1, 0, 1) of the pixel's range above its lowest channel, for y within a turn either
    way.
    """
    low = x.amin(0)
    spread = x.sub_(low).amax(0)
    red, green, blue = x.unbind(0)
    hue = torch.sub(spread, red).add_(green).add_(blue)
    hue.div_(torch.clamp_min(spread, _TINY, out=red))
    torch.copysign(hue, green.sub_(blue), out=hue)
    torch.add(hue, shifts, out=x)
    # clip(w, 1, 2) * spread + (low - spread) is (clip(w, 1, 2) - 1) * spread + low with a pass less.
    return x.abs_().sub_(3).abs_().clamp_(1, 2).mul_(spread).add_(low.sub_(spread))


def grayscale_(x: Tensor) -> Tensor:
    """0.2989 R + 0.587 G + 0.114 B in every channel: grey of both libraries."""
    return x.copy_(_grey(x).expand_as(x))


def _grey(x: Tensor) -> Tensor:
    red, green, blue = x.unbind(0)
    grey = torch.mul(red, GREY[0])
    rest = torch.mul(green, GREY[1])
    grey.add_(rest)
    return grey.add_(torch.mul(blue, GREY[2], out=rest))
