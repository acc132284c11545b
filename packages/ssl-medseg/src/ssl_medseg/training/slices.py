"""Stack the slices of prepared cases, and draw an augmented batch of them in every step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from contrastive_core.errors import UserError
from contrastive_core.rng import derive, permutation
from contrastive_core.text import some_of
from contrastive_core.training import Run
from ssl_medseg.preprocessing.cases import PreparedCase
from ssl_medseg.training.augment import AugmentOptions, change_intensity, deform

_STREAM = 1 << 40
"""Offset between the ids of two sampling streams."""


@dataclass(frozen=True)
class SliceSet:
    """All slices of some cases, in order.

    Attributes:
        images: float32 [N, K, H, W] with K channels.
        labels: uint8 [N, H, W], true labels or pseudo-labels; None if there are none.
        case: int64 [N], index of the case of each slice.
        number: int64 [N], index of each slice within its case.
        names: Names of the cases.
    """

    images: Tensor
    labels: Tensor | None
    case: Tensor
    number: Tensor
    names: tuple[str, ...]

    def __len__(self) -> int:
        """Number of slices."""
        return len(self.images)

    @property
    def truth(self) -> Tensor:
        """The labels, for callers that need them.

        Raises:
            UserError: The slices have no labels.
        """
        if self.labels is None:
            raise UserError(f"found no labels for {some_of(self.names)}; expected one for every slice")
        return self.labels

    def with_labels(self, labels: Tensor) -> SliceSet:
        """Return the same slices with other labels, uint8 [N, H, W], such as pseudo-labels."""
        return replace(self, labels=labels)

    def presence(self, classes: int) -> Tensor:
        """Return whether each slice contains each class, background included; bool [N, C]."""
        flat = self.truth.flatten(1)
        return torch.stack([(flat == number).any(1) for number in range(classes)], 1)

    def partition(self, parts: int) -> Tensor:
        """Divide each volume into equal parts along the slice axis; return the part of each slice, int64 [N]."""
        counts = torch.bincount(self.case, minlength=len(self.names))
        return self.number * parts // counts[self.case]

    def to(self, device: torch.device) -> SliceSet:
        """Return a copy on a device; a few hundred slices fit in memory next to the network."""
        labels = None if self.labels is None else self.labels.to(device)
        return SliceSet(self.images.to(device), labels, self.case.to(device), self.number.to(device), self.names)


def stack_slices(cases: Sequence[PreparedCase]) -> SliceSet:
    """Stack the slices of cases of the same size, with labels if all cases have them.

    Raises:
        UserError: There are no cases.
    """
    if not cases:
        raise UserError("found no cases to train on; expected at least one")
    counts = [len(case.slices) for case in cases]
    labels = [case.label for case in cases if case.label is not None]
    return SliceSet(
        torch.cat([case.slices for case in cases]),
        torch.cat(labels) if len(labels) == len(cases) else None,
        torch.arange(len(cases)).repeat_interleave(torch.tensor(counts)),
        torch.cat([torch.arange(count) for count in counts]),
        tuple(case.name for case in cases),
    )


def slices_with(slices: SliceSet, *, classes: int, least: int = 1) -> Tensor:
    """Select the slices with at least `least` classes, background included; int64 [M].

    The papers use the following rules: in self-training, segmentation batches contain slices with at least 3 classes of
    ACDC and MM-WHS and 2 of the prostate; contrastive batches contain slices with all classes.

    Raises:
        UserError: No slice has that many classes.
    """
    shown = slices.presence(classes).sum(1)
    found = torch.nonzero(shown >= least).flatten()
    if not len(found):
        raise UserError(
            f"none of the {len(slices)} slices contains {least} classes or more; the maximum is {int(shown.max())}. "
            "Lower the number of classes that a slice must contain (--least-classes)"
        )
    return found


class Drawn(NamedTuple):
    """The slices of one process in one step."""

    samples: Tensor
    """int64 [n]: indices of the slices."""
    ids: Tensor
    """int64 [n], unique within the step: a slice that is drawn twice is augmented in two different ways."""


class SliceDraws:
    """Sampler of slices; its draws depend on seed and step only, not on earlier draws or the number of processes.

    The pool is traversed in one random order after the other, without gaps. Every slice is therefore drawn equally
    often, and a pool smaller than a batch is drawn several times within it. Each process takes a consecutive part of
    the batch.

    Args:
        pool: int64 [M], indices of the slices to draw from.
        batch_size: Slices per step, over all processes; a multiple of `world_size`.
        seed: Seed of the orders.
        rank: Rank of this process, 0 <= rank < world_size.
        world_size: Number of processes.

    Raises:
        UserError: The pool is empty, the batch is empty, or it cannot be divided evenly among the processes.

    >>> draws = SliceDraws(torch.tensor([3, 5, 8]), batch_size=2, seed=0)
    >>> [draws.at(step).samples.tolist() for step in range(3)]
    [[3, 8], [5, 5], [3, 8]]
    """

    def __init__(self, pool: Tensor, *, batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        if batch_size < 1 or batch_size % world_size:
            raise UserError(
                f"batch_size is {batch_size} on {world_size} process(es); expected at least 1, and a multiple of the "
                "number of processes"
            )
        if not len(pool):
            raise UserError("found no slices to draw; expected at least one")
        self.pool, self.batch_size = pool, batch_size
        self._seed, self._rank, self._own = seed, rank, batch_size // world_size

    def at(self, step: int) -> Drawn:
        """Return the slices of this process in `step`."""
        places = torch.arange(step * self.batch_size, (step + 1) * self.batch_size)
        rounds = places // len(self.pool)
        orders = [
            permutation(derive(self._seed, "order", number), len(self.pool))
            for number in range(int(rounds[0]), int(rounds[-1]) + 1)
        ]
        order = torch.stack(orders)[rounds - rounds[0], places % len(self.pool)]
        index = self.pool[order]
        own = slice(self._rank * self._own, (self._rank + 1) * self._own)
        return Drawn(index[own], (index + (int(self.pool.max()) + 1) * (rounds - rounds[0]))[own])


class SegmentationBatch(NamedTuple):
    """Input of the segmentation loss in a step."""

    images: Tensor
    """float32 [n, K, H, W]."""
    shares: Tensor
    """Class shares (soft labels) [n, C, H, W], augmented with the images."""


class SegmentationBatches:
    """Batches of labelled slices, each augmented independently.

    Args:
        run: Run that provides seed, device and processes.
        slices: Labelled slices; they are moved to the device.
        classes: Number of classes C, background included.
        pool: int64 [M], indices of the slices to draw from.
        batch_size: Slices per step, over all processes.
        augment: Options of the augmentation.
        purpose: Name of the random stream; batches with different purposes are drawn independently.
        rare_share: Fraction of the batch that is drawn from the slices of `pool` with the rarest structure; the rest is
            drawn from the whole pool.
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
        rare_share: float = 0.0,
    ) -> None:
        self._slices, self._classes, self._augment = slices.to(run.device), classes, augment
        shared = {"rank": run.rank, "world_size": run.world_size}
        rare = run.world_size * round(rare_share * batch_size / run.world_size)
        self._draws = []
        if rare:
            shown = slices.presence(classes)[pool][:, 1:]
            chosen = pool[shown[:, _rarest(shown)]]
            self._draws.append(SliceDraws(chosen, batch_size=rare, seed=run.seed(purpose, "rare"), **shared))
        if rare < batch_size or not rare:
            self._draws.append(SliceDraws(pool, batch_size=batch_size - rare, seed=run.seed(purpose), **shared))
        self._seed = run.seed(purpose, "augment")

    def at(self, step: int) -> SegmentationBatch:
        """Return the batch of this process in `step`."""
        drawn = _joined([draws.at(step) for draws in self._draws])
        index = drawn.samples.to(self._slices.images.device, non_blocking=True)
        images, shares = deform(
            self._slices.images[index], self._slices.truth[index], num_classes=self._classes,
            seed=derive(self._seed, step, "places"), ids=drawn.ids, options=self._augment,
        )  # fmt: skip
        if self._augment.intensity:
            images = change_intensity(
                images, seed=derive(self._seed, step, "intensity"), ids=drawn.ids, options=self._augment
            )
        return SegmentationBatch(images.contiguous(memory_format=torch.channels_last), shares)


def _rarest(shown: Tensor) -> int:
    """Return the structure that occurs in the fewest slices, but at least in one, given bool [M, F]."""
    counts = shown.sum(0)
    return int(torch.where(counts > 0, counts, len(shown) + 1).argmin())


def _joined(parts: Sequence[Drawn]) -> Drawn:
    """Concatenate the draws of several streams; the ids of different streams remain distinct."""
    ids = [part.ids + number * _STREAM for number, part in enumerate(parts)]
    return Drawn(torch.cat([part.samples for part in parts]), torch.cat(ids))
