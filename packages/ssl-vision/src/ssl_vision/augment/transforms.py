"""Transforms: SimCLR's augmentation, crop and flip, and the fixed transform for evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from torch import Tensor, nn

from ssl_vision.augment import ops_simclr, ops_torchvision
from ssl_vision.augment.draws import PLAIN, Draws, Family, still
from ssl_vision.augment.render import check_batch, check_choice, check_size, render, sizes

OPERATIONS = {"simclr": ops_simclr.OPERATIONS, "torchvision": ops_torchvision.OPERATIONS}


class SimCLRAugment(nn.Module):
    """Make one random view of every image: the family T of SimCLR (section 3 and appendix A).

    In this order: random resized crop to size x size; flip with probability 1/2; with probability `jitter`,
    brightness, contrast, saturation and hue in a random order, clipped to [0, 1] after each; with probability `gray`,
    conversion to gray; with probability 1/2, if `blur`, a Gaussian blur with sigma in [0.1, 2] over size // 10 pixels
    (rounded up to odd), clipped.

    Every draw, and thus the view, is a function of (seed, id of the image): on the CPU it has the same bits in any
    batch and for any number of threads. On other devices it differs by rounding.

    `ops="simclr"` follows the official TensorFlow code: boxes of `sample_distorted_bounding_box` (area at least 0.1),
    bicubic without antialias, contrast around the mean of each channel, saturation of HSV, blur with zeros around the
    image. `ops="torchvision"` follows torchvision: its boxes, bilinear with antialias, contrast around the grey mean,
    saturation towards the grey image, blur with the image mirrored at its borders.

    The official code draws one sigma per batch and view, and only decides per image whether to blur; here every image
    has its own sigma unless `sigma="per_batch"`.

    Args:
        size: Side of the views in pixels.
        strength: Strength of the colour jitter, s in the paper: 1 for ImageNet, 0.5 for CIFAR-10. Factors are uniform
            in [max(0, 1 - 0.8 s), 1 + 0.8 s], the hue shift in [-0.2 s, 0.2 s] turns.
        blur: Whether to blur half of the views; not used for CIFAR-10.
        ops: Operations: ``simclr`` or ``torchvision``.
        flip: Whether to mirror half of the views.
        gray: Probability of conversion to gray.
        jitter: Probability of colour jitter.
        brightness: Brightness as a factor as above, or as an addend in [-0.8 s, 0.8 s] (``additive``, as in the code of
            the first paper).
        sigma: Whether to draw the width of the blur per image or per batch.
    """

    def __init__(
        self,
        size: int,
        *,
        strength: float = 1.0,
        blur: bool = True,
        ops: Literal["simclr", "torchvision"] = "simclr",
        flip: bool = True,
        gray: float = 0.2,
        jitter: float = 0.8,
        brightness: Literal["multiplicative", "additive"] = "multiplicative",
        sigma: Literal["per_image", "per_batch"] = "per_image",
    ) -> None:
        super().__init__()
        check_choice("ops", ops, tuple(OPERATIONS))
        check_choice("brightness", brightness, ("multiplicative", "additive"))
        check_choice("sigma", sigma, ("per_image", "per_batch"))
        check_size(size)
        for name, value in (("gray", gray), ("jitter", jitter)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be a probability in [0, 1], got {value}")
        if not 0 <= strength <= 2.5:
            raise ValueError(f"strength must be in [0, 2.5] (1 for ImageNet, 0.5 for CIFAR-10), got {strength}")
        self.size = size
        self.ops = ops
        self.family = Family(
            strength=strength,
            additive=brightness == "additive",
            flip=0.5 if flip else 0.0,
            jitter=jitter,
            gray=gray,
            blur=0.5 if blur else 0.0,
            one_sigma=sigma == "per_batch",
        )

    def forward(self, images: Tensor | Sequence[Tensor], *, seed: int, ids: Tensor) -> Tensor:
        """Make a view of each image.

        Args:
            images: uint8 [N, 3, H, W], or floating point with values in [0, 1]; or N images [3, H_i, W_i] of different
                sizes.
            seed: Seed of this view; use different ones for the two views of a step.
            ids: Identities of the images, int64 [N].

        Returns:
            float32 [N, 3, size, size] in [0, 1], on the device of the images.
        """
        check_batch(images, ids)
        return self.render(images, self.draw(images, seed=seed, ids=ids))

    def draw(self, images: Tensor | Sequence[Tensor], *, seed: int, ids: Tensor) -> Draws:
        """Draw the random numbers of `forward`, which depend on the images only through their sizes."""
        ids = ids.cpu()
        boxes = OPERATIONS[self.ops].boxes(*sizes(images), seed=seed, ids=ids)
        return self.family.draw(boxes, seed=seed, ids=ids)

    def render(self, images: Tensor | Sequence[Tensor], draws: Draws) -> Tensor:
        """Render the views that `draws` describe."""
        return render(
            images,
            draws,
            size=self.size,
            ops=OPERATIONS[self.ops],
            additive=self.family.additive,
            radius=self.size // 10 // 2,
        )

    def extra_repr(self) -> str:
        """Return the settings for `repr`."""
        return f"size={self.size}, ops={self.ops!r}, {self.family}"


class CropFlip(nn.Module):
    """Random resized crop, and flip with probability 1/2; no colour jitter and no blur (SimCLR, appendix B.5 and B.6).

    Crop, resize and determinism are those of `SimCLRAugment`; the result is clipped to [0, 1].
    """

    def __init__(self, size: int, *, ops: Literal["simclr", "torchvision"] = "simclr") -> None:
        super().__init__()
        check_size(size)
        check_choice("ops", ops, tuple(OPERATIONS))
        self.size = size
        self.ops = ops

    def forward(self, images: Tensor | Sequence[Tensor], *, seed: int, ids: Tensor) -> Tensor:
        """Make a crop of each image; arguments and result are those of `SimCLRAugment.forward`."""
        check_batch(images, ids)
        ids = ids.cpu()
        boxes = OPERATIONS[self.ops].boxes(*sizes(images), seed=seed, ids=ids)
        return render(images, PLAIN.draw(boxes, seed=seed, ids=ids), size=self.size, ops=OPERATIONS[self.ops])

    def extra_repr(self) -> str:
        """Return the settings for `repr`."""
        return f"size={self.size}, ops={self.ops!r}"


SMALL = 32


class EvalTransform(nn.Module):
    """Crop the central square of a fraction of the shorter side, resize it to size x size and clip it to [0, 1].

    crop = 0.875 is "resize to 256, crop 224". Images of at most 32 pixels per side are used whole, and unchanged if
    they have the right size. The resize is that of the official code, bicubic without antialias (`ops="simclr"`), or
    bilinear with antialias (`ops="torchvision"`), which suits photographs many times larger than `size` better.
    """

    def __init__(self, size: int, crop: float = 0.875, *, ops: Literal["simclr", "torchvision"] = "simclr") -> None:
        super().__init__()
        check_size(size)
        check_choice("ops", ops, tuple(OPERATIONS))
        if not 0 < crop <= 1:
            raise ValueError(f"crop must be a fraction of the image in (0, 1], got {crop}")
        self.size = size
        self.crop = crop
        self.ops = ops

    def forward(self, images: Tensor | Sequence[Tensor]) -> Tensor:
        """Transform a batch, or one image.

        Args:
            images: uint8 or [0, 1] float images [N, 3, H, W], N images [3, H_i, W_i] of different sizes, or one image
                [3, H, W].

        Returns:
            float32 [N, 3, size, size], or [3, size, size] of one image, in [0, 1].
        """
        if isinstance(images, Tensor) and images.ndim == 3:
            return self.forward(images[None])[0]
        check_batch(images)
        height, width = sizes(images)
        side = np.maximum(1, np.rint(self.crop * np.minimum(height, width))).astype(np.int64)
        whole = np.maximum(height, width) <= SMALL
        crop_h, crop_w = np.where(whole, height, side), np.where(whole, width, side)
        boxes = np.stack(((height - crop_h + 1) // 2, (width - crop_w + 1) // 2, crop_h, crop_w), 1)
        return render(images, still(boxes), size=self.size, ops=OPERATIONS[self.ops])

    def extra_repr(self) -> str:
        """Return the settings for `repr`."""
        return f"size={self.size}, crop={self.crop}, ops={self.ops!r}"
