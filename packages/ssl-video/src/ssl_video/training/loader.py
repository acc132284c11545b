"""Load the batches of a training step: labelled clips, and weakly and strongly augmented unlabelled clips."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from contrastive_core.errors import UserError
from contrastive_core.rng import derive
from contrastive_core.text import several
from contrastive_core.training import Batches, Run
from contrastive_core.training.samplers import StepLoader
from ssl_video.augment import ClipAugment
from ssl_video.data.clip import Clips, ClipSource

_TIMEOUT = 600  # seconds without a batch before a worker is considered stuck

Pictures = dict[str, Tensor]


class StepBatch(NamedTuple):
    """Clips of one process in one step."""

    labelled: Pictures
    """Labelled clips by view, float32 ``[B, T, 3, S, S]``."""
    labels: Tensor
    """Classes of the labelled clips, int64 ``[B]``."""
    weak: Pictures
    """Weakly augmented unlabelled clips by view; empty in steps with labels only."""
    strong: Pictures
    """The same clips, strongly augmented."""
    present: Pictures
    """Whether each unlabelled clip has a view that some clips lack, by view: bool ``[U]``, on the host."""
    labelled_present: Pictures
    """Whether each labelled clip has a view that some clips lack, by view: bool ``[B]``, on the host."""
    unlabelled: Tensor
    """Indices of the unlabelled videos, int64 ``[U]``."""
    reordered: Tensor
    """Whether the frames of each strong clip run in another order than forwards, bool ``[U]``."""


class Feed:
    """Loads the batches of a run.

    Args:
        run: Run, for seeds and processes.
        labelled: Clips of labelled videos.
        unlabelled: Clips of all training videos; None: labels only.
        augment: Augmentation.
        batch_size: Number of labelled clips per step over all processes; all labelled videos if there are fewer.
        mu: Number of unlabelled clips per labelled clip; one of each training video if there are fewer.
        total_steps: Number of steps of the run.
        first_unlabelled: First step that reads unlabelled clips.

    Attributes:
        batch_size: Number of labelled clips per step over all processes, at most the number of labelled videos.
        clips: Number of clips per step over all processes, labelled and unlabelled.

    Raises:
        UserError: There are fewer clips than a step takes, or their number cannot be shared among the processes.
    """

    def __init__(
        self,
        run: Run,
        labelled: ClipSource,
        unlabelled: ClipSource | None,
        augment: ClipAugment,
        *,
        batch_size: int,
        mu: int,
        total_steps: int,
        first_unlabelled: int,
    ) -> None:
        world = run.world_size
        if batch_size < 1 or batch_size % world:
            raise UserError(f"batch_size is {batch_size}; expected a multiple of the {world} process(es)")
        self.batch_size = min(batch_size, len(labelled) - len(labelled) % world)
        if not self.batch_size:
            raise UserError(
                f"found {several(len(labelled), 'labelled video')} for {world} processes; expected at least one each"
            )
        if self.batch_size < batch_size:
            run.say(f"note: a step takes all {self.batch_size} labelled clips, fewer than batch_size {batch_size}")
        many = 0
        if unlabelled is not None:
            many = min(mu * batch_size, len(unlabelled) - len(unlabelled) % world)
            if many < mu * batch_size:
                run.say(
                    f"note: a step takes {many} unlabelled clips, one of each training video, fewer than mu x "
                    f"batch_size = {mu * batch_size}"
                )
        self.clips = self.batch_size + many

        def batches(clips: ClipSource, size: int, purpose: str) -> Batches:
            return Batches(
                len(clips),
                batch_size=size // world,
                seed=run.seed(purpose),
                rank=run.rank,
                world_size=world,
                total_steps=total_steps,
            )

        self._steps = _Steps(
            labelled,
            batches(labelled, self.batch_size, "labelled order"),
            unlabelled,
            batches(unlabelled, many, "order") if unlabelled is not None else None,
            augment,
            seed=run.seed("clips"),
            first_unlabelled=first_unlabelled,
        )
        self._device = run.device
        self._loader: StepLoader[StepBatch] = StepLoader(
            self._steps, total_steps=total_steps, workers=run.options.workers, timeout=_TIMEOUT
        )

    def batch(self, step: int) -> StepBatch:
        """Return the clips of this step, on the run's device."""
        batch = next(self._loader.at(step, pin_memory=self._device.type == "cuda"))
        # The masks stay on the host, which has to know how many clips they select.
        stay = {"present", "labelled_present"}
        return StepBatch(*(x if name in stay else _to(x, self._device) for name, x in batch._asdict().items()))


class _Steps(Dataset[StepBatch | UserError]):
    """Data set of the batches of all steps, each a function of seed and step."""

    def __init__(
        self,
        labelled: ClipSource,
        few: Batches,
        unlabelled: ClipSource | None,
        many: Batches | None,
        augment: ClipAugment,
        *,
        seed: int,
        first_unlabelled: int,
    ) -> None:
        self.labelled, self.few, self.unlabelled, self.many, self.augment = labelled, few, unlabelled, many, augment
        self.labels = labelled.videos.labels()
        self.seed, self.first_unlabelled = seed, first_unlabelled

    def __getitem__(self, step: int) -> StepBatch | UserError:
        try:
            return self._load(step)
        except UserError as error:
            return error  # raised in the training process: a worker would wrap it in a traceback

    def _load(self, step: int) -> StepBatch:
        ids = self.few.at(step)
        seed = derive(self.seed, "labelled", step)
        clips, _ = _read(self.labelled, ids, seed)
        labelled, there = self.augment.weak(clips, seed=seed, ids=ids), self._present(clips)
        labels = self.labels[ids]
        if self.unlabelled is None or self.many is None or step < self.first_unlabelled:
            return StepBatch(labelled, labels, {}, {}, {}, there, ids[:0], ids[:0].bool())
        ids = self.many.at(step)
        seed = derive(self.seed, "unlabelled", step)
        clips, videos = _read(self.unlabelled, ids, seed)
        weak, strong = self.augment.weak_and_strong(clips, seed=seed, ids=ids)
        reordered = self.augment.reordered(seed=seed, ids=ids)
        return StepBatch(labelled, labels, weak, strong, self._present(clips), there, videos, reordered)

    def _present(self, clips: Sequence[Clips]) -> Pictures:
        if "audio" not in self.augment.views:
            return {}
        return {"audio": torch.cat([clip.has_audio for clip in clips if clip.has_audio is not None])}


def _read(data: ClipSource, ids: Tensor, seed: int) -> tuple[list[Clips], Tensor]:
    samples = [data.clip(index, seed=seed) for index in ids.tolist()]
    return [sample.clip for sample in samples], torch.tensor([sample.video for sample in samples])


def _to(item: Any, device: torch.device) -> Any:
    if isinstance(item, dict):
        return {name: _to(value, device) for name, value in item.items()}
    return item.to(device, non_blocking=True)
