"""Load the images of every step: pairs of views, labelled views, or crops.

The images of a batch and their augmentation are a function of the seed, the step, the image and the view alone; neither
the number of workers nor a restart changes them. Small images are decoded once and augmented in memory, large ones are
read by loader workers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from contrastive_core.errors import UserError
from contrastive_core.rng import derive
from contrastive_core.training import Batches, ClassBatches, Run
from contrastive_core.training.samplers import StepLoader
from ssl_vision.augment import CropFlip
from ssl_vision.data import ImageSet, in_memory, open_images, skip_bad, small_in_memory
from ssl_vision.data.dataset import Load, ReadOptions, UnlabelledReadOptions
from ssl_vision.labels.subsets import require_two_classes, training_set
from ssl_vision.training.options import SuNCEtOptions

FREE = ("read.load",)
"""Settings of training that a resumed run may change, because they do not affect the result."""


def view_seed(seed: int, epoch: int, view: int) -> int:
    """Return the seed of all random draws for one view in one epoch."""
    return derive(seed, "view", epoch, view)


class Draw(NamedTuple):
    """The images of a step and the seeds of their views."""

    images: Tensor
    """Indices of the images, int64 [B]."""
    ids: Tensor
    """Identity of each image in random draws, int64 [B]."""
    seeds: tuple[int, ...]
    """One seed per view; each view shows all images."""


class Plan(Protocol):
    """Images and seeds of every step."""

    total_steps: int

    def at(self, step: int) -> Draw:
        """Return the images of a step and the seeds of their views."""


class Views:
    """Views of every image of a batch, two for a pair, with new seeds in every pass over the images."""

    def __init__(self, batches: Batches, *, seed: int, views: int = 2) -> None:
        self.batches, self.seed, self.views, self.total_steps = batches, seed, views, batches.total_steps

    def at(self, step: int) -> Draw:
        """See `Plan`."""
        index, epoch = self.batches.at(step), step // self.batches.steps_per_epoch
        return Draw(index, index, tuple(view_seed(self.seed, epoch, view) for view in range(self.views)))


class Labelled:
    """One view of every image of a class-stratified batch, with a new seed in every step and for every repetition."""

    def __init__(self, batches: ClassBatches, labels: Tensor, *, seed: int, total_steps: int) -> None:
        self.batches, self.labels, self.seed, self.total_steps = batches, labels, seed, total_steps

    def at(self, step: int) -> Draw:
        """See `Plan`."""
        index, copy = self.batches.at(step)
        return Draw(index, index + copy * len(self.labels), (derive(self.seed, "labelled", step),))

    def labels_at(self, step: int) -> Tensor:
        """Return the class numbers of the images of a step, int64 [B]."""
        return self.labels[self.batches.at(step).samples]


class Augment(Protocol):
    """An augmentation that makes one view of each image: `SimCLRAugment` or `CropFlip`."""

    def __call__(self, images: Tensor | Sequence[Tensor], *, seed: int, ids: Tensor) -> Tensor:
        """Return float32 ``[B, 3, size, size]`` in [0, 1], a function of the image, its id and the seed."""


def open_views(images: ImageSet, plan: Plan, *augments: Augment, load: Load, workers: int) -> MemoryViews | LoadedViews:
    """Decode all images once into memory, or read them from files for every view; the views are the same.

    With several augmentations, every image of the plan's views is shown through each of them, with the same seed.
    """
    pixels = in_memory(images) if load == "memory" else small_in_memory(images) if load == "auto" else None
    if pixels is not None:
        return MemoryViews(pixels, plan, *augments)
    return LoadedViews(images, plan, *augments, workers=workers)


class MemoryViews:
    """Views of images in memory, one uint8 tensor ``[N, 3, H, W]``; augmentation runs on whole batches.

    The images move to the accelerator if it has room for them.
    """

    def __init__(self, images: Tensor, plan: Plan, *augments: Augment) -> None:
        self.images, self.plan, self.augments = images, plan, augments
        self._device = images.device

    def batch(self, step: int, device: torch.device) -> list[Tensor]:
        """Return the views of a step, each ``[B, 3, size, size]``."""
        images, ids, seeds = self.plan.at(step)
        if self._device != device:
            self._device, self.images = device, _to_device_if_small(self.images, device)
        pictures = self.images[images.to(self.images.device, non_blocking=True)].to(device, non_blocking=True)
        return [_channels_last(augment(pictures, seed=seed, ids=ids)) for seed in seeds for augment in self.augments]


def _to_device_if_small(images: Tensor, device: torch.device) -> Tensor:
    """Move the images to a CUDA device if they take at most a quarter of its free memory."""
    if device.type != "cuda" or images.nbytes > torch.cuda.mem_get_info(device)[0] // 4:
        return images
    return images.to(device)


class LoadedViews:
    """Views of images read from files; each worker makes whole batches of images of any size."""

    def __init__(self, images: ImageSet, plan: Plan, *augments: Augment, workers: int) -> None:
        self.dataset = _Steps(images, plan, *augments)
        self._steps = StepLoader(self.dataset, total_steps=plan.total_steps, workers=workers)

    def batch(self, step: int, device: torch.device) -> list[Tensor]:
        """Return the views of a step, each ``[B, 3, size, size]``."""
        views = next(self._steps.at(step, pin_memory=device.type == "cuda"))
        return [_channels_last(view.to(device, non_blocking=True)) for view in views]


class _Steps(Dataset[list[Tensor] | UserError]):
    """Data set of the views of every step."""

    def __init__(self, images: ImageSet, plan: Plan, *augments: Augment) -> None:
        self.images, self.plan, self.augments = images, plan, augments

    def __getitem__(self, step: int) -> list[Tensor] | UserError:
        images, ids, seeds = self.plan.at(step)
        try:
            pictures = [self.images.read(image) for image in images.tolist()]
        except UserError as error:
            return error  # raised in the training process: a worker would wrap it in a traceback
        return [augment(pictures, seed=seed, ids=ids) for seed in seeds for augment in self.augments]


def _channels_last(views: Tensor) -> Tensor:
    return views.contiguous(memory_format=torch.channels_last)


class Crops:
    """The crops of every step, a function of (seed, step, image) alone.

    Args:
        images: Images to crop; small ones are decoded once.
        batches: Indices of the images of each step.
        size: Side of the crops in pixels, or several: then `batches` returns the same crops at each of them.
        seed: Seed of the crops.
        load: Source of the images, as for `open_views`.
        workers: Number of processes that read image files.
    """

    def __init__(
        self,
        images: ImageSet,
        batches: Batches,
        *,
        size: int | Sequence[int],
        seed: int,
        load: Load,
        workers: int,
    ) -> None:
        crops = [CropFlip(side) for side in ([size] if isinstance(size, int) else size)]
        self._views = open_views(images, Views(batches, seed=seed, views=1), *crops, load=load, workers=workers)

    def batch(self, step: int, device: torch.device) -> Tensor:
        """Return the crops of a step, ``[B, 3, size, size]`` in [0, 1]; of several sizes, those of the first."""
        return self.batches(step, device)[0]

    def batches(self, step: int, device: torch.device) -> list[Tensor]:
        """Return the crops of a step at every size."""
        return self._views.batch(step, device)


class Batch(NamedTuple):
    """The images of one process in one step."""

    pair: list[Tensor]
    """Views a and b, each ``[N, 3, size, size]``; empty with SuNCEt alone."""
    labelled: list[Tensor]
    """One view of the labelled images, ``[L, 3, size, size]``; empty in steps without them."""
    classes: Tensor
    """Class numbers of the labelled images, int64 ``[L]``."""


def open_labelled(
    options: SuNCEtOptions,
    data: str,
    *,
    split: str,
    channels: int = 3,
    read: ReadOptions = ReadOptions(),  # noqa: B008 - frozen
) -> ImageSet:
    """Open the labelled images of SuNCEt, in the order of their data set; labels of other images are not read.

    Raises:
        UserError: There are no such data, no labels, labels of a single class, or a label file that does not match the
            data.
    """
    images = open_images(options.data or data, split=split, channels=channels, read=read)
    labelled = training_set(images, options.labels)
    require_two_classes(labelled, labels=options.labels)
    return labelled


class Feed:
    """The batches of a pre-training run.

    Args:
        run: Run that gives the seeds and the number of processes.
        unlabelled: Images of the pairs; None for SuNCEt alone.
        labelled: Images of SuNCEt; None for SimCLR alone.
        suncet: Options of SuNCEt.
        epochs: Number of passes over the unlabelled images, or over the labelled ones with SuNCEt alone.
        batch_size: Unlabelled images per step, over all processes.
        augment: Augmentation that makes a view.
        read: Source of the images, as for `open_views`, and the share of the unlabelled ones that may be unreadable;
            labelled ones must be readable.

    Attributes:
        steps_per_epoch: Number of steps per epoch.
        total_steps: Number of steps of the run.
        suncet_steps: Number of steps with SuNCEt, from the first.
        labelled_steps: Number of steps in which labelled images pass through the network.

    Raises:
        UserError: There are fewer images or classes than a step takes, or the batch cannot be shared evenly.
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
        read: UnlabelledReadOptions,
    ) -> None:
        if batch_size % run.world_size:
            raise UserError(
                f"batch_size {batch_size} cannot be shared evenly by {run.world_size} processes; choose a multiple"
            )
        images, per_step = (labelled, suncet.batch_size) if unlabelled is None else (unlabelled, batch_size)
        num_images = 0 if images is None else len(images)
        if num_images < per_step:
            raise UserError(f"found {num_images} images, but a step takes {per_step}; lower batch_size or add images")
        self._device, self._batch_size, self._suncet, self._epochs = run.device, batch_size, suncet, epochs
        self.steps_per_epoch = num_images // per_step
        self.total_steps = epochs * self.steps_per_epoch
        self.suncet_steps = suncet.steps(epochs=epochs, steps_per_epoch=self.steps_per_epoch)
        self.labelled_steps = self.total_steps if suncet.code == "today" and labelled else self.suncet_steps
        self._pairs = self._few = None
        if unlabelled is not None:
            batches = Batches(
                num_images,
                batch_size=batch_size // run.world_size,
                seed=run.seed("order"),
                rank=run.rank,
                world_size=run.world_size,
                total_steps=self.total_steps,
            )
            readable = skip_bad(unlabelled, max_bad=read.max_bad, log=run.out / "bad_files.jsonl")
            pairs = Views(batches, seed=run.seed("views"))
            self._pairs = open_views(readable, pairs, augment, load=read.load, workers=run.options.workers)
        if labelled is not None:
            self._few = self._plan_labelled(run, labelled.labels(), suncet)
            self._labelled = open_views(labelled, self._few, augment, load=read.load, workers=run.options.workers)

    def batch(self, step: int) -> Batch:
        """Return the images of a step on the run's device."""
        pair = [] if self._pairs is None else self._pairs.batch(step, self._device)
        if self._few is None or step >= self._few.total_steps:
            return Batch(pair, [], torch.empty(0, dtype=torch.int64, device=self._device))
        classes = self._few.labels_at(step).to(self._device, non_blocking=True)
        return Batch(pair, self._labelled.batch(step, self._device), classes)

    def inputs(self, step: int) -> int:
        """Number of images that pass through the network in a step, over all processes, counting both views."""
        return 2 * self._batch_size + (self._suncet.batch_size if step < self.labelled_steps else 0)

    def inputs_until(self, step: int) -> int:
        """Number of images that passed through the network before a step, to match runs of equal compute."""
        return 2 * self._batch_size * step + self._suncet.batch_size * min(step, self.labelled_steps)

    @property
    def summary(self) -> str:
        """Describe a step in one line."""
        text = f"{self.total_steps} steps, images per step: {self.inputs(0)}"
        if self.labelled_steps:
            text += f" = 2 x {self._batch_size} + {self._suncet.batch_size} labelled"
        if 0 < self.labelled_steps < self.total_steps:
            text += f", from step {self.labelled_steps} on {self.inputs(self.labelled_steps)}"
        if self.labelled_steps and self._suncet.until_epoch is not None and self._suncet.until_epoch > self._epochs:
            text += f"; SuNCEt in all {self._epochs} epochs, because the run is shorter than suncet.until_epoch"
            text += f" ({self._suncet.until_epoch:g})"
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
