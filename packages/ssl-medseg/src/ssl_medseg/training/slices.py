"""Stack the slices of prepared cases, draw them step by step, and make augmented batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from contrastive_core.errors import UserError
from contrastive_core.rng import derive, permutation
from contrastive_core.training import Run
from ssl_medseg.preprocessing.cases import PreparedCase
from ssl_medseg.training.augment import AugmentOptions, change_intensity, deform

_STREAM = 1 << 40
"""Distance of the ids of two streams of draws."""


@dataclass(frozen=True)
class SliceSet:
    """All slices of some cases, in their order.

    Attributes:
        images: float32 [N, K, H, W], K channels.
        labels: uint8 [N, H, W], true or pseudo-labels; None without.
        case: int64 [N], which case.
        number: int64 [N], which slice of it.
        names: of the cases.
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
        """The labels, where there must be some.

        Raises:
            UserError: there are none.
        """
        if self.labels is None:
            raise UserError(f"found no labels for {', '.join(self.names[:5])}; expected one for every slice")
        return self.labels

    def with_labels(self, labels: Tensor) -> SliceSet:
        """The same slices with other labels, such as pseudo-labels: uint8 [N, H, W]."""
        return replace(self, labels=labels)

    def presence(self, classes: int) -> Tensor:
        """Whether a class is in a slice, the background included: bool [N, C]."""
        flat = self.truth.flatten(1)
        return torch.stack([(flat == number).any(1) for number in range(classes)], 1)

    def partition(self, parts: int) -> Tensor:
        """Which of that many equal parts of its volume a slice lies in, along the slice axis: int64 [N]."""
        counts = torch.bincount(self.case, minlength=len(self.names))
        return self.number * parts // counts[self.case]

    def to(self, device: torch.device) -> SliceSet:
        """The same on a device; a few hundred slices fit beside the network."""
        labels = None if self.labels is None else self.labels.to(device)
        return SliceSet(self.images.to(device), labels, self.case.to(device), self.number.to(device), self.names)


def stack_slices(cases: Sequence[PreparedCase]) -> SliceSet:
    """The slices of cases of one size; with labels, if all cases have one.

    Raises:
        UserError: no cases.
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
    """The slices that show at least that many classes, the background included: int64 [M].

    The papers' rules: segmentation batches take slices with at least 3 classes of ACDC and MM-WHS and 2 of the prostate
    once self-training begins, contrastive ones slices with all classes.

    Raises:
        UserError: there is none.
    """
    shown = slices.presence(classes).sum(1)
    found = torch.nonzero(shown >= least).flatten()
    if not len(found):
        raise UserError(
            f"none of the {len(slices)} slices shows {least} classes or more, the most is {int(shown.max())}; lower "
            "the number of classes that a slice must show"
        )
    return found


class Drawn(NamedTuple):
    """The slices that one process takes in one step."""

    samples: Tensor
    """Which slices: int64 [n]."""
    ids: Tensor
    """int64 [n], different for every entry of the step: a slice that comes twice is augmented in two ways."""


class SliceDraws:
    """Slices of every step: a function of seed and step, whatever happened before and however many processes there are.

    All slices of the pool in a random order, then all of them in another, and so on without a gap: every slice is drawn
    as often as every other, and a pool smaller than a batch is drawn several times within it. Each process takes its
    consecutive part.

    Args:
        pool: int64 [M], the slices that may be drawn.
        batch_size: slices per step, over all processes; a multiple of `world_size`.
        seed: decides the order.
        rank: this process, 0 <= rank < world_size.
        world_size: number of processes.

    Raises:
        UserError: an empty pool, no slices per step, or a batch that the processes cannot share evenly.

    >>> draws = SliceDraws(torch.tensor([3, 5, 8]), batch_size=2, seed=0)
    >>> [draws.at(step).samples.tolist() for step in range(3)]
    [[3, 8], [5, 5], [3, 8]]
    """

    def __init__(self, pool: Tensor, *, batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        if batch_size < 1 or batch_size % world_size:
            raise UserError(
                f"batch_size is {batch_size} on {world_size} process(es); expected at least 1, and a multiple of them"
            )
        if not len(pool):
            raise UserError("found no slices to draw; expected at least one")
        self.pool, self.batch_size = pool, batch_size
        self._seed, self._rank, self._own = seed, rank, batch_size // world_size

    def at(self, step: int) -> Drawn:
        """The slices that this process takes in `step`."""
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
    """What the segmentation loss sees in a step."""

    images: Tensor
    """Float32 [n, K, H, W]."""
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
        rare_share: share of the batch that is drawn from the slices of `pool` with the structure that the fewest of
            them show; the rest is drawn from all of them.
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
        """The batch of this process in `step`."""
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
    """The structure that the fewest slices show, but some: of bool [M, F]."""
    counts = shown.sum(0)
    return int(torch.where(counts > 0, counts, len(shown) + 1).argmin())


def _joined(parts: Sequence[Drawn]) -> Drawn:
    """Draws of several streams as those of one; the ids of each stream stay apart from those of the others."""
    ids = [part.ids + number * _STREAM for number, part in enumerate(parts)]
    return Drawn(torch.cat([part.samples for part in parts]), torch.cat(ids))
