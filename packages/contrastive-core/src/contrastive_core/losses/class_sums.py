"""Sums over classes whose rows are spread over processes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from contrastive_core.distributed import refuse_unequal
from contrastive_core.ring import visitors


def class_sums(rows: Tensor, labels: Tensor) -> Tensor:
    """For each of this process's rows, the sum of the rows of its class on all processes, itself included.

    The rows of the others pass by in a ring: memory O(n D). The matrix A_ij = [y_i = y_j] that this multiplies with is
    symmetric, so the gradient is the same sum of gradients. Every process must call it, and all must run the backward
    pass if one does.

    Args:
        rows: [n, D] of this process.
        labels: integers [n].

    Returns:
        [n, D].

    Raises:
        ValueError: on every process, if they hold different numbers of rows, or rows of different size or type.
    """
    out: Tensor = _class_sums(rows, labels)
    return out


@torch.library.custom_op("contrastive_core::class_sums", mutates_args=())
def _class_sums(rows: Tensor, labels: Tensor) -> Tensor:
    refuse_unequal(rows)
    ordered = labels.sort().values
    sums = torch.zeros_like(rows, memory_format=torch.contiguous_format)

    def add(rows: Tensor, labels: Tensor) -> None:
        place = torch.searchsorted(ordered, labels).clamp(max=len(ordered) - 1)
        known = ordered[place] == labels
        sums.index_add_(0, place, torch.where(known[:, None], rows, 0.0))

    if len(rows):
        add(rows, labels)
        for block in visitors(rows, labels):
            add(*block)
    return sums[torch.searchsorted(ordered, labels)]


@_class_sums.register_fake
def _(rows: Tensor, labels: Tensor) -> Tensor:
    return torch.empty_like(rows, memory_format=torch.contiguous_format)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    (labels,) = ctx.saved_tensors
    return class_sums(grad, labels), None


_class_sums.register_autograd(_differentiate, setup_context=_save)
