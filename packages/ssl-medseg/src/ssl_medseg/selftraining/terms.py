"""What unlabelled slices add to the loss of a step: pseudo-labels, pairs, or agreement with a teacher."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor, nn

from contrastive_core.rng import derive
from contrastive_core.training import Run
from ssl_medseg.losses.segmentation import Criterion
from ssl_medseg.models.inference import slice_probabilities
from ssl_medseg.selftraining.options import TeacherOptions
from ssl_medseg.selftraining.pool import Pool
from ssl_medseg.training.augment import AugmentOptions, jitter_intensity
from ssl_medseg.training.slices import SegmentationBatches, SliceDraws, SliceSet


class Term(Protocol):
    """A part of the loss with images of its own. They join the batch of the step; the network's answer comes back."""

    weight: float

    def images(self, step: int) -> Tensor:
        """What goes through the network in `step`: [n, 1, H, W]."""

    def loss(self, output: Tensor, step: int) -> Tensor:
        """The loss of what came out for them: logits [n, C, H, W], or embeddings for the contrastive term."""


class PseudoTerm:
    """The segmentation loss on slices with pseudo-labels; pixels that are not used count nowhere.

    Args:
        run: gives seed, device and processes.
        pool: with the pseudo-labels of this round.
        classes: C, the background included.
        batch_size: slices per step, over all processes.
        augment: of images and pseudo-labels.
        criterion: of logits, class shares and weights [n, H, W] of the pixels.
        weight: of the term.
    """

    def __init__(
        self,
        run: Run,
        pool: Pool,
        *,
        classes: int,
        batch_size: int,
        augment: AugmentOptions,
        criterion: Criterion,
        weight: float,
    ) -> None:
        self.weight, self._criterion, self._classes = weight, criterion, classes
        # Pixels that are not used are one class more, which is taken away again after they were moved.
        self._batches = SegmentationBatches(
            run, pool.slices, classes=classes + 1, pool=pool.used, batch_size=batch_size, augment=augment,
            purpose="unlabelled",
        )  # fmt: skip
        self._shares = torch.empty(0)

    def images(self, step: int) -> Tensor:
        """Augmented slices."""
        batch = self._batches.at(step)
        self._shares = batch.shares
        return batch.images

    def loss(self, output: Tensor, step: int) -> Tensor:
        """The segmentation loss of logits."""
        shares, unused = self._shares[:, : self._classes], self._shares[:, self._classes]
        return self._criterion(output, shares, 1 - unused)


class ConsistencyTerm:
    """A mean teacher's loss: student and teacher agree on a slice under two changes of intensity.

    The mean over pixels of the squared distance of their class probabilities, its weight ramped up as
    exp(-5 (1 - t)^2), t up to 1 over the first `options.ramp` of the steps.

    Args:
        run: gives seed, device and processes.
        slices: unlabelled.
        teacher: the averaged network.
        batch_size: slices per step, over all processes.
        steps: of the run.
        options: weight and ramp.

    Reference: Tarvainen and Valpola 2017, "Mean teachers are better role models".
    """

    def __init__(
        self, run: Run, slices: SliceSet, teacher: nn.Module, *, batch_size: int, steps: int, options: TeacherOptions
    ) -> None:
        self.weight = options.consistency
        self._ramp, self._teacher = options.ramp * steps, teacher
        self._images = slices.images.to(run.device)
        self._draws = SliceDraws(
            torch.arange(len(slices)), batch_size=batch_size, seed=run.seed("unlabelled"), rank=run.rank,
            world_size=run.world_size,
        )  # fmt: skip
        self._seed = run.seed("consistency")
        self._wanted = torch.empty(0)

    def images(self, step: int) -> Tensor:
        """Slices as the student sees them; the teacher answers at once."""
        index, ids = self._draws.at(step)
        slices = self._images[index.to(self._images.device, non_blocking=True)]
        student, teacher = (
            jitter_intensity(slices, seed=derive(self._seed, step, who), ids=ids) for who in ("student", "teacher")
        )
        self._wanted = slice_probabilities(self._teacher, teacher, batch_size=len(teacher))
        return student

    def loss(self, output: Tensor, step: int) -> Tensor:
        """The ramped distance of logits to the teacher's answer."""
        apart = (output.float().softmax(1) - self._wanted).square().sum(1).mean()
        return ramp_up(step, self._ramp) * apart


def ramp_up(step: int, steps: float) -> float:
    """exp(-5 (1 - t)^2) with t = step / steps, 1 from there on.

    >>> round(ramp_up(0, 10), 4), ramp_up(10, 10)
    (0.0067, 1.0)
    """
    t = min(1.0, step / steps) if steps else 1.0
    return math.exp(-5 * (1 - t) ** 2)
