"""The fixed transform of evaluation: central crop and resize."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ssl_vision.augment._images import check_images, check_range, to_float
from ssl_vision.augment.ops_simclr import crop_resize

SMALL = 32  # images up to this many pixels a side are used whole


class EvalTransform(nn.Module):
    """Central crop of a fraction of the image, resized to size x size.

    With an image h <= w, the square of crop * h pixels in the middle is cut and resized (bicubic without antialias, clipped to
    [0, 1]); 0.875 is "resize to 256, cut 224". Images of at most 32 pixels a side are used whole, and untouched when they have
    the right size.
    """

    def __init__(self, size: int, crop: float = 0.875) -> None:
        super().__init__()
        if not 0 < crop <= 1:
            raise ValueError(f"crop must be a fraction of the image in (0, 1], got {crop}")
        self.size = size
        self.crop = crop

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """uint8 or [0, 1] float images [N, 3, H, W], or one image [3, H, W], to float32 of the same rank in [0, 1]."""
        if images.ndim == 3:
            return self.forward(images[None])[0]
        check_images(images)
        check_range(images)
        n, _, h, w = images.shape
        if h == w == self.size <= SMALL:
            return to_float(images)
        if h <= SMALL and w <= SMALL:
            box = (0, 0, h, w)
        else:
            side = max(1, round(self.crop * min(h, w)))
            box = ((h - side + 1) // 2, (w - side + 1) // 2, side, side)
        boxes = torch.tensor(box, device=images.device).expand(n, 4)
        return crop_resize(images, boxes, size=self.size).clamp_(0, 1)
