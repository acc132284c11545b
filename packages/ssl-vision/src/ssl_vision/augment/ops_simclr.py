"""The operations of the official SimCLR code (TensorFlow semantics), with one parameter per image.

The functions take images [N, 3, H, W], uint8 or floating point in [0, 1], and a parameter that is a number or a tensor
[N]. They return new float32 images and, like the official operations, clip nothing: SimCLR clips to [0, 1] after each.
No gradients flow through them.
"""

from __future__ import annotations

from torch import Tensor

from ssl_vision.augment.draws import tensorflow_boxes
from ssl_vision.augment.render import (
    Operations,
    blur_images,
    channel_contrast_,
    check_boxes,
    check_images,
    crop_planes,
    grayscale_,
    hsv_saturation_,
    hue_,
    keys_taps,
    on_planes,
    scale_,
    shift_,
    unit_taps,
    upright,
)

OPERATIONS = Operations(
    boxes=tensorflow_boxes,
    taps=keys_taps,
    contrast=channel_contrast_,
    saturation=hsv_saturation_,
    padding="zero",
)


def brightness(images: Tensor, factor: float | Tensor) -> Tensor:
    """Multiply by `factor` (the code since SimCLRv2)."""
    return on_planes(scale_, images, factor=factor)


def add_brightness(images: Tensor, delta: float | Tensor) -> Tensor:
    """Add `delta` (the first paper and its code)."""
    return on_planes(shift_, images, delta=delta)


def contrast(images: Tensor, factor: float | Tensor) -> Tensor:
    """Compute `(x - mean) * factor + mean`, with the mean over the pixels of each channel of each image."""
    return on_planes(channel_contrast_, images, factor=factor)


def saturation(images: Tensor, factor: float | Tensor) -> Tensor:
    """Multiply the S of HSV by `factor` and clip it to [0, 1]; H and V do not change."""
    return on_planes(hsv_saturation_, images, factor=factor)


def hue(images: Tensor, delta: float | Tensor) -> Tensor:
    """Add `delta` turns to the H of HSV; S and V do not change."""
    return on_planes(hue_, images, delta=delta)


def grayscale(images: Tensor) -> Tensor:
    """Set all three channels to 0.2989 R + 0.587 G + 0.114 B."""
    return on_planes(grayscale_, images)


def gaussian_blur(images: Tensor, sigma: float | Tensor, *, kernel_size: int) -> Tensor:
    """Blur with taps exp(-k^2 / (2 sigma^2)), |k| <= kernel_size // 2, normalised to sum 1, zero padding.

    Borders therefore darken, as in the official code. An even kernel size is rounded up to the next odd one;
    pre-training uses H // 10.
    """
    check_images(images)
    return blur_images(images, sigma, kernel_size=kernel_size, padding="zero")


def crop_resize(images: Tensor, boxes: Tensor, *, size: int, flip: Tensor | None = None) -> Tensor:
    """Cut boxes and resize to size x size: bicubic (Keys, a = -1/2), without antialias; values may overshoot [0, 1].

    Args:
        images: Images, [N, 3, H, W].
        boxes: Top, left, height, width of every crop, int64 [N, 4].
        size: Side of the result in pixels.
        flip: Images to mirror left to right, bool [N].
    """
    check_images(images)
    cuts = check_boxes(boxes, images)
    taps_y = keys_taps(boxes[:, 2], out=size)
    taps_x = keys_taps(boxes[:, 3], out=size, flip=flip)
    return upright(crop_planes(images.detach(), cuts, unit_taps(taps_y, images), taps_x))
