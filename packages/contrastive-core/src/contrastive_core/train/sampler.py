"""Which samples each step sees: a function of seed and step, not of what happened before."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from contrastive_core.errors import UserError
from contrastive_core.random import derive, permutation


class Batches:
    """Sample indices of every step, shuffled anew in each epoch, the same whatever the number of workers or restarts.

    Step t belongs to epoch t // steps_per_epoch. The order of an epoch is permutation(derive(seed, "order", epoch), n);
    the global batch is the next batch_size * world_size of it, of which each process takes its own consecutive part, so
    that the union over processes does not depend on how many there are. What is left at the end of an epoch is dropped.

    Usable as the `batch_sampler` of a DataLoader; `at(step)` is the same for a loop that indexes tensors itself.

    Args:
        n: Number of samples.
        batch_size: Samples per step of one process.
        seed: Decides the order.
        rank: This process, 0 <= rank < world_size.
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
        """Indices [batch_size] int64 that this process takes in `step`."""
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
