"""Augmented views, batch by batch: from memory for small images, from loader workers for large ones.

Which images form a batch and how each is augmented is a function of the seed, the step, the image and the view alone;
the number of workers, or a restart in the middle, changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from contrastive_core.errors import UserError
from contrastive_core.rng import derive
from contrastive_core.training import Batches, ClassBatches, ignore_stop_signals
from ssl_vision.data import ImageSet, fits_in_memory, in_memory


def view_seed(seed: int, epoch: int, view: int) -> int:
    """The seed of all draws for one view in one epoch."""
    return derive(seed, "view", epoch, view)


class Draw(NamedTuple):
    """The images of a step and how they are augmented."""

    images: Tensor
    """Which images: int64 [B]."""
    ids: Tensor
    """What stands for each image in the draws: int64 [B]."""
    seeds: tuple[int, ...]
    """One for each view that is wanted of all of them."""


class Plan(Protocol):
    """What is drawn in each step."""

    total_steps: int

    def at(self, step: int) -> Draw:
        """The images of a step and how they are augmented."""


class Pairs:
    """Two views of every image of a batch, drawn anew in every epoch."""

    def __init__(self, batches: Batches, *, seed: int) -> None:
        self.batches, self.seed, self.total_steps = batches, seed, batches.total_steps

    def at(self, step: int) -> Draw:
        """See `Plan`."""
        index, epoch = self.batches.at(step), step // self.batches.steps_per_epoch
        return Draw(index, index, (view_seed(self.seed, epoch, 0), view_seed(self.seed, epoch, 1)))


class Labelled:
    """One view of every image of a class-stratified batch, drawn anew in every step, for an image that repeats too."""

    def __init__(self, batches: ClassBatches, labels: Tensor, *, seed: int, total_steps: int) -> None:
        self.batches, self.labels, self.seed, self.total_steps = batches, labels, seed, total_steps

    def at(self, step: int) -> Draw:
        """See `Plan`."""
        index, copy = self.batches.at(step)
        return Draw(index, index + copy * len(self.labels), (derive(self.seed, "labelled", step),))

    def labels_at(self, step: int) -> Tensor:
        """Class numbers int64 [B] of the images of a step."""
        return self.labels[self.batches.at(step).samples]


class Augment(Protocol):
    """What makes one view of each image: `SimCLRAugment`, `CropFlip`."""

    def __call__(self, images: Tensor | Sequence[Tensor], *, seed: int, ids: Tensor) -> Tensor:
        """float32 ``[B, 3, size, size]`` in [0, 1], a function of the image, its id and the seed."""


def open_views(
    images: ImageSet, plan: Plan, augment: Augment, *, load: Literal["auto", "memory", "files"], workers: int
) -> MemoryViews | LoadedViews:
    """The source of views: all images decoded once, or read again for every view; the views are the same."""
    if load == "memory" or (load == "auto" and fits_in_memory(images)):
        return MemoryViews(in_memory(images), plan, augment)
    return LoadedViews(images, plan, augment, workers=workers)


class MemoryViews:
    """Views of images that lie in memory as one uint8 tensor ``[N, 3, H, W]``; everything runs on whole batches."""

    def __init__(self, images: Tensor, plan: Plan, augment: Augment) -> None:
        self.images, self.plan, self.augment = images, plan, augment

    def batch(self, step: int, device: torch.device) -> list[Tensor]:
        """The views ``[B, 3, size, size]`` of this step."""
        images, ids, seeds = self.plan.at(step)
        pictures, ids = self.images[images].to(device, non_blocking=True), ids.to(device)
        return [_channels_last(self.augment(pictures, seed=seed, ids=ids)) for seed in seeds]


class LoadedViews:
    """Views of images read from files; each worker makes whole batches, images of any size side by side."""

    def __init__(self, images: ImageSet, plan: Plan, augment: Augment, *, workers: int) -> None:
        self.dataset = _Steps(images, plan, augment)
        self.workers = workers
        self._loader: Iterator[list[Tensor] | UserError] = iter(())
        self._next_step = -1

    def batch(self, step: int, device: torch.device) -> list[Tensor]:
        """The views ``[B, 3, size, size]`` of this step."""
        if step != self._next_step:
            loader = DataLoader(
                self.dataset,
                sampler=range(step, self.dataset.plan.total_steps),
                batch_size=None,  # an item is a batch
                collate_fn=_as_it_is,
                num_workers=self.workers,
                worker_init_fn=ignore_stop_signals,
                # Its own, for the loader must not draw from the global generator, which the steps are seeded by.
                generator=torch.Generator().manual_seed(0),
                pin_memory=device.type == "cuda",
            )
            self._loader = iter(loader)
        self._next_step = step + 1
        return [_channels_last(view.to(device, non_blocking=True)) for view in _good(next(self._loader))]


class _Steps(Dataset[list[Tensor] | UserError]):
    """The views of every step."""

    def __init__(self, images: ImageSet, plan: Plan, augment: Augment) -> None:
        self.images, self.plan, self.augment = images, plan, augment

    def __getitem__(self, step: int) -> list[Tensor] | UserError:
        images, ids, seeds = self.plan.at(step)
        try:
            pictures = [self.images.read(image) for image in images.tolist()]
        except UserError as error:
            return error  # raised in the training process: out of a worker it would come wrapped in a traceback
        return [self.augment(pictures, seed=seed, ids=ids) for seed in seeds]


def _good(views: list[Tensor] | UserError) -> list[Tensor]:
    if isinstance(views, UserError):
        raise views
    return views


def _channels_last(views: Tensor) -> Tensor:
    return views.contiguous(memory_format=torch.channels_last)


def _as_it_is(batch: Any) -> Any:
    return batch
