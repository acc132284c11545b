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
        worker_init_fn=_quiet_worker,
        # A generator of its own: the loader must not draw from the global one, which the steps are seeded by.
        generator=torch.Generator().manual_seed(0),
    )


def _quiet_worker(worker: int) -> None:
    # Ctrl-C in a terminal reaches the workers too; the training process ends them when its step is complete.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
