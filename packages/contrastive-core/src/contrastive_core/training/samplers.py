"""Batch samplers and a data loader whose order depends on seed and step alone.

Neither the number of workers nor an interruption changes which samples a step sees.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from multiprocessing import queues
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from contrastive_core.errors import UserError
from contrastive_core.rng import derive, permutation
from contrastive_core.training.crashes import forget_files


class Batches:
    """Sample indices of every step, reshuffled in each epoch, independent of the number of workers and of restarts.

    Step t belongs to epoch t // steps_per_epoch. The order of an epoch is permutation(derive(seed, "order", epoch), n);
    the global batch is the next batch_size * world_size of it, of which each process takes its own consecutive part, so
    that the union over processes does not depend on how many there are. What is left at the end of an epoch is dropped.

    Usable as the `batch_sampler` of a DataLoader; `at(step)` is the same for a loop that indexes tensors itself.

    Args:
        n: Number of samples.
        batch_size: Number of samples per step of one process.
        seed: Seed of the order.
        rank: Rank of this process, 0 <= rank < world_size.
        world_size: Number of processes.
        start_step: First step to yield.
        total_steps: Step to stop before.

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
                f"found {n} samples; one step needs {batch_size * world_size} (batch_size {batch_size} on {world_size} "
                "process(es)). Lower batch_size or add samples"
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
    """Number of earlier occurrences of the sample in the step's batch, over all processes: int64 [n]."""


class ClassBatches:
    """Sample indices of every step: some classes with equally many samples of each, as for SuNCEt.

    The steps go through the classes in a random order, `classes_per_batch` at a time, and then in a new one; classes
    that do not fill a last batch are left out of a round. Whenever a class comes up, it gives its next
    `samples_per_class` samples in a random order of its own, different ones within a step, until too few are left for
    another turn; then in a new order. A class with fewer samples than that repeats them within the step, and `copy`
    tells the repetitions apart, so that each can be augmented in its own way.

    Over several processes all take the same classes in the same order, and each its own consecutive part of the samples
    of every class: the union does not depend on how many processes there are. (The SuNCEt release gives every process a
    fixed part of each class's samples; here they are dealt out anew.)

    Args:
        labels: Class numbers int64 [N]; only their equality and order matter.
        classes_per_batch: Number of different classes in a step.
        samples_per_class: Number of samples of each, over all processes; a multiple of `world_size`.
        seed: Seed of classes and samples.
        rank: Rank of this process, 0 <= rank < world_size.
        world_size: Number of processes.

    Raises:
        UserError: There are fewer classes; fewer than two classes or samples of each, for there is nothing to tell
            apart or no positive then; samples that cannot be shared evenly.
        ValueError: A rank out of its range.

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
        found, number = torch.unique(labels, return_inverse=True)
        if not 2 <= classes_per_batch <= len(found):
            raise UserError(
                f"found labelled samples of {len(found)} classes, asked for batches of {classes_per_batch} classes; "
                f"expected at least 2 and no more than there are"
            )
        if samples_per_class < 2 or samples_per_class % world_size:
            raise UserError(
                f"asked for {samples_per_class} samples per class on {world_size} process(es); expected at least 2, so "
                "that every sample has a positive, and a multiple of the processes"
            )
        self.steps_per_round = len(found) // classes_per_batch
        self.batch_size = classes_per_batch * samples_per_class // world_size
        self._members = [torch.nonzero(number == c).flatten() for c in range(len(found))]
        self._classes, self._samples, self._seed = classes_per_batch, samples_per_class, seed
        share = samples_per_class // world_size
        self._own = slice(rank * share, (rank + 1) * share)

    def at(self, step: int) -> ClassBatch:
        """Return the samples of this process in `step`, class by class: [batch_size]."""
        turn, part = divmod(step, self.steps_per_round)
        order = permutation(derive(self._seed, "classes", turn), len(self._members))
        chosen = order[part * self._classes : (part + 1) * self._classes].tolist()
        samples, copies = zip(*(self._samples_of(number, turn) for number in chosen), strict=True)
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
    """Load the samples of `batches` in order, in `workers` processes (0: in this one).

    The dataset's items must be a function of their index alone; then the number of workers does not change the result.
    """
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        worker_init_fn=prepare_worker,
        # A separate generator, because the loader must not draw from the global one, which `steps` seeds.
        generator=torch.Generator().manual_seed(0),
    )


def prepare_worker(worker: int) -> None:
    """Set up a data loading process; for DataLoader's `worker_init_fn`.

    SIGINT and SIGTERM are left to the training process. A terminal, a batch system or `timeout` sends them to all
    processes of a job; a worker that died of one would take the training process with it before its checkpoint. The
    workers end when the training process does.

    A batch that cannot be passed on, because the shared memory is full, ends the process. Python would drop the batch
    after a message, and the training process would wait for it forever.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    queues.Queue._on_queue_feeder_error = staticmethod(_end_worker)  # type: ignore[attr-defined]


def _end_worker(error: BaseException, batch: object) -> None:
    forget_files()  # the thread that reads the next batch is not to blame
    os.write(2, f"a batch could not be passed to the training process: {error}\n".encode())
    os._exit(1)
