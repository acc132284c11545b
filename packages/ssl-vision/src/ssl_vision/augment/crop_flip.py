"""Random resized crop and flip: the training augmentation of linear evaluation and fine-tuning."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from contrastive_core.random import derive, uniform
from ssl_vision.augment._images import check_ids, check_images, check_range
from ssl_vision.augment.boxes import tensorflow_boxes
from ssl_vision.augment.ops_simclr import crop_resize


class CropFlip(nn.Module):
    """Random resized crop and flip of every image, no colour and no blur (SimCLR section B.5).

    Crop and resize are those of `SimCLRAugment`, clipped to [0, 1].
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    @torch.no_grad()
    def forward(self, images: Tensor, *, seed: int, ids: Tensor) -> Tensor:
        """Arguments and result as `SimCLRAugment.forward`."""
        check_images(images)
        check_ids(ids, images)
        check_range(images)
        n, _, h, w = images.shape
        ids = ids.cpu()
        boxes = tensorflow_boxes(torch.full((n,), h), torch.full((n,), w), seed=seed, ids=ids)
        flip = uniform(derive(seed, "flip"), ids, 1)[:, 0] < 0.5
        return crop_resize(images, boxes.to(images.device), size=self.size, flip=flip.to(images.device)).clamp_(0, 1)
