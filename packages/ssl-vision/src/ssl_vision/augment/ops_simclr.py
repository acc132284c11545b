"""The colour operations and the crop of the official SimCLR code (TensorFlow semantics), one parameter per image.

The public functions take images [N, 3, H, W] with values in [0, 1] and a parameter that is a number or a tensor [N]; they
return new float32 images and, like the official operations, clip nothing. The same arithmetic works in place on *planes*
[3, N, P] (channel first, P pixels in any order) in the functions ending with an underscore, which the augmentation uses.

They are written without comparisons and selections: `where` costs twenty times an addition here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ssl_vision.augment._images import as_planes, check_images, from_planes, per_image, transposed_planes
from ssl_vision.augment.resample import blur_planes, crop_planes, upright
from ssl_vision.augment.taps import keys_taps

GREY = (0.2989, 0.587, 0.114)
_TINY = torch.finfo(torch.float32).tiny


def brightness(images: Tensor, factor: float | Tensor) -> Tensor:
    """Multiply by `factor` (the code since SimCLRv2)."""
    return from_planes(brightness_(as_planes(images), per_image("factor", factor, images)), images)


def add_brightness(images: Tensor, delta: float | Tensor) -> Tensor:
    """Add `delta` (the first paper and its code)."""
    return from_planes(add_brightness_(as_planes(images), per_image("delta", delta, images)), images)


def contrast(images: Tensor, factor: float | Tensor) -> Tensor:
    """`(x - mean) * factor + mean` with the mean over the pixels of each channel of each image."""
    return from_planes(contrast_(as_planes(images), per_image("factor", factor, images)), images)


def saturation(images: Tensor, factor: float | Tensor) -> Tensor:
    """Multiply the S of HSV by `factor`, S clipped to [0, 1]; H and V stay."""
    return from_planes(saturation_(as_planes(images), per_image("factor", factor, images)), images)


def hue(images: Tensor, delta: float | Tensor) -> Tensor:
    """Add `delta` turns to the H of HSV; S and V stay."""
    return from_planes(hue_(as_planes(images), per_image("delta", delta, images)), images)


def grayscale(images: Tensor) -> Tensor:
    """0.2989 R + 0.587 G + 0.114 B in all three channels."""
    return from_planes(grayscale_(as_planes(images)), images)


def gaussian_blur(images: Tensor, sigma: float | Tensor, *, kernel_size: int) -> Tensor:
    """Blur with the taps exp(-k^2 / (2 sigma^2)), |k| <= kernel_size // 2, normalised to sum 1, and zeros around the image.

    So borders darken, as in the official code. The pre-training uses kernel_size = H // 10.
    """
    width = per_image("sigma", sigma, images)[:, 0]
    return blur_planes(transposed_planes(images), width, which=slice(None), radius=kernel_size // 2, padding="zero")


def crop_resize(images: Tensor, boxes: Tensor, *, size: int, flip: Tensor | None = None) -> Tensor:
    """Cut boxes [N, 4] = (top, left, height, width) and resize to size x size: bicubic (Keys a = -1/2), no antialias.

    Values may overshoot [0, 1]. `flip` [N] mirrors images left to right.
    """
    check_images(images)
    taps_y = keys_taps(boxes[:, 0], boxes[:, 2], out=size)
    taps_x = keys_taps(boxes[:, 1], boxes[:, 3], out=size, flip=flip)
    return upright(crop_planes(images, taps_y, taps_x))


def brightness_(x: Tensor, factor: Tensor) -> Tensor:
    """In place on planes [3, n, P]; factor [n, 1]."""
    return x.mul_(factor)


def add_brightness_(x: Tensor, delta: Tensor) -> Tensor:
    """In place on planes [3, n, P]; delta [n, 1]."""
    return x.add_(delta)


def contrast_(x: Tensor, factor: Tensor) -> Tensor:
    """In place on planes [3, n, P]; factor [n, 1]."""
    offset = x.mean(-1, keepdim=True).mul_(1 - factor)
    return x.mul_(factor).add_(offset)


def saturation_(x: Tensor, factor: Tensor) -> Tensor:
    """In place on planes [3, n, P]; factor [n, 1].

    With V the largest and d the range of a pixel's channels, S = d / V and every channel is c = V - (V - c): scaling S by k
    moves it to V + (c - V) k. The clip S k <= 1 is k <= V / d.
    """
    red, green, blue = x.unbind(0)
    value = torch.maximum(red, green)
    torch.maximum(value, blue, out=value).clamp_min_(0)  # where the bicubic crop left a pixel negative, S is 0
    spread = torch.minimum(red, green)
    torch.minimum(spread, blue, out=spread)
    torch.sub(value, spread, out=spread).clamp_min_(_TINY)
    scale = torch.div(value, spread, out=spread)
    torch.minimum(scale, factor, out=scale)
    return x.sub_(value).mul_(scale).add_(value)


def hue_(x: Tensor, delta: Tensor) -> Tensor:
    """In place on planes [3, n, P]; delta [n, 1] in turns.

    Measure hue in sixths of a turn from red. With a the channels scaled to [0, 1] within the pixel, the distance from red is
    1 - a_R + a_G + a_B, on the side of green when G > B. A channel at distance y from its own hue is then
    clip(| |y| - 3 | - 1, 0, 1) of the range, for y within one turn either way.
    """
    red, green, blue = x.unbind(0)
    low = torch.minimum(red, green)
    torch.minimum(low, blue, out=low)
    x.sub_(low)
    spread = torch.maximum(red, green)
    torch.maximum(spread, blue, out=spread)
    position = torch.sub(spread, red).add_(green).add_(blue)
    green.sub_(blue)
    torch.copysign(position.div_(torch.clamp_min(spread, _TINY, out=red)), green, out=position)
    centres = torch.tensor([0.0, 2.0, 4.0], device=x.device)[:, None, None]
    shift = torch.remainder(6 * delta - centres + 3, 6) - 3
    torch.add(position, shift, out=x)
    return x.abs_().sub_(3).abs_().sub_(1).clamp_(0, 1).mul_(spread).add_(low)


def grayscale_(x: Tensor) -> Tensor:
    """In place on planes [3, n, P]."""
    grey = torch.mul(x[0], GREY[0]).add_(x[1] * GREY[1]).add_(x[2] * GREY[2])
    return x.copy_(grey.expand_as(x))
