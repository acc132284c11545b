"""Gather rows from all processes with the gradient of the union batch, and pass them around a ring.

Every process computes the loss of its own anchors among the rows of all processes. A row receives gradient from the
anchors of every process, so the backward pass of the gather sums the incoming gradients over processes and takes the
local part. With the mean over processes that data-parallel training applies to parameter gradients, the result is the
gradient of the mean loss over the union batch. (`torch.distributed.all_gather` alone passes no gradient.)

Ring: in a hop every process sends what it holds to its right neighbour, rank + 1, and receives what its left neighbour
held; after W - 1 hops every process has seen the rows of all, and never held more than two parts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function


class Hop:
    """Tensors on their way to the right neighbour, and equally many of the same kind coming from the left one.

    It begins at once. Every process must make the same hops in the same order.

    Args:
        tensors: to be passed on; they must stay as they are until `arrived`.
        tag: tells hops apart that are under way at the same time.
    """

    def __init__(self, tensors: Sequence[Tensor], *, tag: int = 0) -> None:
        right, left = (rank() + 1) % world_size(), (rank() - 1) % world_size()
        self._going = [x.contiguous() for x in tensors]
        self._coming = [torch.empty_like(x) for x in self._going]
        # All at once: one by one, NCCL would wait for the first to be received before it sends the next.
        self._works = dist.batch_isend_irecv(
            [dist.P2POp(dist.isend, x, right, tag=tag) for x in self._going]
            + [dist.P2POp(dist.irecv, x, left, tag=tag) for x in self._coming]
        )

    def arrived(self) -> list[Tensor]:
        """What came, once it is here and what was sent is gone."""
        for work in self._works:
            work.wait()
        return self._coming


def visitors(*own: Tensor) -> Iterator[list[Tensor]]:
    """The tensors of the other processes, that of the left neighbour first; the next ones travel meanwhile.

    Every process must go through all of it, with tensors of the same shapes and types.
    """
    hop = Hop(own)
    for later in reversed(range(world_size() - 1)):
        here = hop.arrived()
        if later:
            hop = Hop(here)
        yield here


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
    returned. Linear, and differentiable any number of times in reverse and forward mode.

    Raises:
        ValueError: on every process, if they hold different numbers of rows, or rows of different size or type.

    >>> gather_rows(torch.ones(2, 3)).shape
    torch.Size([2, 3])
    """
    if world_size() == 1:
        return x
    gathered: Tensor = _gather(x) if torch.compiler.is_compiling() else _Gather.apply(x)
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


class _Gather(Function):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        rows: Tensor = _gather(x)
        return rows

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        del ctx, inputs, output  # linear: nothing to remember

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        own: Tensor = _GatherBackward.apply(grad)
        return own

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return gather_rows(tangent)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int], x: Tensor) -> tuple[Tensor, int]:
        return gather_rows(x.movedim(in_dims[0], -1)), -1


class _GatherBackward(Function):
    @staticmethod
    def forward(grad: Tensor) -> Tensor:
        own: Tensor = _gather_backward(grad)
        return own

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        del ctx, inputs, output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return gather_rows(grad)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        own: Tensor = _GatherBackward.apply(tangent)
        return own

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int], grad: Tensor) -> tuple[Tensor, int]:
        return _GatherBackward.apply(grad.movedim(in_dims[0], -1)), -1


# Operators inside those functions: torch.compile does not look for collectives in them.


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


def _differentiate_again(ctx: Any, grad: Tensor) -> Tensor:
    return gather_rows(grad)


_gather.register_autograd(_differentiate)
_gather_backward.register_autograd(_differentiate_again)


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
