"""Define the two stages of pre-training: global and local contrastive losses on slices of several volumes."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from contrastive_core.errors import UserError
from contrastive_core.losses import nt_xent
from contrastive_core.rng import derive, permutation, uniform
from contrastive_core.training import Run
from contrastive_core.training.config import check_counts, check_fields
from ssl_medseg.losses.contrastive import global_d, global_d_minus, grid_regions, local_regions
from ssl_medseg.training.slices import SliceSet, jitter_intensity


class VolumeBatch(NamedTuple):
    """One slice from every part of some volumes, volume by volume."""

    slices: Tensor
    """int64 [V S]: indices of the slices."""
    partition: Tensor
    """int64 [V S]: parts of the slices, 0 .. S-1 in every volume."""
    partner: Tensor
    """int64 [V S]: position in the batch of the slice from the same part of the next volume (cyclic)."""


class VolumeBatches:
    """Sampler that draws some volumes per step and one random slice from every part of each; a function of the seed.

    Volumes are drawn in random order, and all of them before any is repeated.

    Args:
        case: int64 [N], index of the volume of each slice.
        partition: int64 [N], part of the volume that each slice belongs to.
        partitions: Number of parts per volume, S.
        volumes: Number of volumes per step and process, V; at least 2, so that a slice has a partner in another volume.
        seed: Seed of the order and of the slices.
        rank: Rank of this process.
        world_size: Number of processes.

    Raises:
        UserError: There are fewer volumes with at least S slices than a step needs.
    """

    def __init__(
        self,
        case: Tensor,
        partition: Tensor,
        *,
        partitions: int,
        volumes: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        count = int(case.max()) + 1
        self._members = [
            [torch.nonzero((case == volume) & (partition == part)).flatten() for part in range(partitions)]
            for volume in range(count)
        ]
        self._full = [v for v, parts in enumerate(self._members) if all(len(slices) for slices in parts)]
        self.left_out = count - len(self._full)
        if volumes < 2 or len(self._full) < volumes * world_size:
            raise UserError(
                f"found {len(self._full)} volumes with at least {partitions} slices, but {volumes} volumes per step "
                f"were requested for each of {world_size} process(es); expected at least 2 volumes per step, and no "
                "more than there are"
            )
        self._partitions, self._volumes, self._seed = partitions, volumes, seed
        self._rank, self._world_size = rank, world_size

    def at(self, step: int) -> VolumeBatch:
        """Return the batch of this process in `step`."""
        each, n = self._volumes * self._world_size, len(self._full)
        places = range(step * each + self._rank * self._volumes, step * each + (self._rank + 1) * self._volumes)
        volumes = [
            self._full[int(permutation(derive(self._seed, "volumes", place // n), n)[place % n])] for place in places
        ]
        slices = []
        for place, volume in zip(places, volumes, strict=True):
            draws = uniform(derive(self._seed, "slices"), torch.tensor([place]), self._partitions)[0]
            slices += [
                int(members[int(draw * len(members))])
                for draw, members in zip(draws.tolist(), self._members[volume], strict=True)
            ]
        total = len(slices)
        own = torch.arange(total)
        return VolumeBatch(torch.tensor(slices), own % self._partitions, (own + self._partitions) % total)


@torch.no_grad()
def crop_and_resize(images: Tensor, *, share: float, seed: int, ids: Tensor) -> Tensor:
    """Crop a random box of each image and resize it to the size of the image.

    Args:
        images: float [N, K, H, W].
        share: Side of the box relative to the side of the image; 100 / 192 in the released code. 1 crops nothing.
        seed: Random seed.
        ids: int64 [N]; the box of an image is a function of (seed, id).
    """
    draws = uniform(seed, ids.to(images.device), 2).to(images.dtype)
    theta = torch.zeros(len(images), 2, 3, dtype=images.dtype, device=images.device)
    theta[:, 0, 0] = theta[:, 1, 1] = share
    theta[:, :, 2] = (1 - share) * (2 * draws - 1)
    places = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, places, padding_mode="border", align_corners=False)


GlobalKind = Literal["GD", "GD-", "GR"]
LocalKind = Literal["LR", "LD"]


@dataclass(frozen=True)
class PretrainingOptions:
    """Losses, lengths and batches of both stages of pre-training, and the learning rate.

    Args:
        global_loss: Loss of the encoder: ``GD`` and ``GD-`` use the parts of the volumes; ``GR`` is the SimCLR loss.
        local_loss: Loss of the decoder, by its positive pairs: ``LR``, a region in the two views of a slice; ``LD``,
            also the same region in slices from the same part of another volume.
        global_steps: Training steps of the first stage; 0 skips it.
        local_steps: Training steps of the second stage; 0 skips it.
        partitions: Number of parts per volume; volumes with fewer slices are left out.
        global_volumes: Volumes per step and process in the first stage, with one slice from each of their parts.
        local_volumes: Volumes per step and process in the second stage, with one slice from each of their parts.
        crop: Side of the random crop in the first stage, as a fraction of the side of the slice.
        decoder_blocks: Number of decoder blocks in the second stage, 1 to 5.
        temperature: Temperature of both losses.
        lr: Learning rate of Adam.
    """

    global_loss: GlobalKind = "GD"
    local_loss: LocalKind = "LR"
    global_steps: int = 10_000
    local_steps: int = 10_000
    partitions: int = 4
    global_volumes: int = 6
    local_volumes: int = 3
    crop: float = 100 / 192
    decoder_blocks: int = 3
    temperature: float = 0.1
    lr: float = 1e-3

    def __post_init__(self) -> None:
        check_counts(self, global_steps=0, local_steps=0, partitions=1)
        if self.global_steps + self.local_steps == 0:
            raise UserError("global_steps and local_steps are 0; expected steps in at least one of the stages")
        check_fields(
            self,
            "pretraining",
            crop=(0 < self.crop <= 1, "a fraction above 0 and up to 1"),
            temperature=(0 < self.temperature < math.inf, "a finite number above 0"),
            lr=(0 < self.lr < math.inf, "a finite number above 0"),
        )

    @property
    def steps(self) -> int:
        """Number of training steps of both stages."""
        return self.global_steps + self.local_steps


class Views(NamedTuple):
    """Slices of a step, with the ids that determine their augmentation."""

    batch: VolumeBatch
    slices: Tensor
    ids: Tensor


class Stage(ABC):
    """Base class of the stages: draws the slices of every step and computes the loss."""

    def __init__(self, run: Run, slices: SliceSet, *, partitions: int, volumes: int, name: str) -> None:
        self._seed, self._images = run.seed(name), slices.images.to(run.device)
        self.batches = VolumeBatches(
            slices.case, slices.partition(partitions), partitions=partitions, volumes=volumes,
            seed=run.seed(name, "volumes"), rank=run.rank, world_size=run.world_size,
        )  # fmt: skip
        self._first = run.rank * partitions * volumes

    @abstractmethod
    def loss(self, network: nn.Module, step: int) -> Tensor:
        """Compute the loss of this process in `step`."""

    def _at(self, step: int) -> Views:
        batch = self.batches.at(step)
        ids = torch.arange(len(batch.slices)) + self._first
        return Views(batch, self._images[batch.slices.to(self._images.device)], ids)

    def _jitter(self, images: Tensor, ids: Tensor, *keys: int | str) -> Tensor:
        return jitter_intensity(images, seed=derive(self._seed, *keys), ids=ids)


class GlobalStage(Stage):
    """Stage with a global loss of encoder features.

    Args:
        run: Run that provides seed, device and processes.
        slices: Slices of all volumes, without labels.
        options: Loss, parts and number of volumes, crop of a view, and temperature.
    """

    def __init__(self, run: Run, slices: SliceSet, options: PretrainingOptions) -> None:
        super().__init__(run, slices, partitions=options.partitions, volumes=options.global_volumes, name="global")
        self._kind, self._crop, self._temperature = options.global_loss, options.crop, options.temperature

    def loss(self, network: nn.Module, step: int) -> Tensor:
        """Compute the loss of this process in `step`."""
        batch, slices, ids = self._at(step)
        views = [self._view(slices, ids, step, number) for number in range(1 if self._kind == "GD" else 2)]
        inputs = views if self._kind == "GR" else [slices, *views]
        z = network(torch.cat(inputs).contiguous(memory_format=torch.channels_last))
        if self._kind == "GR":
            return nt_xent(*z.chunk(2), temperature=self._temperature)
        if self._kind == "GD-":
            return global_d_minus(z, batch.partition, temperature=self._temperature)
        return global_d(z, batch.partition, batch.partner, temperature=self._temperature)

    def _view(self, slices: Tensor, ids: Tensor, step: int, number: int) -> Tensor:
        box = crop_and_resize(slices, share=self._crop, seed=derive(self._seed, step, number, "box"), ids=ids)
        return self._jitter(box, ids, step, number, "intensity")


class LocalStage(Stage):
    """Stage with a local loss of decoder features under two intensity augmentations.

    Args:
        run: Run that provides seed, device and processes.
        slices: Slices of all volumes, without labels.
        options: Loss, parts and number of volumes, and temperature.
    """

    def __init__(self, run: Run, slices: SliceSet, options: PretrainingOptions) -> None:
        super().__init__(run, slices, partitions=options.partitions, volumes=options.local_volumes, name="local")
        self._kind, self._temperature = options.local_loss, options.temperature

    def loss(self, network: nn.Module, step: int) -> Tensor:
        """Compute the loss of this process in `step`."""
        batch, slices, ids = self._at(step)
        views = torch.cat([self._jitter(slices, ids, step, number) for number in range(2)])
        features = network(views.contiguous(memory_format=torch.channels_last))
        own, n = torch.arange(len(slices)), len(slices)
        pairs = [torch.stack([own, own + n], 1)]
        if self._kind == "LD":
            pairs += [torch.stack([own, batch.partner], 1), torch.stack([own + n, batch.partner + n], 1)]
        regions = grid_regions(*features.shape[2:], neighbours=5 if self._kind == "LR" else 4)
        return local_regions(features, torch.cat(pairs), regions, temperature=self._temperature)
