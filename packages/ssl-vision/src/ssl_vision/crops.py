"""Cropped and flipped images, batch by batch: what a classifier is trained on."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from contrastive_core.training import Batches
from ssl_vision.augment import CropFlip
from ssl_vision.data import ImageSet
from ssl_vision.views import Draw, open_views, view_seed


class CropPlan:
    """One crop of every image of a batch, drawn anew whenever the images have been gone through."""

    def __init__(self, batches: Batches, *, seed: int) -> None:
        self.batches, self.seed, self.total_steps = batches, seed, batches.total_steps

    def at(self, step: int) -> Draw:
        """See `Plan`."""
        index, times_through = self.batches.at(step), step // self.batches.steps_per_epoch
        return Draw(index, index, (view_seed(self.seed, times_through, 0),))


class Crops:
    """The crops of every step, a function of (seed, step, image) alone.

    Args:
        images: to crop; small ones are decoded once.
        batches: which of them in each step.
        size: side of the crops in pixels.
        seed: of the crops.
        load: ``memory``, ``files`` or ``auto``, as for `open_views`.
        workers: loading processes where images are read from files.
    """

    def __init__(
        self,
        images: ImageSet,
        batches: Batches,
        *,
        size: int,
        seed: int,
        load: Literal["auto", "memory", "files"],
        workers: int,
    ) -> None:
        self._views = open_views(images, CropPlan(batches, seed=seed), CropFlip(size), load=load, workers=workers)

    def batch(self, step: int, device: torch.device) -> Tensor:
        """The images ``[B, 3, size, size]`` of this step, in [0, 1]."""
        (images,) = self._views.batch(step, device)
        return images
