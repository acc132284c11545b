"""Exchange rows between processes, by a gather with the gradient of the union batch or around a ring.

Each process computes the loss of its own anchors against the rows of all processes. A row receives gradients from the
anchors of every process, so the backward pass of the gather sums the incoming gradients over processes and returns the
local part. Data-parallel training averages parameter gradients over processes; the result is then the gradient of the
mean loss over the union batch. (`torch.distributed.all_gather` alone propagates no gradient.)

In each hop around the ring, a process sends the rows it currently holds to its right neighbour, rank + 1, and receives
those of its left neighbour. After W - 1 hops each process has seen the rows of all W processes. Besides its own rows,
it never holds those of more than two others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function

Gather = bool | Literal["all", "ring"]
"""Exchange of rows between processes: False for none, True to choose by size, or the method "all" or "ring"."""

RING_FROM = 2**26
"""Size in bytes of all processes' rows from which `gather=True` uses the ring."""


def is_distributed() -> bool:
    """Return whether this process belongs to a process group."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Return the rank of this process, 0 without a process group."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """Return the number of processes, 1 without a process group."""
    return dist.get_world_size() if is_distributed() else 1


def gather_rows(x: Tensor) -> Tensor:
    """Concatenate the rows of all W processes in rank order, with gradient: [n, ...] -> [W n, ...].

    The backward pass sums the gradient of the result over processes and returns to each process the part that belongs
    to its own rows. Every process must call this function with the same number of rows, and all must run the backward
    pass if one does. With a single process, x itself is returned. The function is linear, and differentiable any number
    of times in reverse and forward mode.

    Raises:
        ValueError: The processes hold different numbers of rows, or rows of different size or type (raised on each).

    >>> gather_rows(torch.ones(2, 3)).shape
    torch.Size([2, 3])
    """
    if world_size() == 1:
        return x
    rows: Tensor = _gather(x) if torch.compiler.is_compiling() else _Gather.apply(x)
    return rows


def gather_labels(y: Tensor) -> Tensor:
    """Concatenate the labels of all processes as :func:`gather_rows` does, without gradient: [n] -> [W n]."""
    return gather_rows(y.detach())


def how_to_gather(name: str, gather: Gather, rows: Tensor) -> Literal["alone", "all", "ring"]:
    """Choose how processes exchange rows: not at all ("alone"), by a gather ("all"), or around a ring ("ring").

    "all" and "ring" give the same values and gradients. With the ring, a process holds the rows of three processes
    instead of those of all, but its matrix products are smaller. `gather=True` therefore selects the ring only if the
    rows of all processes take at least `RING_FROM` bytes.

    Args:
        name: Name of the loss, for error messages.
        gather: Setting of the loss.
        rows: Rows [n, D] of this process.

    Raises:
        ValueError: `gather` is not one of False, True, "all" and "ring".
    """
    if gather not in (False, True, "all", "ring"):
        raise ValueError(f'{name}: gather is {gather!r}, expected False, True, "all" or "ring"')
    if not gather or world_size() == 1:
        return "alone"
    if gather is True:
        return "ring" if world_size() * rows.numel() * rows.element_size() >= RING_FROM else "all"
    return gather


def split_own(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Split the result of :func:`gather_rows` into the rows of this process and those of the others, in rank order."""
    own, size = rank(), len(rows) // world_size()
    return rows[own * size : (own + 1) * size], torch.cat([rows[: own * size], rows[(own + 1) * size :]])


def visitors(*own: Tensor) -> Iterator[list[Tensor]]:
    """Yield the tensors of each other process around the ring, beginning with those of the left neighbour.

    The tensors of the next process are transferred in the meantime. Every process must exhaust the iterator, with
    tensors of the same shapes and types.
    """
    hop = Hop(own)
    for later in reversed(range(world_size() - 1)):
        here = hop.wait()
        if later:
            hop = Hop(here)
        yield here


class Hop:
    """Asynchronous transfer of tensors to the right neighbour and of tensors of the same shapes from the left one.

    The transfer starts on construction. Every process must make the same hops in the same order.

    Args:
        tensors: Tensors to send; they must not be modified before `wait` returns.
        tag: Number that distinguishes hops in progress at the same time.
    """

    def __init__(self, tensors: Sequence[Tensor], *, tag: int = 0) -> None:
        right, left = (rank() + 1) % world_size(), (rank() - 1) % world_size()
        self._outgoing = [x.contiguous() for x in tensors]
        self._incoming = [torch.empty_like(x) for x in self._outgoing]
        # One batch: with separate calls, NCCL would wait for the first tensor to be received before sending the next.
        self._works = dist.batch_isend_irecv(
            [dist.P2POp(dist.isend, x, right, tag=tag) for x in self._outgoing]
            + [dist.P2POp(dist.irecv, x, left, tag=tag) for x in self._incoming]
        )

    def wait(self) -> list[Tensor]:
        """Wait until both transfers are complete and return the received tensors."""
        for work in self._works:
            work.wait()
        return self._incoming


def refuse_unequal(x: Tensor) -> None:
    """Check that the tensors of all processes have the same shape and type.

    A gather of unequal tensors would wait forever or read out of bounds.

    Raises:
        ValueError: The processes hold different numbers of rows, or rows of different size or type (raised on each).
    """
    descriptor = torch.tensor([len(x), math.prod(x.shape[1:]), _DTYPES.index(x.dtype)], device=x.device)
    parts = _one_per_process(descriptor)
    dist.all_gather(parts, descriptor)
    rows, sizes, dtypes = torch.stack(parts).T.tolist()
    if len(set(rows)) > 1:
        counts = ", ".join(f"rank {number}: {count}" for number, count in enumerate(rows))
        raise ValueError(
            f"gather: the processes hold different numbers of rows ({counts}), expected the same on each: "
            "otherwise means over processes would weight rows unequally; drop the uneven last batch (drop_last=True, "
            "and a sampler that gives every process the same number of samples)"
        )
    if len(set(sizes)) > 1 or len(set(dtypes)) > 1:
        shapes = ", ".join(
            f"rank {i}: {size} x {_DTYPES[d]}" for i, (size, d) in enumerate(zip(sizes, dtypes, strict=True))
        )
        raise ValueError(
            f"gather: the processes hold rows of different sizes or types ({shapes}), expected the same on each"
        )


class _Gather(Function):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        rows: Tensor = _gather(x)
        return rows

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        del ctx, inputs, output  # linear: nothing to save

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


# Collectives are wrapped in custom operators, which torch.compile does not trace into.


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
