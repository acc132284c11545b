"""Batch samplers and a data loader whose order depends only on seed and step.

Neither the number of workers nor an interruption changes the samples of a step.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from multiprocessing import queues
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from contrastive_core.errors import UserError
from contrastive_core.rng import derive, permutation
from contrastive_core.training.ahead import compute_ahead
from contrastive_core.training.crashes import forget_files


class Batches:
    """Batch sampler that reshuffles in each epoch, independently of the number of workers and of restarts.

    Step t belongs to epoch t // steps_per_epoch. The order of an epoch is permutation(derive(seed, "order", epoch), n).
    A global batch is the next batch_size * world_size indices, of which each process takes a consecutive part, so that
    the union over processes does not depend on their number. Indices that do not fill a batch at the end of an epoch
    are dropped.

    Pass an instance as the `batch_sampler` of a DataLoader, or call `at(step)` in a loop that indexes tensors itself.
    One iteration covers all epochs of the run; another one starts at `start_step` again, with the same order.

    Args:
        n: Number of samples.
        batch_size: Number of samples per step of one process.
        seed: Seed of the order.
        rank: Rank of this process, 0 <= rank < world_size.
        world_size: Number of processes.
        start_step: First step to yield.
        total_steps: Number of steps of the whole run; iteration stops before this step.

    Raises:
        UserError: There are fewer samples than one global batch.
        ValueError: A number is out of its range.
    """

    def __init__(
        self,
        n: int,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        start_step: int = 0,
        total_steps: int,
    ) -> None:
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}; expected at least 1")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank is {rank}; expected 0 <= rank < world_size = {world_size}")
        if not 0 <= start_step <= total_steps:
            raise ValueError(f"start_step is {start_step}; expected 0 <= start_step <= total_steps = {total_steps}")
        if n < batch_size * world_size:
            raise UserError(
                f"found {n} samples, but one step needs {batch_size * world_size} (batch_size {batch_size} on "
                f"{world_size} process(es)). Lower batch_size or add samples"
            )
        self.batch_size = batch_size
        self.steps_per_epoch = n // (batch_size * world_size)
        self.start_step = start_step
        self.total_steps = total_steps
        self._n, self._seed, self._rank, self._world_size = n, seed, rank, world_size
        self._epoch = -1
        self._order = torch.empty(0, dtype=torch.int64)

    def at(self, step: int) -> Tensor:
        """Return the indices int64 [batch_size] of this process in `step`."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, permutation(derive(self._seed, "order", epoch), self._n)
        first = (batch * self._world_size + self._rank) * self.batch_size
        return self._order[first : first + self.batch_size]

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.start_step, self.total_steps):
            yield self.at(step).tolist()

    def __len__(self) -> int:
        return self.total_steps - self.start_step


class ClassBatch(NamedTuple):
    """Samples of one process in one step."""

    samples: Tensor
    """Indices of the samples: int64 [n]."""
    copy: Tensor
    """Number of earlier occurrences of the sample in the batch over all processes: int64 [n]."""


class ClassBatches:
    """Class-balanced batch sampler: each step has the same number of samples of each of several classes, as in SuNCEt.

    A round visits the classes in random order, `classes_per_batch` per step; classes that do not fill a last batch are
    omitted, and the next round has a new order. In each step, a class contributes its next `samples_per_class` samples
    in a separate random order. When fewer samples than that remain, the class is reshuffled. A class with fewer
    samples in total repeats them within the step; `copy` distinguishes the repetitions, so that each can be augmented
    differently.

    With several processes, all take the same classes in the same order, and each takes a consecutive part of the
    samples of every class, so that the union does not depend on the number of processes. (The released code of SuNCEt
    assigns a fixed part of each class's samples to every process; here the assignment changes with each reshuffling.)

    Args:
        labels: Class numbers int64 [N]; only their equality and order matter.
        classes_per_batch: Number of different classes in a step.
        samples_per_class: Number of samples of each class over all processes; a multiple of `world_size`.
        seed: Seed of classes and samples.
        rank: Rank of this process, 0 <= rank < world_size.
        world_size: Number of processes.

    Raises:
        UserError: `classes_per_batch` is below 2 or exceeds the number of classes, or `samples_per_class` is below 2 or
            not a multiple of `world_size`.
        ValueError: The rank is out of its range.

    Reference: Assran et al. 2020, "Supervision Accelerates Pre-training in Contrastive Semi-Supervised Learning of
    Visual Representations", and the sampler of its released code.

    >>> batches = ClassBatches(torch.tensor([3, 3, 3, 5, 5, 7, 7]), classes_per_batch=2, samples_per_class=2, seed=0)
    >>> batches.at(0).samples.tolist(), batches.steps_per_round
    ([1, 2, 6, 5], 1)
    """

    def __init__(
        self,
        labels: Tensor,
        *,
        classes_per_batch: int,
        samples_per_class: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank is {rank}; expected 0 <= rank < world_size = {world_size}")
        classes, number = torch.unique(labels, return_inverse=True)
        if not 2 <= classes_per_batch <= len(classes):
            raise UserError(
                f"found labelled samples of {len(classes)} classes, but batches of {classes_per_batch} classes were "
                f"requested; expected at least 2 and at most {len(classes)} classes per batch"
            )
        if samples_per_class < 2 or samples_per_class % world_size:
            raise UserError(
                f"{samples_per_class} samples per class were requested on {world_size} process(es); expected at least "
                "2, so that every sample has a positive, and a multiple of the number of processes"
            )
        self.steps_per_round = len(classes) // classes_per_batch
        self.batch_size = classes_per_batch * samples_per_class // world_size
        self._members = [torch.nonzero(number == c).flatten() for c in range(len(classes))]
        self._classes, self._samples, self._seed = classes_per_batch, samples_per_class, seed
        share = samples_per_class // world_size
        self._own = slice(rank * share, (rank + 1) * share)

    def at(self, step: int) -> ClassBatch:
        """Return the samples [batch_size] of this process in `step`, ordered by class."""
        turn, part = divmod(step, self.steps_per_round)
        order = permutation(derive(self._seed, "classes", turn), len(self._members))
        classes = order[part * self._classes : (part + 1) * self._classes].tolist()
        samples, copies = zip(*(self._samples_of(number, turn) for number in classes), strict=True)
        return ClassBatch(torch.cat(samples), torch.cat(copies))

    def _samples_of(self, number: int, turn: int) -> tuple[Tensor, Tensor]:
        members = self._members[number]
        turns, first = len(members) // self._samples, 0
        if turns:
            pass_, place = divmod(turn, turns)
            first = place * self._samples
        else:
            pass_ = turn
        position = torch.arange(first, first + self._samples)[self._own]
        order = permutation(derive(self._seed, "samples", number, pass_), len(members))
        return members[order[position % len(members)]], position // len(members)


def make_loader(
    dataset: Dataset[Any],
    batches: Batches,
    *,
    workers: int = 0,
    pin_memory: bool = False,
    collate: Callable[[list[Any]], Any] | None = None,
) -> DataLoader[Any]:
    """Build a data loader that loads the samples of `batches` in order.

    The result does not depend on the number of workers if each item of the dataset depends only on its index.

    Args:
        dataset: Dataset to load from.
        batches: Batch sampler.
        workers: Number of data loading processes; 0 loads in the calling process.
        pin_memory: Whether to copy batches to pinned memory, as in DataLoader.
        collate: Function that merges samples to a batch, as `collate_fn` in DataLoader.
    """
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        worker_init_fn=prepare_worker,
        # The loader must not draw from the global generator, which `steps` seeds.
        generator=torch.Generator().manual_seed(0),
    )


T = TypeVar("T")


class StepLoader(Generic[T]):
    """Load the batches of a run, from any step on, while the calling thread trains.

    Args:
        dataset: Dataset whose item `step` is the batch of that step, or a `UserError`, which is raised here, because an
            error that is raised in a worker would be wrapped in a traceback.
        total_steps: Number of steps of the run.
        workers: Number of data loading processes; 0 loads in a thread of the calling process, one batch ahead.
        timeout: Seconds to wait for a batch of another process; 0 for no limit.
    """

    def __init__(
        self, dataset: Dataset[T | UserError], *, total_steps: int, workers: int, timeout: float = 0.0
    ) -> None:
        self._dataset, self._total, self._workers, self._timeout = dataset, total_steps, workers, timeout
        self._batches: Iterator[T] = iter(())
        self._next_step = -1

    def at(self, step: int, *, pin_memory: bool) -> Iterator[T]:
        """Return the batches from a step on, of which the caller takes the first.

        Loading starts again if the step is not the one after that of the previous call.
        """
        if step != self._next_step:
            loader: DataLoader[T | UserError] = DataLoader(
                self._dataset,
                sampler=range(step, self._total),
                batch_size=None,  # an item is a batch
                collate_fn=keep_item,
                num_workers=self._workers,
                timeout=self._timeout if self._workers else 0,
                worker_init_fn=prepare_worker,
                # The loader must not draw from the global generator, which `steps` seeds.
                generator=torch.Generator().manual_seed(0),
                pin_memory=pin_memory,
            )
            batches = iter(loader)
            ahead = compute_ahead(lambda _: next(batches), range(step, self._total))
            self._batches = map(_without_error, batches if self._workers else ahead)
        self._next_step = step + 1
        return self._batches


def _without_error(item: T | UserError) -> T:
    if isinstance(item, UserError):
        raise item
    return item


def keep_item(item: T) -> T:
    """Return the item of a dataset unchanged; pass this function as `collate_fn` if an item is a whole batch."""
    return item


def prepare_worker(worker: int) -> None:
    """Set up a data loading process; pass this function as `worker_init_fn` of a DataLoader.

    The process ignores SIGINT and SIGTERM, which the training process handles. A terminal, a batch system or `timeout`
    sends them to all processes of a job, and a worker that ended would also end the training process before its
    checkpoint. The workers end with the training process.

    A batch that cannot be passed to the training process, because the shared memory is full, ends the worker. Python
    would only print a message and drop the batch, and the training process would wait for it forever.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    queues.Queue._on_queue_feeder_error = staticmethod(_end_worker)  # type: ignore[attr-defined]


def _end_worker(error: BaseException, batch: object) -> None:
    forget_files()  # the file that another thread is reading has not caused this
    os.write(2, f"a batch could not be passed to the training process: {error}\n".encode())
    os._exit(1)
