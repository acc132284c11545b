"""Rows of all processes, with a gradient that equals that of one process holding the union of the batches.

Every process computes the loss of its own anchors among the rows of all. A row receives gradient from the anchors of
every process, so the backward pass of the gather sums the incoming gradients over processes and takes the local part.
With the mean over processes that data-parallel training applies to parameter gradients, the result is the gradient of
the mean loss over the union batch. (`torch.distributed.all_gather` alone passes no gradient.)
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

Gather = bool | Literal["all", "ring"]
"""How the rows of other processes reach this one: not; whichever way suits their size; or as said."""

RING_FROM = 2**26
"""Bytes of all processes' rows from which `gather=True` lets them pass by in a ring instead of gathering them."""


def is_distributed() -> bool:
    """Whether this process is one of a process group."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Number of this process, 0 when it is alone."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """Number of processes, 1 when this one is alone."""
    return dist.get_world_size() if is_distributed() else 1


def gather_rows(x: Tensor) -> Tensor:
    """Rows of all processes in the order of their ranks: [n, ...] on each of W -> [W n, ...], with gradient.

    Backwards the gradient of the result is summed over processes, and each takes the part of its rows. Every process
    must call this, with the same number of rows, and all must run the backward pass if one does. Alone, x itself is
    returned. No second derivative.

    Raises:
        ValueError: on every process, if they hold different numbers of rows, or rows of different size or type.

    >>> gather_rows(torch.ones(2, 3)).shape
    torch.Size([2, 3])
    """
    if world_size() == 1:
        return x
    gathered: Tensor = _gather(x)
    return gathered


def gather_labels(y: Tensor) -> Tensor:
    """As :func:`gather_rows`, without gradient: [n] -> [W n]."""
    return gather_rows(y.detach())


def how_to_gather(name: str, gather: Gather, rows: Tensor) -> Literal["alone", "all", "ring"]:
    """Whether rows of other processes count, and how they come: gathered by all, or passing by in a ring.

    Both give the same values and gradients. The ring holds the rows of three processes instead of those of all; its
    products are smaller, so it begins where memory matters: `RING_FROM`.

    Raises:
        ValueError: gather is none of False, True, "all" and "ring".
    """
    if gather not in (False, True, "all", "ring"):
        raise ValueError(f'{name}: gather is {gather!r}, expected False, True, "all" or "ring"')
    if not gather or world_size() == 1:
        return "alone"
    if gather is True:
        return "ring" if world_size() * rows.numel() * rows.element_size() >= RING_FROM else "all"
    return gather


def split_own(gathered: Tensor) -> tuple[Tensor, Tensor]:
    """Parts a tensor from :func:`gather_rows` into this process's rows and those of the others, in order."""
    own, size = rank(), len(gathered) // world_size()
    return gathered[own * size : (own + 1) * size], torch.cat([gathered[: own * size], gathered[(own + 1) * size :]])


# Operators rather than an autograd function: torch.compile does not look for collectives inside them.


@torch.library.custom_op("contrastive_core::gather", mutates_args=())
def _gather(x: Tensor) -> Tensor:
    refuse_unequal(x)
    parts = _one_per_process(x)
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts)


@torch.library.custom_op("contrastive_core::gather_backward", mutates_args=())
def _gather_backward(grad: Tensor) -> Tensor:
    total = grad.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total.chunk(world_size())[rank()].clone()


@_gather.register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty(world_size() * x.shape[0], *x.shape[1:])


@_gather_backward.register_fake
def _(grad: Tensor) -> Tensor:
    return grad.new_empty(grad.shape[0] // world_size(), *grad.shape[1:])


def _differentiate(ctx: Any, grad: Tensor) -> Tensor:
    own: Tensor = _gather_backward(grad)
    return own


_gather.register_autograd(_differentiate)


def _one_per_process(x: Tensor) -> list[Tensor]:
    return [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world_size())]


_DTYPES = tuple(sorted({value for value in vars(torch).values() if isinstance(value, torch.dtype)}, key=str))


def refuse_unequal(x: Tensor) -> None:
    """Compares shapes over processes first: a gather of unequal tensors would hang or read beyond them.

    Raises:
        ValueError: on every process, if they hold different numbers of rows, or rows of different size or type.
    """
    mine = torch.tensor([len(x), math.prod(x.shape[1:]), _DTYPES.index(x.dtype)], device=x.device)
    parts = _one_per_process(mine)
    dist.all_gather(parts, mine)
    rows, sizes, dtypes = torch.stack(parts).T.tolist()
    if len(set(rows)) > 1:
        counts = ", ".join(f"rank {number}: {count}" for number, count in enumerate(rows))
        raise ValueError(
            f"gather: the processes hold different numbers of rows ({counts}), expected the same on each, or means "
            "over processes would weigh rows unequally; drop the uneven last batch (drop_last=True, and a sampler "
            "that gives every process equally many samples)"
        )
    if len(set(sizes)) > 1 or len(set(dtypes)) > 1:
        found = ", ".join(
            f"rank {i}: {size} x {_DTYPES[d]}" for i, (size, d) in enumerate(zip(sizes, dtypes, strict=True))
        )
        raise ValueError(f"gather: the processes hold rows of different kinds ({found}), expected the same on each")
