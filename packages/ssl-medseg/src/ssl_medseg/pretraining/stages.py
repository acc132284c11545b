"""The two stages of the parent method: batches and loss of each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from contrastive_core.losses import nt_xent
from contrastive_core.rng import derive
from contrastive_core.training import Run
from ssl_medseg.augment import jitter_intensity
from ssl_medseg.losses.global_contrastive import global_d, global_d_minus
from ssl_medseg.losses.local_regions import grid_regions, local_regions
from ssl_medseg.pretraining.batches import VolumeBatch, VolumeBatches, crop_and_resize
from ssl_medseg.slices import SliceSet

GlobalKind = Literal["GD", "GD-", "GR"]
LocalKind = Literal["LR", "LD"]


class Views(NamedTuple):
    """Slices of a step and how they are seen."""

    batch: VolumeBatch
    slices: Tensor
    ids: Tensor


class Stage(ABC):
    """Slices of every step: so many of each part of so many volumes, a function of seed and step."""

    def __init__(self, run: Run, slices: SliceSet, *, partitions: int, volumes: int, name: str) -> None:
        self._seed, self._images = run.seed(name), slices.images.to(run.device)
        self.batches = VolumeBatches(
            slices.case, slices.partition(partitions), partitions=partitions, volumes=volumes,
            seed=run.seed(name, "volumes"), rank=run.rank, world_size=run.world_size,
        )  # fmt: skip
        self._first = run.rank * partitions * volumes

    @abstractmethod
    def loss(self, network: nn.Module, step: int) -> Tensor:
        """The loss of this process in `step`."""

    def _at(self, step: int) -> Views:
        batch = self.batches.at(step)
        ids = torch.arange(len(batch.slices)) + self._first
        return Views(batch, self._images[batch.slices.to(self._images.device)], ids)

    def _jitter(self, images: Tensor, ids: Tensor, *keys: int | str) -> Tensor:
        return jitter_intensity(images, seed=derive(self._seed, *keys), ids=ids)


class GlobalStage(Stage):
    """Global loss of encoder features.

    Args:
        run: gives seed, device and processes.
        slices: of all volumes, without labels.
        kind: the loss. ``GD`` and ``GD-`` know the parts of the volumes, ``GR`` is SimCLR's.
        partitions: parts of a volume.
        volumes: per step and process.
        crop: side of the random box that a view shows, over the side of the slice.
        temperature: of the loss.
    """

    def __init__(
        self,
        run: Run,
        slices: SliceSet,
        *,
        kind: GlobalKind,
        partitions: int,
        volumes: int,
        crop: float,
        temperature: float,
    ) -> None:
        super().__init__(run, slices, partitions=partitions, volumes=volumes, name="global")
        self._kind, self._crop, self._temperature = kind, crop, temperature

    def loss(self, network: nn.Module, step: int) -> Tensor:
        """The loss of this process in `step`."""
        batch, slices, ids = self._at(step)
        views = [self._view(slices, ids, step, number) for number in range(1 if self._kind == "GD" else 2)]
        shown = views if self._kind == "GR" else [slices, *views]
        z = network(torch.cat(shown).contiguous(memory_format=torch.channels_last))
        if self._kind == "GR":
            return nt_xent(*z.chunk(2), temperature=self._temperature)
        if self._kind == "GD-":
            return global_d_minus(z, batch.partition, temperature=self._temperature)
        return global_d(z, batch.partition, batch.partner, temperature=self._temperature)

    def _view(self, slices: Tensor, ids: Tensor, step: int, number: int) -> Tensor:
        box = crop_and_resize(slices, share=self._crop, seed=derive(self._seed, step, number, "box"), ids=ids)
        return self._jitter(box, ids, step, number, "intensity")


class LocalStage(Stage):
    """Local loss of decoder features under two intensity changes.

    Args:
        run: gives seed, device and processes.
        slices: of all volumes, without labels.
        kind: ``LR``: a region is alike in the two views of a slice; ``LD``: also in slices of the same part of another
            volume.
        partitions: parts of a volume.
        volumes: per step and process.
        temperature: of the loss.
    """

    def __init__(
        self, run: Run, slices: SliceSet, *, kind: LocalKind, partitions: int, volumes: int, temperature: float
    ) -> None:
        super().__init__(run, slices, partitions=partitions, volumes=volumes, name="local")
        self._kind, self._temperature = kind, temperature

    def loss(self, network: nn.Module, step: int) -> Tensor:
        """The loss of this process in `step`."""
        batch, slices, ids = self._at(step)
        views = torch.cat([self._jitter(slices, ids, step, number) for number in range(2)])
        features = network(views.contiguous(memory_format=torch.channels_last))
        own, n = torch.arange(len(slices)), len(slices)
        pairs = [torch.stack([own, own + n], 1)]
        if self._kind == "LD":
            pairs += [torch.stack([own, batch.partner], 1), torch.stack([own + n, batch.partner + n], 1)]
        regions = grid_regions(*features.shape[2:], neighbours=5 if self._kind == "LR" else 4)
        return local_regions(features, torch.cat(pairs), regions, temperature=self._temperature)
