"""Rows of all processes, with the gradient that the union of their batches has."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def is_distributed() -> bool:
    """Whether several processes work together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """This process's number, 0 if it is alone."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes, 1 if this one is alone."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather_rows(x: Tensor) -> Tensor:
    """Concatenate the rows of all processes in the order of their rank: ``[N, ...]`` -> ``[world_size * N, ...]``.

    The backward pass sums the gradient over processes and returns this process's rows, so that an embedding receives
    gradient from the anchors of every process. If each process takes the mean over its own anchors and gradients of
    parameters are averaged over processes (as DDP does), they equal those of one process with the union batch. SimCLR,
    tf2/objective.py. ``torch.distributed.all_gather`` has no gradient at all.

    Raises:
        ValueError: processes have different numbers of rows; raised on every process.
    """
    if not is_distributed():
        return x
    _check_even(x)
    gathered: Tensor = _GatherRows.apply(x)  # type: ignore[no-untyped-call]
    return gathered


def gather_labels(labels: Tensor) -> Tensor:
    """Concatenate the labels of all processes in the order of their rank: ``[N]`` -> ``[world_size * N]``."""
    if not is_distributed():
        return labels
    _check_even(labels)
    return _all_gather(labels)


def _check_even(x: Tensor) -> None:
    own = torch.tensor([len(x)], device=x.device)
    counts = [torch.empty_like(own) for _ in range(world_size())]
    dist.all_gather(counts, own)
    numbers = [int(count) for count in counts]
    if len(set(numbers)) > 1:
        listed = ", ".join(f"{count} on process {number}" for number, count in enumerate(numbers))
        raise ValueError(
            f"every process must have the same number of rows, got {listed}. The mean over processes would weigh the rows "
            "unevenly; drop the last incomplete batch (drop_last=True)"
        )


def _all_gather(x: Tensor) -> Tensor:
    parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world_size())]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts)


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _all_gather(x)

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.contiguous().clone()
        dist.all_reduce(grad)
        return grad.chunk(world_size())[rank()]
