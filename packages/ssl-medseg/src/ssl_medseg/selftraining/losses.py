"""Define the losses on unlabelled slices, one per method of self-training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from contrastive_core.pseudo_label import hard_labels
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
    """A loss term with its own images, which pass through the network together with the labelled batch of the step."""

    weight: float

    @property
    def known(self) -> Tensor:
        """Known classes [n, H, W] of the images of the step, 0 elsewhere."""

    def images(self, step: int) -> Tensor:
        """Return the images [n, K, H, W] that pass through the network in `step`."""

    def loss(self, output: Tensor, step: int) -> Tensor:
        """Compute the loss of their logits [n, C, H, W], or of their embeddings in the contrastive term."""


class PseudoTerm:
    """Segmentation loss on slices with pseudo-labels; unused pixels are ignored.

    Args:
        run: Run that provides seed, device and processes.
        pool: Pool with the pseudo-labels of this round.
        classes: Number of classes C, background included.
        batch_size: Slices per step, over all processes.
        augment: Augmentation of images and pseudo-labels.
        criterion: Loss of logits, class shares and pixel weights [n, H, W].
        weight: Weight of the term.
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
        # Unused pixels are augmented as an additional class, which is removed again afterwards.
        self._batches = SegmentationBatches(
            run, pool.slices, classes=classes + 1, pool=pool.used, batch_size=batch_size, augment=augment,
            purpose="unlabelled",
        )  # fmt: skip
        self._shares = torch.empty(0)

    def images(self, step: int) -> Tensor:
        """Return the augmented slices."""
        batch = self._batches.at(step)
        self._shares = batch.shares
        return batch.images

    @property
    def known(self) -> Tensor:
        """Pseudo-labels [n, H, W] of the slices of the step, 0 where they are unused."""
        return self._shares.argmax(1) * (self._shares[:, self._classes] < 0.5)

    def loss(self, output: Tensor, step: int) -> Tensor:
        """Compute the segmentation loss of logits."""
        shares, unused = self._shares[:, : self._classes], self._shares[:, self._classes]
        return self._criterion(output, shares, 1 - unused)


class MeanTeacherTerm:
    """Mean-teacher loss: student and teacher should agree on a slice under two intensity augmentations.

    The loss is the squared distance between their class probabilities, averaged over pixels. Its weight ramps up as
    exp(-5 (1 - t)^2), where t grows from 0 to 1 over the first `options.ramp` of the steps.

    Args:
        run: Run that provides seed, device and processes.
        slices: Unlabelled slices.
        teacher: Averaged network.
        batch_size: Slices per step, over all processes.
        steps: Number of training steps.
        options: Weight and ramp.

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
        self._targets = torch.empty(0)

    def images(self, step: int) -> Tensor:
        """Return the slices for the student, and compute the teacher's prediction."""
        index, ids = self._draws.at(step)
        slices = self._images[index.to(self._images.device, non_blocking=True)]
        student, teacher = (
            jitter_intensity(slices, seed=derive(self._seed, step, who), ids=ids) for who in ("student", "teacher")
        )
        self._targets = slice_probabilities(self._teacher, teacher, batch_size=len(teacher))
        return student

    @property
    def known(self) -> Tensor:
        """Zeros [n, H, W]: the teacher predicts probabilities, not classes."""
        return torch.zeros_like(self._targets[:, 0], dtype=torch.int64)

    def loss(self, output: Tensor, step: int) -> Tensor:
        """Compute the ramped distance between the student's and the teacher's probabilities."""
        apart = (output.float().softmax(1) - self._targets).square().sum(1).mean()
        return ramp_up(step, self._ramp) * apart


@dataclass(frozen=True)
class TeacherBatch:
    """Unlabelled slices of a step with the pseudo-labels of the teacher.

    Attributes:
        weak: Slices [n, K, H, W] with spatial augmentation only, the input of the teacher.
        strong: The same slices with intensity augmentation as well.
        classes: Pseudo-labels [n, H, W].
        used: 1 where the teacher is confident, otherwise 0, [n, H, W].
        ids: Ids [n] that determine the random parameters of each slice.
    """

    weak: Tensor
    strong: Tensor
    classes: Tensor
    used: Tensor
    ids: Tensor


class TeacherBatches:
    """Batches of augmented unlabelled slices with the pseudo-labels of an averaged network.

    Args:
        run: Run that provides seed, device and processes.
        slices: Unlabelled slices.
        teacher: Averaged network.
        classes: Number of classes C, background included.
        batch_size: Slices per step, over all processes.
        augment: Augmentation. The teacher sees the spatial part only, the student also the intensity part.
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
        labels = hard_labels(probabilities, threshold=self._confidence)
        strong = weak
        if self._augment.intensity:
            strong = change_intensity(weak, seed=derive(self._seed, step, "intensity"), ids=ids, options=self._augment)
        return TeacherBatch(weak, strong, labels.classes, labels.keep.to(strong.dtype), ids)


class ConsistencyTerm:
    """Weak-to-strong consistency: train the student on strong views with confident labels from weak views.

    The teacher, a moving average of the student, labels slices after spatial augmentation. The student sees them with
    intensity augmentation and CutMix, which also mixes the labels. Neighbours within a batch exchange boxes, so that
    the result does not depend on the number of processes that share a batch. With `options.feature_dropout`, the
    student is also trained on the weak views with random encoder channels set to 0, with the same pseudo-labels.

    Args:
        run: Run that provides the seed.
        batches: Slices for the student with the pseudo-labels of the teacher.
        criterion: Loss of logits, class shares and pixel weights [n, H, W].
        steps: Number of training steps.
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
        """Return the slices for the student."""
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
        """Return the function that drops channels of the last images of the step; None without feature dropout."""
        share, ids = self._options.feature_dropout, self._dropped
        if not share:
            return None

        def apply(maps: list[Tensor]) -> list[Tensor]:
            outputs = []
            for level, each in enumerate(maps):
                mask = uniform(derive(self._seed, step, "features", level), ids, each.shape[1]) >= share
                factors = (mask / (1 - share)).to(each.dtype)[..., None, None]
                whole = len(each) - len(ids)
                outputs.append(torch.cat([each[:whole], each[whole:] * factors]))
            return outputs

        return apply

    @property
    def known(self) -> Tensor:
        """Classes [n, H, W] of the slices of the step, 0 where the teacher is not confident."""
        return self.labels * self._used.long()

    def loss(self, output: Tensor, step: int) -> Tensor:
        """Compute the ramped segmentation loss of logits on the used pixels."""
        parts = 2 if self._options.feature_dropout else 1
        chunks = zip(output.chunk(parts), self.labels.chunk(parts), self._used.chunk(parts), strict=True)
        return ramp_up(step, self._ramp) * torch.stack([self._criterion(*each) for each in chunks]).mean()


class CopyPasteTerm:
    """Bidirectional copy-paste: exchange a box between a labelled and an unlabelled slice.

    One mixed slice of each pair is labelled outside the box and pseudo-labelled inside, the other one the reverse.
    Only the largest connected component of each predicted class is kept in each slice. Labelled pixels have weight 1,
    pseudo-labelled ones half of `options.weight`, ramped up.

    Args:
        run: Run that provides the seed.
        labelled: Labelled slices, as many per step as `batches` has.
        batches: Unlabelled slices with the pseudo-labels of the teacher, half as many as there are mixed ones.
        criterion: Loss of logits, class shares and pixel weights [n, H, W].
        steps: Number of training steps.
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
        """Return the mixed slices, first those that are labelled outside the box."""
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
        """Classes [n, H, W] of the mixed slices of the step, 0 where the teacher is not confident."""
        return self._shares.argmax(1) * (self._weights > 0)

    def loss(self, output: Tensor, step: int) -> Tensor:
        """Compute the weighted segmentation loss of logits."""
        return self._criterion(output, self._shares, self._weights)


_RATIO = 3.0
"""Largest aspect ratio of a CutMix box."""


def boxes(size: Sequence[int], sides: Tensor, places: Tensor) -> Tensor:
    """Return masks of boxes inside images, bool [N, H, W].

    Args:
        size: H and W.
        sides: [N, 2], height and width of each box as fractions of H and W.
        places: [N, 2], position of each box, from 0 (top, left) to 1 (bottom, right).
    """
    inside = []
    for axis, length in enumerate(size):
        side = sides[:, axis] * length
        start = (places[:, axis] * (length - side)).round()
        pixel = torch.arange(length, device=sides.device)
        inside.append((pixel >= start[:, None]) & (pixel < (start + side)[:, None]))
    return inside[0][:, :, None] & inside[1][:, None]


def _neighbour(count: int, device: torch.device) -> Tensor:
    """Return the neighbour of each index: 0 <-> 1, 2 <-> 3, ...; the last of an odd number is its own neighbour."""
    return (torch.arange(count, device=device) ^ 1).clamp(max=count - 1)


def ramp_up(step: int, steps: float) -> float:
    """Return exp(-5 (1 - t)^2) with t = min(step / steps, 1).

    >>> round(ramp_up(0, 10), 4), ramp_up(10, 10)
    (0.0067, 1.0)
    """
    t = min(1.0, step / steps) if steps else 1.0
    return math.exp(-5 * (1 - t) ** 2)
