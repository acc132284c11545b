"""The transforms: SimCLR's augmentation, crop and flip, and the fixed transform of evaluation."""

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
    """One random view of every image: the family T of SimCLR (section 3 and appendix A).

    In this order: random resized crop to size x size; flip with probability 1/2; with probability `jitter`
    brightness, contrast, saturation and hue in a random order, clipped to [0, 1] after each; with probability `gray`
    no colour; with probability 1/2, if `blur`, a Gaussian blur of sigma in [0.1, 2] over size // 10 pixels (made
    odd), clipped.

    Every draw is a function of (seed, id of the image), and so is the view: on the CPU it is the same bits whatever
    else is in the batch and however many threads work. On another device it differs by rounding.

    `ops="simclr"` follows the official TensorFlow code: boxes of `sample_distorted_bounding_box` (area at least 0.1),
    bicubic without antialias, contrast around the mean of each channel, saturation of HSV, blur with zeros around the
    image. `ops="torchvision"` follows torchvision: its boxes, bilinear with antialias, contrast around the grey mean,
    saturation towards the grey image, blur with the image mirrored around.

    The official code draws one sigma per batch and view and only decides per image whether to blur; here every image
    has its own unless `sigma="per_batch"`.

    Args:
        size: pixels a side of the views.
        strength: of the colour jitter, s in the paper: 1 for ImageNet, 0.5 for CIFAR-10. Factors are uniform in
            [max(0, 1 - 0.8 s), 1 + 0.8 s], the hue shift in [-0.2 s, 0.2 s] turns.
        blur: whether half of the views are blurred; CIFAR-10 goes without.
        ops: whose operations.
        flip: whether half of the views are mirrored.
        gray: probability of losing colour.
        jitter: probability of colour jitter.
        brightness: factor as above, or ("additive", the code of the first paper) an addend in [-0.8 s, 0.8 s].
        sigma: whether each image has its own width of blur.
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
        """A view of each image.

        Args:
            images: uint8 [N, 3, H, W], or floating point with values in [0, 1]; or N images [3, H_i, W_i] of sizes of
                their own.
            seed: seed of this view; give the two views of a step different ones.
            ids: identities of the images, int64 [N].

        Returns:
            float32 [N, 3, size, size] in [0, 1], on the device of the images.
        """
        check_batch(images, ids)
        return self.render(images, self.draw(images, seed=seed, ids=ids))

    def draw(self, images: Tensor | Sequence[Tensor], *, seed: int, ids: Tensor) -> Draws:
        """The random numbers of `forward`, of which only the sizes of the images are looked at."""
        ids = ids.cpu()
        boxes = OPERATIONS[self.ops].boxes(*sizes(images), seed=seed, ids=ids)
        return self.family.draw(boxes, seed=seed, ids=ids)

    def render(self, images: Tensor | Sequence[Tensor], draws: Draws) -> Tensor:
        """The views that `draws` describe."""
        return render(
            images,
            draws,
            size=self.size,
            ops=OPERATIONS[self.ops],
            additive=self.family.additive,
            radius=self.size // 10 // 2,
        )

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"size={self.size}, ops={self.ops!r}, {self.family}"


class CropFlip(nn.Module):
    """Random resized crop, and flip with probability 1/2; no colour and no blur (SimCLR, appendix B.5 and B.6).

    Crop, resize and determinism are those of `SimCLRAugment`; the result is clipped to [0, 1].
    """

    def __init__(self, size: int, *, ops: Literal["simclr", "torchvision"] = "simclr") -> None:
        super().__init__()
        check_size(size)
        check_choice("ops", ops, tuple(OPERATIONS))
        self.size = size
        self.ops = ops

    def forward(self, images: Tensor | Sequence[Tensor], *, seed: int, ids: Tensor) -> Tensor:
        """Arguments and result are those of `SimCLRAugment.forward`."""
        check_batch(images, ids)
        ids = ids.cpu()
        boxes = OPERATIONS[self.ops].boxes(*sizes(images), seed=seed, ids=ids)
        return render(images, PLAIN.draw(boxes, seed=seed, ids=ids), size=self.size, ops=OPERATIONS[self.ops])

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"size={self.size}, ops={self.ops!r}"


SMALL = 32


class EvalTransform(nn.Module):
    """Central square of a fraction of the shorter side, resized to size x size and clipped to [0, 1].

    crop = 0.875 is "resize to 256, cut 224". Images of at most 32 pixels a side are used whole, and untouched when
    they have the right size. The resize is that of the official code, bicubic without antialias (`ops="simclr"`), or
    bilinear with antialias (`ops="torchvision"`), which is kinder to photographs many times larger than `size`.
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
            images: uint8 or [0, 1] float images [N, 3, H, W], N images [3, H_i, W_i] of their own sizes, or one image
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
        """What `print` shows."""
        return f"size={self.size}, crop={self.crop}, ops={self.ops!r}"
