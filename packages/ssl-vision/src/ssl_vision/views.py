"""Pairs of augmented views, batch by batch: from memory for small images, from loader workers for large ones.

Which images form a batch and how each is augmented is a function of the seed, the step, the image and the view alone;
the number of workers, or a restart in the middle, changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from contrastive_core.errors import UserError
from contrastive_core.random import derive
from contrastive_core.train import Batches, ignore_stop_signals
from ssl_vision.augment import SimCLRAugment
from ssl_vision.data import ImageSet, fits_in_memory, in_memory


def view_seed(seed: int, epoch: int, view: int) -> int:
    """The seed of all draws for one view in one epoch."""
    return derive(seed, "view", epoch, view)


def open_views(
    images: ImageSet,
    batches: Batches,
    augment: SimCLRAugment,
    *,
    seed: int,
    load: Literal["auto", "memory", "files"],
    workers: int,
) -> MemoryViews | LoadedViews:
    """The source of views: all images decoded once, or read again for every view; the views are the same."""
    if load == "memory" or (load == "auto" and fits_in_memory(images)):
        return MemoryViews(in_memory(images), batches, augment, seed=seed)
    return LoadedViews(images, batches, augment, seed=seed, workers=workers)


class MemoryViews:
    """Views of images that lie in memory as one uint8 tensor ``[N, 3, H, W]``; everything runs on whole batches."""

    def __init__(self, images: Tensor, batches: Batches, augment: SimCLRAugment, *, seed: int) -> None:
        self.images, self.batches, self.augment, self.seed = images, batches, augment, seed

    def batch(self, step: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Views a and b ``[B, 3, size, size]`` of the images of this step."""
        ids = self.batches.at(step)
        epoch = step // self.batches.steps_per_epoch
        pictures = self.images[ids].to(device, non_blocking=True)
        ids = ids.to(device)
        view_a, view_b = (
            self.augment(pictures, seed=view_seed(self.seed, epoch, view), ids=ids).contiguous(
                memory_format=torch.channels_last
            )
            for view in (0, 1)
        )
        return view_a, view_b


class LoadedViews:
    """Views of images read from files; each worker makes whole batches, images of any size side by side."""

    def __init__(self, images: ImageSet, batches: Batches, augment: SimCLRAugment, *, seed: int, workers: int) -> None:
        self.dataset = _Views(images, augment, seed)
        self.batches, self.workers = batches, workers
        self._loader: Iterator[tuple[Tensor, Tensor] | UserError] = iter(())
        self._next_step = -1

    def batch(self, step: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Views a and b ``[B, 3, size, size]`` of the images of this step."""
        if step != self._next_step:
            loader = DataLoader(
                self.dataset,
                batch_sampler=_Keys(self.batches, step),
                collate_fn=_as_it_is,
                num_workers=self.workers,
                worker_init_fn=ignore_stop_signals,
                # Its own, for the loader must not draw from the global generator, which the steps are seeded by.
                generator=torch.Generator().manual_seed(0),
                pin_memory=device.type == "cuda",
            )
            self._loader = iter(loader)
        self._next_step = step + 1
        view_a, view_b = (
            view.to(device, non_blocking=True).contiguous(memory_format=torch.channels_last)
            for view in _good(next(self._loader))
        )
        return view_a, view_b


class _Keys:
    """For every step from a first one: the (epoch, image) pairs of its batch."""

    def __init__(self, batches: Batches, first: int) -> None:
        self.batches, self.first = batches, first

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in range(self.first, self.batches.total_steps):
            epoch = step // self.batches.steps_per_epoch
            yield [(epoch, image) for image in self.batches.at(step).tolist()]

    def __len__(self) -> int:
        return self.batches.total_steps - self.first


class _Views(Dataset[tuple[Tensor, Tensor]]):
    """A batch of (epoch, image) -> the two views of all of them."""

    def __init__(self, images: ImageSet, augment: SimCLRAugment, seed: int) -> None:
        self.images, self.augment, self.seed = images, augment, seed

    def __getitems__(self, keys: list[tuple[int, int]]) -> tuple[Tensor, Tensor] | UserError:
        epoch = keys[0][0]
        ids = torch.tensor([image for _, image in keys])
        try:
            pictures = [self.images.read(image) for _, image in keys]
        except UserError as error:
            return error  # raised in the training process: out of a worker it would come wrapped in a traceback
        view_a, view_b = (self.augment(pictures, seed=view_seed(self.seed, epoch, view), ids=ids) for view in (0, 1))
        return view_a, view_b


def _good(batch: tuple[Tensor, Tensor] | UserError) -> tuple[Tensor, Tensor]:
    if isinstance(batch, UserError):
        raise batch
    return batch


def _as_it_is(batch: Any) -> Any:
    return batch
