"""The operations of `torchvision.transforms.v2` on float images, with one parameter per image.

The functions take images [N, 3, H, W], uint8 or floating point in [0, 1], and a parameter that is a number or a tensor
[N]. They return new float32 images in [0, 1]: like torchvision's, each clips its result. They agree with
`torchvision.transforms.v2.functional`, called image by image, within a few units in the last place. No
gradients flow through them.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from ssl_vision.augment.draws import torchvision_boxes
from ssl_vision.augment.render import (
    Operations,
    antialias_taps,
    blur_images,
    check_boxes,
    check_images,
    crop_planes,
    grayscale_,
    grey_contrast_,
    grey_saturation_,
    hue_,
    on_planes,
    scale_,
    unit_taps,
    upright,
)

OPERATIONS = Operations(
    boxes=torchvision_boxes,
    taps=antialias_taps,
    contrast=grey_contrast_,
    saturation=grey_saturation_,
    padding="reflect",
)


def brightness(images: Tensor, factor: float | Tensor) -> Tensor:
    """Multiply by `factor`."""
    return on_planes(scale_, images, factor=factor).clamp_(0, 1)


def contrast(images: Tensor, factor: float | Tensor) -> Tensor:
    """Compute `(x - mean) * factor + mean`, with the mean over the pixels of the grey image, one number per image."""
    return on_planes(grey_contrast_, images, factor=factor).clamp_(0, 1)


def saturation(images: Tensor, factor: float | Tensor) -> Tensor:
    """Compute `(x - grey) * factor + grey` with the grey image."""
    return on_planes(grey_saturation_, images, factor=factor).clamp_(0, 1)


def hue(images: Tensor, delta: float | Tensor) -> Tensor:
    """Add `delta` turns to the H of HSV; S and V do not change."""
    return on_planes(hue_, images, delta=delta).clamp_(0, 1)


def grayscale(images: Tensor) -> Tensor:
    """Set all three channels to 0.2989 R + 0.587 G + 0.114 B."""
    return on_planes(grayscale_, images)


def gaussian_blur(images: Tensor, sigma: float | Tensor, *, kernel_size: int) -> Tensor:
    """Blur with taps exp(-k^2 / (2 sigma^2)), |k| <= kernel_size // 2, normalised to sum 1, mirror padding.

    Raises:
        ValueError: The image is not larger than kernel_size // 2, so that it cannot be mirrored.
    """
    check_images(images)
    return blur_images(images, sigma, kernel_size=kernel_size, padding="reflect")


def crop_resize(
    images: Tensor,
    boxes: Tensor,
    *,
    size: int,
    flip: Tensor | None = None,
    interpolation: Literal["bilinear", "bicubic"] = "bilinear",
) -> Tensor:
    """Cut boxes and resize to size x size with antialias; bicubic values may overshoot [0, 1].

    Args:
        images: Images, [N, 3, H, W].
        boxes: Top, left, height, width of every crop, int64 [N, 4].
        size: Side of the result in pixels.
        flip: Images to mirror left to right, bool [N].
        interpolation: Filter.
    """
    check_images(images)
    cuts = check_boxes(boxes, images)
    if interpolation not in ("bilinear", "bicubic"):
        raise ValueError(f"interpolation must be 'bilinear' or 'bicubic', got {interpolation!r}")
    cubic = interpolation == "bicubic"
    taps_y = antialias_taps(boxes[:, 2], out=size, cubic=cubic)
    taps_x = antialias_taps(boxes[:, 3], out=size, flip=flip, cubic=cubic)
    return upright(crop_planes(images.detach(), cuts, unit_taps(taps_y, images), taps_x))
