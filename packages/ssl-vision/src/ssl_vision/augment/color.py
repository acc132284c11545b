"""Batches of images: checks, the layout of planes, and colour operations in place.

Colour operations work on planes: [3, n, P] float32, channel first, P pixels in any order, one parameter per image. They
avoid comparisons and selections, because `where` costs as much as twenty additions, and use correctly rounded
arithmetic only, so that a pixel's result does not depend on where in memory, in which batch or by which thread it is
computed. They do not clip.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def check_images(images: Tensor, *, channels: int | None = 3) -> None:
    """Refuse anything but uint8 or float images [N, 3, H, W], or with `channels` None of any number of channels."""
    if not isinstance(images, Tensor):
        raise TypeError(f"images must be a tensor [N, 3, H, W], got {type(images).__name__}")
    if images.ndim != 4 or (channels is not None and images.shape[1] != channels) or 0 in images.shape[1:]:
        raise ValueError(
            f"images must be [N, 3, H, W] (RGB), got {tuple(images.shape)}: "
            "add the batch dimension to a single image, repeat the channel of grey images"
        )
    if images.dtype != torch.uint8 and not images.dtype.is_floating_point:
        raise TypeError(f"images must be uint8 (0..255) or floating point (0..1), got {images.dtype}")


def check_batch(images: Tensor | Sequence[Tensor], ids: Tensor | None = None) -> None:
    """Refuse what is no batch of images, float images visibly not in [0, 1], and ids that are not one per image.

    Of the values only those of the first image are looked at: the usual mistake, 0..255 or normalised values, shows
    in any.
    """
    if isinstance(images, Tensor):
        check_images(images, channels=None)
    else:
        for image in images:
            check_images(image[None] if isinstance(image, Tensor) else image, channels=None)
        if len({(image.dtype, image.device, len(image)) for image in images}) > 1:
            raise ValueError("the images of a list must have one dtype, one number of channels and lie on one device")
    if ids is not None and (not isinstance(ids, Tensor) or ids.dtype != torch.int64 or ids.shape != (len(images),)):
        got = f"{ids.dtype} {tuple(ids.shape)}" if isinstance(ids, Tensor) else type(ids).__name__
        raise ValueError(f"ids must be an int64 tensor [{len(images)}], one number per image, got {got}")
    if len(images) and images[0].dtype.is_floating_point:
        low, high = images[0].aminmax()
        if not (low >= -0.01 and high <= 1.01):
            raise ValueError(
                f"float images must have values in [0, 1], got {float(low):.3g}..{float(high):.3g}: "
                "divide 0..255 by 255 (or pass uint8), and normalise by mean and deviation after augmenting"
            )


def check_boxes(boxes: Tensor, images: Tensor) -> NDArray[np.int64]:
    """The boxes on the host; refuse what is not int64 [N, 4] or leaves its image."""
    n, _, h, w = images.shape
    if boxes.dtype != torch.int64 or boxes.shape != (n, 4):
        raise ValueError(f"boxes must be int64 [{n}, 4], got {boxes.dtype} {tuple(boxes.shape)}")
    cuts: NDArray[np.int64] = boxes.cpu().numpy()
    top, left, height, width = cuts.T
    bad = (cuts[:, :2] < 0).any(1) | (cuts[:, 2:] < 1).any(1) | (top + height > h) | (left + width > w)
    if bad.any():
        first = int(bad.argmax())
        raise ValueError(
            f"box {first} is empty or leaves its {h} x {w} image: "
            f"(top, left, height, width) = {tuple(cuts[first].tolist())}"
        )
    return cuts


def per_image(name: str, value: float | Tensor, images: Tensor) -> Tensor:
    """A parameter as float32 [N, 1]."""
    x = torch.as_tensor(value, dtype=torch.float32, device=images.device)
    if x.ndim > 1 or (x.ndim == 1 and len(x) != len(images)):
        raise ValueError(f"{name} must be a number or a tensor [{len(images)}], one per image, got {tuple(x.shape)}")
    return x.expand(len(images))[:, None]


def on_planes(op: Callable[..., Tensor], images: Tensor, **parameter: float | Tensor) -> Tensor:
    """Apply an in-place operation on planes to a float32 copy of images."""
    check_images(images)
    amounts = [per_image(name, value, images) for name, value in parameter.items()]
    n, c, h, w = images.shape
    x = _to_unit(images.transpose(0, 1), images.dtype)
    op(x.view(c, n, h * w), *amounts)
    return x.transpose(0, 1).contiguous()


def transposed_planes(images: Tensor) -> Tensor:
    """A float32 copy [3, N, W, H]."""
    return _to_unit(images.permute(1, 0, 3, 2), images.dtype)


def _to_unit(x: Tensor, dtype: torch.dtype) -> Tensor:
    x = x.detach().to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    return x.mul_(1 / 255) if dtype == torch.uint8 else x


def sizes(images: Tensor | Sequence[Tensor]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Heights and widths of the images, [N] each."""
    if isinstance(images, Tensor):
        n, _, h, w = images.shape
        return np.full(n, h), np.full(n, w)
    height, width = np.array([image.shape[1:] for image in images], np.int64).reshape(-1, 2).T
    return height, width


def check_size(size: int) -> None:
    """Refuse a size that is no number of pixels."""
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"size must be a number of pixels a side, at least 1, got {size!r}")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a word that is not one of the choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


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
    means = x.mean(-1, keepdim=True)
    if len(x) != 3:  # without red, green and blue
        return _contrast_(x, means.mean(0), factor)
    red, green, blue = means.unbind(0)
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
