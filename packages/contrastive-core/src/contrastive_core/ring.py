"""What the other processes hold, one process after another: while one's part is used, the next is on its way.

The processes stand in a ring. In a hop everyone passes what it holds to its right neighbour, rank + 1, and takes what
its left neighbour held; after W - 1 hops everyone has seen the part of everyone, and never held more than two.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from contrastive_core.distributed import rank, world_size


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
