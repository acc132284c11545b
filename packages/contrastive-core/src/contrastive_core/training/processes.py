"""Exchange small messages between the processes of a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import torch
from torch import Tensor
from torch import distributed as dist

from contrastive_core.errors import UserError

T = TypeVar("T")


class Processes:
    """Communication of small messages between processes, over gloo on the CPU whatever the backend of the gradients.

    Messages use a separate process group, because a vote may be pending while the collectives of the training loop run.

    Args:
        rank: Rank of this process.
        world_size: Number of processes.
    """

    def __init__(self, *, rank: int, world_size: int) -> None:
        self.rank, self.world_size = rank, world_size
        self._group: dist.ProcessGroup | None = None
        if world_size > 1:
            self._group = cast(dist.ProcessGroup, dist.new_group(backend="gloo"))
        self._vote: tuple[Tensor, dist.Work | None] | None = None

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes in rank order."""
        if self._group is None:
            return [value]
        values: list[T | None] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self._group)
        return values  # type: ignore[return-value]

    def on_main(self, action: Callable[[], T]) -> T:
        """Call a function on process 0 and return its result, or raise its UserError, on every process."""
        if self._group is None:
            return action()
        outcome: list[tuple[T | None, str | None]] = [(None, "process 0 failed, so this process also stops")]
        if self.rank == 0:
            try:
                outcome = [(action(), None)]
            except UserError as error:
                outcome = [(None, str(error))]
                raise
            finally:  # report any failure to the other processes, which would wait forever otherwise
                dist.broadcast_object_list(outcome, group=self._group)
        else:
            dist.broadcast_object_list(outcome, group=self._group)
        result, problem = outcome[0]
        if problem is not None:
            raise UserError(problem)
        return result  # type: ignore[return-value]

    def vote(self, value: int, *, final: bool = False) -> int:
        """Return the largest `value` that any process passed to the previous call or, with `final`, to this call.

        Processes do not wait for each other: the vote of one step is counted after the next step. All processes get the
        same result in the same step.
        """
        if self._group is None:
            return value
        result = self._count()
        ballot = torch.tensor([value], dtype=torch.int32)
        self._vote = ballot, dist.all_reduce(ballot, dist.ReduceOp.MAX, group=self._group, async_op=True)
        return max(result, self._count()) if final else result

    def wait(self) -> None:
        """Wait for all processes."""
        if self._group is not None:
            self._count()
            dist.barrier(group=self._group)

    def close(self) -> None:
        """Destroy the process group and its threads after all messages have arrived.

        A thread that still holds the tensor of a message when Python ends would abort the process, because freeing the
        tensor requires the interpreter.
        """
        if self._group is not None:
            self._count()
            group, self._group = self._group, None
            dist.destroy_process_group(group)

    def _count(self) -> int:
        if self._vote is None:
            return 0
        ballot, work = self._vote
        self._vote = None
        if work is not None:
            work.wait()
        return int(ballot.item())
