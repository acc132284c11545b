"""The fixed transform of evaluation: central crop and resize."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from torch import Tensor, nn

from ssl_vision.augment._images import check_batch, check_choice, check_size, sizes
from ssl_vision.augment.draws import still
from ssl_vision.augment.render import render
from ssl_vision.augment.simclr import OPERATIONS

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
