"""What each step of pre-training sees: pairs of views of unlabelled images, views of labelled ones, or both."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from contrastive_core.errors import UserError
from contrastive_core.training import Batches, ClassBatches, Run
from ssl_vision.data import ImageSet, open_images, skip_bad
from ssl_vision.labelled import training_set
from ssl_vision.options import SuNCEtOptions
from ssl_vision.views import Augment, Labelled, Pairs, open_views


class Batch(NamedTuple):
    """The images of one process in one step."""

    pair: list[Tensor]
    """Views a and b ``[N, 3, size, size]``; none in SuNCEt alone."""
    labelled: list[Tensor]
    """One view ``[L, 3, size, size]`` of the labelled images; none where there are none in this step."""
    classes: Tensor
    """Their class numbers: int64 ``[L]``."""


def open_labelled(options: SuNCEtOptions, data: str, *, split: str) -> ImageSet:
    """The labelled images of SuNCEt, in the order of their data set; no label of another image is looked at.

    Raises:
        UserError: no such data, no labels, or a label file that does not fit.
    """
    return training_set(open_images(options.data or data, split=split), options.labels)


class Feed:
    """The batches of a run, and how many there are.

    Args:
        run: whose seeds and processes count.
        unlabelled: images of the pairs; None: SuNCEt alone.
        labelled: images of SuNCEt; None: SimCLR alone.
        suncet: its options.
        epochs: passes over the unlabelled images, or in SuNCEt alone over the labelled ones.
        batch_size: unlabelled images per step, over all processes.
        augment: what makes a view.
        load: where from, as in `open_views`.
        max_bad: share of the unlabelled images that may be unreadable. A labelled one must not be.

    Attributes:
        steps_per_epoch: steps of an epoch.
        total_steps: of the run.
        suncet_steps: in how many of them, from the first, SuNCEt is on.
        labelled_steps: in how many of them labelled images go through the network.

    Raises:
        UserError: fewer images or classes than a step takes, or images that the processes cannot share evenly.
    """

    def __init__(
        self,
        run: Run,
        unlabelled: ImageSet | None,
        labelled: ImageSet | None,
        suncet: SuNCEtOptions,
        *,
        epochs: int,
        batch_size: int,
        augment: Augment,
        load: Literal["auto", "memory", "files"],
        max_bad: float,
    ) -> None:
        if batch_size % run.world_size:
            raise UserError(
                f"batch_size {batch_size} cannot be shared evenly by {run.world_size} processes; choose a multiple"
            )
        images, per_step = (labelled, suncet.batch_size) if unlabelled is None else (unlabelled, batch_size)
        found = 0 if images is None else len(images)
        if found < per_step:
            raise UserError(f"found {found} images, a step takes {per_step}; lower batch_size or add images")
        self._device, self._batch_size, self._suncet = run.device, batch_size, suncet
        self.steps_per_epoch = found // per_step
        self.total_steps = epochs * self.steps_per_epoch
        self.suncet_steps = suncet.steps(epochs=epochs, steps_per_epoch=self.steps_per_epoch)
        self.labelled_steps = self.total_steps if suncet.code == "today" and labelled else self.suncet_steps
        self._pairs = self._few = None
        if unlabelled is not None:
            batches = Batches(
                found,
                batch_size=batch_size // run.world_size,
                seed=run.seed("order"),
                rank=run.rank,
                world_size=run.world_size,
                total_steps=self.total_steps,
            )
            readable = skip_bad(unlabelled, max_bad=max_bad, log=run.out / "bad_files.jsonl")
            pairs = Pairs(batches, seed=run.seed("views"))
            self._pairs = open_views(readable, pairs, augment, load=load, workers=run.options.workers)
        if labelled is not None:
            self._few = self._plan_labelled(run, labelled.labels(), suncet)
            self._labelled = open_views(labelled, self._few, augment, load=load, workers=run.options.workers)

    def batch(self, step: int) -> Batch:
        """The images of this step, on the run's device."""
        pair = [] if self._pairs is None else self._pairs.batch(step, self._device)
        if self._few is None or step >= self._few.total_steps:
            return Batch(pair, [], torch.empty(0, dtype=torch.int64, device=self._device))
        classes = self._few.labels_at(step).to(self._device)
        return Batch(pair, self._labelled.batch(step, self._device), classes)

    def inputs(self, step: int) -> int:
        """Images that go through the network in a step, over all processes, both views of a pair counted."""
        return 2 * self._batch_size + (self._suncet.batch_size if step < self.labelled_steps else 0)

    def inputs_until(self, step: int) -> int:
        """Images that have gone through the network before a step, by which runs of equal compute are matched."""
        return 2 * self._batch_size * step + self._suncet.batch_size * min(step, self.labelled_steps)

    @property
    def summary(self) -> str:
        """What a step is made of, for the person watching."""
        text = f"{self.total_steps} steps, images a step: {self.inputs(0)}"
        if self.labelled_steps:
            text += f" = 2 x {self._batch_size} + {self._suncet.batch_size} labelled"
        if 0 < self.labelled_steps < self.total_steps:
            text += f", from step {self.labelled_steps} on {self.inputs(self.labelled_steps)}"
        return text

    def _plan_labelled(self, run: Run, labels: Tensor, suncet: SuNCEtOptions) -> Labelled:
        try:
            batches = ClassBatches(
                labels,
                classes_per_batch=suncet.classes_per_batch,
                samples_per_class=suncet.images_per_class,
                seed=run.seed("labelled order"),
                rank=run.rank,
                world_size=run.world_size,
            )
        except UserError as error:
            raise UserError(f"suncet.classes_per_batch or suncet.images_per_class: {error}") from error
        return Labelled(batches, labels, seed=run.seed("labelled views"), total_steps=self.labelled_steps)
