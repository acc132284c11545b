"""What unlabelled slices add to the loss of a step: pseudo-labels of a round or of a teacher, or its agreement."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from contrastive_core.rng import derive, uniform
from contrastive_core.training import Run
from ssl_medseg.losses.segmentation import Criterion
from ssl_medseg.models.largest_parts import largest_parts_of_slices
from ssl_medseg.models.network import ChannelDrop, slice_probabilities
from ssl_medseg.selftraining.options import ConsistencyOptions, TeacherOptions
from ssl_medseg.selftraining.rounds import Pool
from ssl_medseg.training.slices import (
    AugmentOptions,
    SegmentationBatches,
    SliceDraws,
    SliceSet,
    change_intensity,
    deform,
    jitter_intensity,
)


class Term(Protocol):
    """A part of the loss with images of its own. They join the batch of the step; the network's answer comes back."""

    weight: float

    @property
    def known(self) -> Tensor:
        """Classes [n, H, W] of the images of the step as far as they are known, 0 elsewhere."""

    def images(self, step: int) -> Tensor:
        """What goes through the network in `step`: [n, K, H, W]."""

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

    @property
    def known(self) -> Tensor:
        """Pseudo-labels [n, H, W] of the slices of the step, 0 where they are not used."""
        return self._shares.argmax(1) * (self._shares[:, self._classes] < 0.5)

    def loss(self, output: Tensor, step: int) -> Tensor:
        """The segmentation loss of logits."""
        shares, unused = self._shares[:, : self._classes], self._shares[:, self._classes]
        return self._criterion(output, shares, 1 - unused)


class MeanTeacherTerm:
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

    @property
    def known(self) -> Tensor:
        """Zeros [n, H, W]: the teacher's answer is no class."""
        return torch.zeros_like(self._wanted[:, 0], dtype=torch.int64)

    def loss(self, output: Tensor, step: int) -> Tensor:
        """The ramped distance of logits to the teacher's answer."""
        apart = (output.float().softmax(1) - self._wanted).square().sum(1).mean()
        return ramp_up(step, self._ramp) * apart


@dataclass(frozen=True)
class TeacherBatch:
    """Unlabelled slices of a step and what the teacher says of them.

    Attributes:
        weak: Slices as the teacher sees them, moved only, [n, K, H, W].
        strong: The same slices with other grey values.
        classes: Pseudo-labels [n, H, W].
        used: 1 where the teacher is sure enough, 0 elsewhere, [n, H, W].
        ids: Numbers of the draws [n].
    """

    weak: Tensor
    strong: Tensor
    classes: Tensor
    used: Tensor
    ids: Tensor


class TeacherBatches:
    """Unlabelled slices of every step, augmented, with the pseudo-labels of an averaged network.

    Args:
        run: Provides seed, device and processes.
        slices: Unlabelled slices.
        teacher: The averaged network.
        classes: Number of classes C, the background included.
        batch_size: Slices per step, over all processes.
        augment: Augmentation; the teacher sees the moved slices, the student also other grey values.
        confidence: Probability below which a pixel is not used.
    """

    def __init__(
        self,
        run: Run,
        slices: SliceSet,
        teacher: nn.Module,
        *,
        classes: int,
        batch_size: int,
        augment: AugmentOptions,
        confidence: float,
    ) -> None:
        self.classes = classes
        self._run, self._teacher, self._augment, self._confidence = run, teacher, augment, confidence
        self._images = slices.images.to(run.device)
        self._draws = SliceDraws(
            torch.arange(len(slices)), batch_size=batch_size, seed=run.seed("unlabelled"), rank=run.rank,
            world_size=run.world_size,
        )  # fmt: skip
        self._seed = run.seed("unlabelled", "augment")

    def at(self, step: int) -> TeacherBatch:
        """Draw, augment and label the slices of a step."""
        samples, ids = self._draws.at(step)
        index = samples.to(self._images.device, non_blocking=True)
        images = self._images[index]
        nothing = torch.zeros_like(images[:, 0], dtype=torch.uint8)
        weak, _ = deform(
            images, nothing, num_classes=1, seed=derive(self._seed, step, "places"), ids=ids, options=self._augment
        )
        probabilities = slice_probabilities(
            self._teacher, weak, batch_size=len(weak), autocast=self._run.fabric.autocast()
        )
        confidence, classes = probabilities.max(1)
        strong = weak
        if self._augment.intensity:
            strong = change_intensity(weak, seed=derive(self._seed, step, "intensity"), ids=ids, options=self._augment)
        return TeacherBatch(weak, strong, classes, (confidence >= self._confidence).to(strong.dtype), ids)


class ConsistencyTerm:
    """Weak to strong: the student learns on strongly changed slices what the teacher is sure of on plain ones.

    The teacher, an average of the student, labels the moved slices; the student sees them with other grey values and
    with boxes of each other (CutMix, labels move along). Two neighbours of a batch exchange boxes, so that processes
    which share a batch evenly compute the same. With `options.feature_dropout` the student also learns the same
    pseudo-labels on the plain slices while random channels of its encoder are missing.

    Args:
        run: Provides the seed.
        batches: Slices of the student with the pseudo-labels of the teacher.
        criterion: Loss of logits, class shares and weights [n, H, W] of the pixels.
        steps: Steps of the run.
        options: CutMix, weight and ramp.

    References: Sohn et al. 2020, "FixMatch"; Yang et al. 2023, "Revisiting weak-to-strong consistency in
    semi-supervised semantic segmentation" (UniMatch); Yun et al. 2019, "CutMix".
    """

    def __init__(
        self, run: Run, batches: TeacherBatches, *, criterion: Criterion, steps: int, options: ConsistencyOptions
    ) -> None:
        self.weight, self._options, self._criterion, self._teacher = options.weight, options, criterion, batches
        self._ramp = options.ramp * steps
        self._seed = run.seed("cutmix")
        self.labels = self._used = self._dropped = torch.empty(0)

    def images(self, step: int) -> Tensor:
        """Slices as the student sees them."""
        batch = self._teacher.at(step)
        images, classes, used = batch.strong, batch.classes, batch.used
        ids = batch.ids.to(images.device, non_blocking=True)
        draws = uniform(derive(self._seed, step), ids, 5)
        options = self._options
        area = options.smallest + (options.largest - options.smallest) * draws[:, 0]
        ratio = torch.exp(math.log(_RATIO) * (2 * draws[:, 1] - 1))
        sides = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()], 1).clamp(max=1)
        box = boxes(images.shape[-2:], sides, draws[:, 2:4]) & (draws[:, 4] < options.cutmix)[:, None, None]
        other = _neighbour(len(images), images.device)
        self.labels = torch.where(box, classes[other], classes)
        self._used = torch.where(box, used[other], used)
        mixed = torch.where(box[:, None], images[other], images)
        if not options.feature_dropout:
            return mixed
        self.labels, self._used = torch.cat([self.labels, classes]), torch.cat([self._used, used])
        self._dropped = ids
        return torch.cat([mixed, batch.weak])

    def drop(self, step: int) -> ChannelDrop | None:
        """Return what sets channels of the last images of the step to 0; None where no features are dropped."""
        share, ids = self._options.feature_dropout, self._dropped
        if not share:
            return None

        def apply(maps: list[Tensor]) -> list[Tensor]:
            changed = []
            for level, each in enumerate(maps):
                kept = uniform(derive(self._seed, step, "features", level), ids, each.shape[1]) >= share
                factors = (kept / (1 - share)).to(each.dtype)[..., None, None]
                whole = len(each) - len(ids)
                changed.append(torch.cat([each[:whole], each[whole:] * factors]))
            return changed

        return apply

    @property
    def known(self) -> Tensor:
        """Classes [n, H, W] of the slices of the step, 0 where the teacher is not sure."""
        return self.labels * self._used.long()

    def loss(self, output: Tensor, step: int) -> Tensor:
        """Return the ramped segmentation loss of logits on the pixels that are used."""
        parts = 2 if self._options.feature_dropout else 1
        chunks = zip(output.chunk(parts), self.labels.chunk(parts), self._used.chunk(parts), strict=True)
        return ramp_up(step, self._ramp) * torch.stack([self._criterion(*each) for each in chunks]).mean()


class CopyPasteTerm:
    """Bidirectional copy-paste: a box of labelled slices in unlabelled ones, and the reverse.

    Of each pair one mixed slice is labelled outside the box and pseudo-labelled inside, the other the reverse. The
    teacher's classes lose all but their largest connected part in each slice. Labelled pixels count fully, unlabelled
    ones half of `options.weight`, ramped up.

    Args:
        run: Provides the seed.
        labelled: Labelled slices, as many per step as `batches` has.
        batches: Unlabelled slices with the pseudo-labels of the teacher, half as many as there are mixed ones.
        criterion: Loss of logits, class shares and weights [n, H, W] of the pixels.
        steps: Steps of the run.
        options: Box, weight and ramp.

    Reference: Bai et al. 2023, "Bidirectional copy-paste for semi-supervised medical image segmentation".
    """

    weight = 1.0

    def __init__(
        self,
        run: Run,
        labelled: SegmentationBatches,
        batches: TeacherBatches,
        *,
        criterion: Criterion,
        steps: int,
        options: ConsistencyOptions,
    ) -> None:
        self._labelled, self._teacher, self._options, self._criterion = labelled, batches, options, criterion
        self._ramp = options.ramp * steps
        self._seed = run.seed("copy-paste")
        self._shares = self._weights = torch.empty(0)

    def images(self, step: int) -> Tensor:
        """Mixed slices, first those that are labelled outside of the box."""
        known = self._labelled.at(step)
        batch = self._teacher.at(step)
        images, used, ids = batch.strong, batch.used, batch.ids
        classes = largest_parts_of_slices(batch.classes)
        draws = uniform(derive(self._seed, step), ids.to(images.device, non_blocking=True), 2)
        sides = torch.full_like(draws, self._options.box)
        box = boxes(images.shape[-2:], sides, draws)[:, None]
        pseudo = F.one_hot(classes, self._teacher.classes).movedim(-1, 1).to(known.shares.dtype)
        sure = used * (0.5 * self._options.weight * ramp_up(step, self._ramp))
        self._shares = torch.cat([torch.where(box, pseudo, known.shares), torch.where(box, known.shares, pseudo)])
        ones = torch.ones_like(sure)
        inside = box[:, 0]
        self._weights = torch.cat([torch.where(inside, sure, ones), torch.where(inside, ones, sure)])
        return torch.cat([torch.where(box, images, known.images), torch.where(box, known.images, images)])

    @property
    def known(self) -> Tensor:
        """Classes [n, H, W] of the mixed slices of the step, 0 where the teacher is not sure."""
        return self._shares.argmax(1) * (self._weights > 0)

    def loss(self, output: Tensor, step: int) -> Tensor:
        """The segmentation loss of logits, labelled pixels in full and unlabelled ones in part."""
        return self._criterion(output, self._shares, self._weights)


_RATIO = 3.0
"""A box of CutMix is at most this many times as long as wide."""


def boxes(size: Sequence[int], sides: Tensor, places: Tensor) -> Tensor:
    """Boxes inside images: bool [N, H, W].

    Args:
        size: H and W.
        sides: height and width of each box as shares of H and W, [N, 2].
        places: where it lies, from 0 (top, left) to 1 (bottom, right), [N, 2].
    """
    inside = []
    for axis, length in enumerate(size):
        side = sides[:, axis] * length
        start = (places[:, axis] * (length - side)).round()
        pixel = torch.arange(length, device=sides.device)
        inside.append((pixel >= start[:, None]) & (pixel < (start + side)[:, None]))
    return inside[0][:, :, None] & inside[1][:, None]


def _neighbour(count: int, device: torch.device) -> Tensor:
    """0 <-> 1, 2 <-> 3, ...; the last of an odd number is its own."""
    return (torch.arange(count, device=device) ^ 1).clamp(max=count - 1)


def ramp_up(step: int, steps: float) -> float:
    """exp(-5 (1 - t)^2) with t = step / steps, 1 from there on.

    >>> round(ramp_up(0, 10), 4), ramp_up(10, 10)
    (0.0067, 1.0)
    """
    t = min(1.0, step / steps) if steps else 1.0
    return math.exp(-5 * (1 - t) ** 2)
