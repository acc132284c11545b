"""Slices of the same parts of several volumes, and the views of the global stage."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from contrastive_core.errors import UserError
from contrastive_core.rng import derive, permutation, uniform


class VolumeBatch(NamedTuple):
    """One slice of every part of some volumes, volume by volume."""

    slices: Tensor
    """int64 [V S]: which slices."""
    partition: Tensor
    """int64 [V S]: their parts, 0 .. S-1 in every volume."""
    partner: Tensor
    """int64 [V S]: the place of the slice of the same part of the next volume; the volumes stand in a ring."""


class VolumeBatches:
    """For every step some volumes, and of each a random slice of every part: a function of seed and step.

    The volumes come in a random order, all of them before any comes again.

    Args:
        case: int64 [N], the volume of each slice.
        partition: int64 [N], its part.
        partitions: S.
        volumes: V, per step and process; at least 2, so that a slice has a partner in another volume.
        seed: decides the order and the slices.
        rank: this process.
        world_size: number of processes.

    Raises:
        UserError: fewer volumes than a step takes, or a volume with fewer slices than parts.
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
                f"found {len(self._full)} volumes with at least {partitions} slices, asked for {volumes} in a step on "
                f"{world_size} process(es); expected 2 or more, and no more than there are"
            )
        self._partitions, self._volumes, self._seed = partitions, volumes, seed
        self._rank, self._world_size = rank, world_size

    def at(self, step: int) -> VolumeBatch:
        """What this process takes in `step`."""
        each, n = self._volumes * self._world_size, len(self._full)
        places = range(step * each + self._rank * self._volumes, step * each + (self._rank + 1) * self._volumes)
        chosen = [
            self._full[int(permutation(derive(self._seed, "volumes", place // n), n)[place % n])] for place in places
        ]
        slices = []
        for place, volume in zip(places, chosen, strict=True):
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
    """A random box of each image, enlarged to the image's size.

    Args:
        images: float [N, 1, H, W].
        share: side of the box over the image's; 100 / 192 in the released code. 1: nothing happens.
        seed: of the draws.
        ids: int64 [N]: an image's box is a function of (seed, id).
    """
    draws = uniform(seed, ids.to(images.device), 2).to(images.dtype)
    theta = torch.zeros(len(images), 2, 3, dtype=images.dtype, device=images.device)
    theta[:, 0, 0] = theta[:, 1, 1] = share
    theta[:, :, 2] = (1 - share) * (2 * draws - 1)
    places = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, places, padding_mode="border", align_corners=False)
