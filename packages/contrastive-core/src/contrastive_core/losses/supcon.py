"""SupCon, the supervised contrastive loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from contrastive_core.distributed import Gather, gather_rows, how_to_gather, refuse_unequal, split_own, visitors
from contrastive_core.losses._inputs import (
    LossModule,
    Positives,
    Temperature,
    Way,
    are_half,
    check_at_least_two,
    check_ignore_index,
    check_learned_temperature,
    check_rows,
    class_numbers,
    find_positives,
    lse_among_all,
    result_dtype,
    tensors_first,
    unit_rows,
    working_dtype,
)
from contrastive_core.similarity.autograd import Looped, differentiable_once, remember
from contrastive_core.similarity.precision import exact_dtype


@tensors_first
def supcon(
    z: Tensor,
    labels: Tensor,
    *,
    temperature: float | Tensor = 0.1,
    ignore_index: int | None = None,
    gather: Gather = False,
) -> Tensor:
    """Compute the supervised contrastive loss (SupCon) with the mean over positives outside the logarithm.

        loss = mean over anchors i of   mean over positives p of i of   -log( exp(s_ip) / sum_{j != i} exp(s_ij) ),
        s_ij = cos(z_i, z_j) / temperature,   positives: the other samples of i's class

    This is the "out" form of the paper. The mean over positives is linear in s and requires only class sums, no mask.
    The loss takes O(N D) memory and the time of two matrix products N x N x D. It is computed in float32 or better
    regardless of autocast, and in float64 below temperature 0.1.

    With two views of every sample, stack them and repeat the labels: `supcon(torch.cat([a, b]), labels.repeat(2))`.

    Args:
        z: Embeddings [N, D], l2-normalised here.
        labels: Class numbers [N], integers from 0 in any order.
        temperature: Positive number, or a tensor with one element to learn it (the host reads it in every call);
            0.07 to 0.1 in the paper.
        ignore_index: Label of unlabelled samples, usually -1. They are neither anchors nor positives, but remain
            candidates: the paper's denominator runs over all other samples of the batch, and most unlabelled samples
            are of another class. NaN in one of these rows therefore gives NaN; leave such rows out of the batch.
        gather: Whether the candidates are the samples of all processes; the anchors are those of this process. With
            parameter gradients averaged over processes, this is the loss of the union batch. "all" and "ring" select
            how rows are exchanged (see `how_to_gather`).

    Returns:
        Scalar, at least the mean of log(number of positives); float64 if z is float64, else float32. A row of zeros has
        similarity 0 with every row and no gradient; NaN embeddings give NaN, those of unlabelled samples included.

    Raises:
        ValueError: Shapes are wrong, there are fewer than two samples, the temperature is not positive and finite, or
            a label other than ignore_index is negative; with `gather`, the number of samples differs between processes
            (raised on each).
        TypeError: Embeddings are not floating point, labels are not integers, or the temperature is not a number.

    Note:
        An anchor that is the only sample of its class has no positive and is excluded from the mean;
        `count_skipped_anchors(labels)` counts these anchors. If all anchors are excluded, the loss is exactly 0, with
        zero gradient. On CUDA, class sums are bitwise reproducible only with
        `torch.use_deterministic_algorithms(True)`.

    Reference: Khosla et al. 2020, "Supervised Contrastive Learning", equation 2.

    >>> import torch
    >>> from contrastive_core import supcon
    >>> z = torch.eye(4)[[0, 0, 1, 1]]
    >>> supcon(z, torch.tensor([0, 0, 1, 1]), temperature=1.0)
    tensor(0.5514)
    """
    return _supcon("supcon", z, labels, temperature, ignore_index=ignore_index, gather=gather)[0]


class SupConLoss(LossModule):
    """:func:`supcon` as a module.

    After a call, `skipped_anchors` holds the number of anchors of the batch (with `gather`: of all processes) that had
    no positive and were excluded, as an int64 scalar tensor.
    """

    skipped_anchors: Tensor | None = None

    @tensors_first
    def __init__(
        self, *, temperature: float | Tensor = 0.1, ignore_index: int | None = None, gather: Gather = False
    ) -> None:
        super().__init__()
        check_learned_temperature("SupConLoss", temperature)
        check_ignore_index("SupConLoss", ignore_index)
        self.temperature, self.ignore_index, self.gather = temperature, ignore_index, gather

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        loss, self.skipped_anchors = _supcon(
            "SupConLoss", z, labels, self.temperature, ignore_index=self.ignore_index, gather=self.gather
        )
        return loss


def _supcon(
    name: str, z: Tensor, labels: Tensor, temperature: float | Tensor, *, ignore_index: int | None, gather: Gather
) -> tuple[Tensor, Tensor]:
    """Return the loss and the number of excluded anchors."""
    t = Temperature(name, temperature)
    check_rows(name, z=z)
    labels = class_numbers(name, labels, rows=z, ignore_index=ignore_index)
    rows = unit_rows(z, working_dtype(z, temperature=t.value))
    way = how_to_gather(name, gather, rows)
    positives = find_positives(labels, gather=way != "alone")
    check_at_least_two(name, len(positives.all_labels))
    all_rows = gather_rows(rows) if way == "all" else None
    towards_positives = t.divide(_mean_over_positives(rows, all_rows, positives, way))
    candidates = None if all_rows is None else t.link(all_rows)
    of_all = lse_among_all(t.link(rows), scale=t.scale, way=way, half=are_half(z), all_rows=candidates)
    losses = of_all - towards_positives
    return differentiable_once(positives.mean(losses).to(result_dtype(z)), z), positives.skipped


def _mean_over_positives(rows: Tensor, all_rows: Tensor | None, positives: Positives, way: Way) -> Tensor:
    """Compute each anchor's mean similarity [n] to its positives, z_i . (class sum - z_i) / number of positives."""
    # Sum large classes in float64, so that their rounding stays below that of single similarities.
    exact = rows.to(exact_dtype(rows))
    if way == "ring":
        sums = class_sums(exact, positives.own)
    else:
        candidates = exact if all_rows is None else all_rows.to(exact.dtype)
        group = positives.group if all_rows is None else split_own(positives.group)[0]
        sums = torch.zeros_like(candidates).index_add(0, positives.group, candidates).index_select(0, group)
    return (exact * (sums - exact)).sum(1) / positives.classmates.clamp(min=1)


def class_sums(rows: Tensor, labels: Tensor) -> Tensor:
    """Compute, for each row of this process, the sum of the rows of its class over all processes, itself included.

    The rows of other processes are passed around a ring, which takes O(n D) memory. The function multiplies by the
    symmetric matrix A_ij = [y_i = y_j], so that its gradient is the same sum over gradients. Every process must call
    it, and all must run the backward pass if one does.

    Args:
        rows: Rows [n, D] of this process.
        labels: Integers [n].

    Returns:
        Sums [n, D].

    Raises:
        ValueError: The processes hold different numbers of rows, or rows of different size or type (raised on each).
    """
    out: Tensor = (_class_sums if torch.compiler.is_compiling() else _ClassSums.apply)(rows, labels)
    return out


class _ClassSums(Looped):
    @staticmethod
    def forward(rows: Tensor, labels: Tensor) -> Tensor:
        sums: Tensor = _class_sums(rows, labels)
        return sums

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        remember(ctx, inputs[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, None]:
        return None if grad is None else class_sums(grad, *ctx.saved_tensors), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        return class_sums(tangent, *ctx.saved_tensors)


@torch.library.custom_op("contrastive_core::class_sums", mutates_args=())
def _class_sums(rows: Tensor, labels: Tensor) -> Tensor:
    refuse_unequal(rows)
    sorted_labels = labels.sort().values
    sums = torch.zeros_like(rows, memory_format=torch.contiguous_format)

    def add(rows: Tensor, labels: Tensor) -> None:
        index = torch.searchsorted(sorted_labels, labels).clamp(max=len(sorted_labels) - 1)
        is_match = sorted_labels[index] == labels
        sums.index_add_(0, index, torch.where(is_match[:, None], rows, 0.0))

    if len(rows):
        add(rows, labels)
        for block in visitors(rows, labels):
            add(*block)
    return sums[torch.searchsorted(sorted_labels, labels)]


@_class_sums.register_fake
def _(rows: Tensor, labels: Tensor) -> Tensor:
    return torch.empty_like(rows, memory_format=torch.contiguous_format)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    (labels,) = ctx.saved_tensors
    return class_sums(grad, labels), None


_class_sums.register_autograd(_differentiate, setup_context=_save)
