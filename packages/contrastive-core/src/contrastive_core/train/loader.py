"""A DataLoader over `Batches` whose workers do not decide anything."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from contrastive_core.train.sampler import Batches


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
        worker_init_fn=ignore_stop_signals,
        # A generator of its own: the loader must not draw from the global one, which the steps are seeded by.
        generator=torch.Generator().manual_seed(0),
    )


def ignore_stop_signals(worker: int) -> None:
    """For DataLoader's `worker_init_fn`: leave SIGINT and SIGTERM to the training process.

    A terminal, a batch system or `timeout` sends them to all processes of a job; a worker that died of one would take
    the training process with it before its checkpoint. The workers end when the training process does.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
