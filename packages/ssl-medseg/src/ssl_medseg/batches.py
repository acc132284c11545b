"""Batches of labelled slices, augmented: a function of seed and step."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from contrastive_core.rng import derive
from contrastive_core.training import Run
from ssl_medseg.augment import AugmentOptions, deform, jitter_intensity
from ssl_medseg.slices import SliceDraws, SliceSet


class SegmentationBatch(NamedTuple):
    """What the segmentation loss sees in a step."""

    images: Tensor
    """Float32 [n, 1, H, W]."""
    shares: Tensor
    """Class shares [n, C, H, W]: labels moved with the images."""


class SegmentationBatches:
    """Labelled slices of every step, each augmented by draws of its own.

    Args:
        run: gives seed, device and processes.
        slices: with labels; they move to the device.
        classes: C, the background included.
        pool: which slices may be drawn, int64 [M].
        batch_size: slices per step, over all processes.
        augment: how.
        purpose: names the draws; batches of different purposes are drawn independently.
    """

    def __init__(
        self,
        run: Run,
        slices: SliceSet,
        *,
        classes: int,
        pool: Tensor,
        batch_size: int,
        augment: AugmentOptions,
        purpose: str = "labelled",
    ) -> None:
        self._slices, self._classes, self._augment = slices.to(run.device), classes, augment
        self._draws = SliceDraws(
            pool, batch_size=batch_size, seed=run.seed(purpose), rank=run.rank, world_size=run.world_size
        )
        self._seed = run.seed(purpose, "augment")

    def at(self, step: int) -> SegmentationBatch:
        """The batch of this process in `step`."""
        drawn = self._draws.at(step)
        index = drawn.samples.to(self._slices.images.device)
        images, shares = deform(
            self._slices.images[index], self._slices.truth[index], num_classes=self._classes,
            seed=derive(self._seed, step, "places"), ids=drawn.ids, options=self._augment,
        )  # fmt: skip
        if self._augment.intensity:
            images = jitter_intensity(images, seed=derive(self._seed, step, "intensity"), ids=drawn.ids)
        return SegmentationBatch(images.contiguous(memory_format=torch.channels_last), shares)
