"""Candidates and positives of each anchor, across processes.

The log-sum-exp over the candidates has two parts: the square form compares the anchors of one process with each other
and computes each similarity once; the rectangular form compares them with the rows of other processes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from contrastive_core.distributed import gather_labels, gather_rows, split_own, world_size
from contrastive_core.similarity import row_lse, self_lse
from contrastive_core.similarity.reference import NO_CLASS
from contrastive_core.similarity.ring import ring_lse
from contrastive_core.synchronization import free_to_read

Way = Literal["alone", "all", "ring"]
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def log_add(a: Tensor, b: Tensor) -> Tensor:
    """Compute log(exp a + exp b) where either may be -inf, with derivatives that are 0 there.

    The first derivative of torch.logaddexp is NaN where both are -inf, the second wherever a and b are far apart.
    """
    high, low = torch.maximum(a, b), torch.minimum(a, b)
    alone = low == -torch.inf
    return torch.where(alone, high, high + F.softplus(low - high.masked_fill(alone, 0.0)))


def lse_among_all(
    z: Tensor, *, scale: float, way: Way, half: bool, skip: int | None = None, everyone: Tensor | None = None
) -> Tensor:
    """Log-sum-exp over all unit rows except the anchor's own and, in z, those at distance `skip`: z [n, D] -> [n].

    For `half` see :func:`contrastive_core.similarity.self_lse`.
    """
    own = self_lse(z, scale=scale, skip=skip, max_norm=1.0, half=half)
    if way == "alone":
        return own
    return log_add(own, lse_of_others(z, z, scale=scale, way=way, half=half, everyone=everyone))


def lse_of_others(
    q: Tensor, k: Tensor, *, scale: float, way: Way, half: bool, everyone: Tensor | None = None
) -> Tensor:
    """Log-sum-exp over the keys of the other processes: q [n, D], k [n, D] -> [n].

    `everyone` holds the keys of all processes if they are already gathered.
    """
    if way == "ring":
        return ring_lse(q, k, scale=scale)[0]
    others = split_own(gather_rows(k) if everyone is None else everyone)[1]
    return row_lse(q, others, scale=scale, max_norm=1.0, half=half)


def lse_by_class(
    z: Tensor, labels: Tensor, *, scale: float, way: Way, half: bool, with_ignored: bool = False
) -> tuple[Tensor, Tensor]:
    """Log-sum-exp over the anchor's class (itself excluded) and over the other classes, each [n], in the order of z.

    Rows are sorted by class, so that each kind fills whole tiles: both together cost little more than one pass. With
    `with_ignored`, rows labelled NO_CLASS are excluded as candidates, and their own results are meaningless. They come
    last: where their number is free to read, only the others are computed.
    """
    z, labels, back = _by_class(z, labels)
    count = count_labelled(labels) if with_ignored and free_to_read(labels) else len(labels)
    own, classes = z[:count], labels[:count]
    same = _pad(self_lse(own, scale=scale, classes=classes, among="same", max_norm=1.0), len(z))
    different = _pad(self_lse(own, scale=scale, classes=classes, among="other", max_norm=1.0, half=half), len(z))
    if way == "ring":
        others_same, others_different = ring_lse(z, z, scale=scale, classes=(labels, labels))
        same, different = log_add(same, others_same), log_add(different, others_different)
    elif way == "all":
        others, other_labels, _ = _by_class(split_own(gather_rows(z))[1], split_own(gather_rows(labels))[1])
        count = count_labelled(other_labels) if with_ignored and free_to_read(labels) else len(other_labels)
        others, pair = others[:count], (labels, other_labels[:count])
        same = log_add(same, row_lse(z, others, scale=scale, classes=pair, among="same"))
        of_others = row_lse(z, others, scale=scale, classes=pair, among="other", max_norm=1.0, half=half)
        different = log_add(different, of_others)
    return same.index_select(0, back), different.index_select(0, back)


def _by_class(z: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sort rows and labels by label; return both and the indices that restore the order."""
    labels, order = labels.sort(stable=True)
    return z.index_select(0, order), labels, order.argsort()


def _pad(lse: Tensor, count: int) -> Tensor:
    return lse if len(lse) == count else torch.cat([lse, lse.new_full((count - len(lse),), -torch.inf)])


def count_skipped_anchors(labels: Tensor, *, ignore_index: int | None = None, gather: bool = False) -> Tensor:
    """Count the labelled anchors without another sample of their class, which `suncet` and `supcon` exclude.

    Args:
        labels: Integers [N].
        ignore_index: Label of unlabelled samples, which are not counted.
        gather: Whether to count the anchors of all processes, with positives from all processes.

    Returns:
        int64 scalar on the labels' device.

    Raises:
        TypeError, ValueError: Labels are not integers [N], or negative; with `gather`, the number of labels differs
            between processes.

    >>> count_skipped_anchors(torch.tensor([0, 1, 1, 2]))
    tensor(2)
    """
    labels = class_numbers("count_skipped_anchors", labels, ignore_index=ignore_index, wait=True)
    return find_positives(labels, gather=gather).skipped


def class_numbers(
    name: str, labels: Tensor, *, rows: Tensor | None = None, ignore_index: int | None = None, wait: bool = False
) -> Tensor:
    """Check labels and return them as int64 [N], with NO_CLASS where they equal `ignore_index`.

    A negative number nearly always marks unlabelled samples; used as a class, it would pull all of them together. On a
    device the numbers are checked only with `wait`, because reading them makes the host wait. Otherwise they are
    returned, and :meth:`Positives.mean` turns them into NaN.

    Raises:
        TypeError: Labels are not integers, or ignore_index is not an integer.
        ValueError: There is not one label for each of `rows`, or a label other than `ignore_index` is negative.
    """
    if not isinstance(labels, Tensor) or labels.dtype not in _INTEGERS:
        found = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise TypeError(f"{name}: labels are {found}, expected an integer tensor [N] of class numbers")
    expected = "[N]" if rows is None else f"[{len(rows)}], one per embedding"
    if labels.ndim != 1 or (rows is not None and len(labels) != len(rows)):
        hint = "; turn one-hot labels into numbers with argmax(1)" if labels.ndim == 2 else ""
        raise ValueError(f"{name}: labels have shape {list(labels.shape)}, expected {expected}{hint}")
    check_ignore_index(name, ignore_index)
    read = wait or free_to_read(labels)  # before labels on the host are moved to the device
    operator: Any = _class_numbers
    if torch.compiler.is_compiling():
        numbers: Tensor = operator(labels, name, ignore_index, read)
    else:
        try:
            numbers = _as_class_numbers(labels, name, ignore_index, read)
        except RuntimeError as error:
            if "vmap" not in str(error):
                raise
            numbers = operator(labels, name, ignore_index, read)
    return numbers if rows is None else numbers.to(rows.device)


def check_ignore_index(name: str, ignore_index: int | None) -> None:
    """Raise TypeError unless ignore_index is an integer or None."""
    if ignore_index is not None and (isinstance(ignore_index, bool) or not isinstance(ignore_index, int)):
        raise TypeError(f"{name}: ignore_index is {ignore_index!r}, expected an integer or None")


def _as_class_numbers(labels: Tensor, name: str, ignore_index: int | None, read: bool) -> Tensor:
    numbers = labels.to(torch.int64, copy=True, memory_format=torch.contiguous_format)
    if ignore_index is not None:
        numbers.masked_fill_(labels == ignore_index, NO_CLASS)
    if read and labels.dtype != torch.uint8 and labels.numel():
        lowest = int(numbers.amin())
        if lowest < 0:
            hint = (
                f"pass ignore_index={lowest} if that marks unlabelled samples"
                if ignore_index is None
                else f"the ignore_index is {ignore_index}"
            )
            raise ValueError(f"{name}: labels go down to {lowest}, expected class numbers from 0; {hint}")
    return numbers


# As an operator, reading values does not break the graph of torch.compile, and torch.vmap is supported.
_class_numbers = torch.library.custom_op("contrastive_core::class_numbers", _as_class_numbers, mutates_args=())


@_class_numbers.register_fake
def _(labels: Tensor, name: str, ignore_index: int | None, read: bool) -> Tensor:
    return labels.new_empty(labels.shape, dtype=torch.int64)


def _map_class_numbers(info: object, in_dims: tuple[int, ...], labels: Tensor, *others: Any) -> tuple[Tensor, int]:
    numbers: Tensor = torch.ops.contrastive_core.class_numbers(labels.movedim(in_dims[0], 0), *others)
    return numbers, 0


_class_numbers.register_vmap(_map_class_numbers)


def count_labelled(labels: Tensor) -> int:
    """Number of labels other than NO_CLASS."""
    return int((labels != NO_CLASS).sum())


@dataclass(frozen=True)
class Positives:
    """The labels of this process's n anchors among those of all N candidates."""

    own: Tensor
    """Labels [n] of the anchors; NO_CLASS for unlabelled ones."""
    everyone: Tensor
    """Labels [N] of the candidates: those of all processes in the order of their ranks."""
    classmates: Tensor
    """Number of positives of each anchor, itself excluded: int64 [n]."""
    group: Tensor
    """Index in 0 .. N-1 of each candidate's class: int64 [N], equal for equal classes, not consecutive."""
    anchors: Tensor
    """Number of candidates, of all N, that have a positive: int64 scalar."""
    skipped: Tensor
    """Number of labelled candidates without a positive: int64 scalar."""
    processes: int
    """Number of processes that hold the candidates."""
    valid: Tensor
    """Whether no label is negative: bool scalar."""

    @property
    def live(self) -> Tensor:
        """Mask of the anchors that have a positive: bool [n]."""
        return self.classmates > 0

    def mean(self, losses: Tensor) -> Tensor:
        """Divide the sum of this process's live losses [n] by the mean number of live anchors per process.

        For one process, this is the mean over its live anchors. Several processes may skip different numbers of
        anchors; the mean of the results over processes is then the mean over all live anchors. Without any: exactly 0.
        NaN, with a gradient of NaN, if a label is negative.
        """
        return self.checked(torch.where(self.live, losses, 0.0).sum()) * self.processes / self.anchors.clamp(min=1)

    def checked(self, loss: Tensor) -> Tensor:
        """Return the loss, or NaN if a label is negative; where labels are free to read, they have been checked."""
        return loss if free_to_read(self.valid) else loss * torch.where(self.valid, 1.0, torch.nan)


def find_positives(labels: Tensor, *, gather: bool) -> Positives:
    """Find each anchor's positives by sorted search: O(N log N), static shapes, no synchronisation with a GPU.

    Args:
        labels: int64 [n] as :func:`class_numbers` returns them.
        gather: Whether the candidates are those of all processes.
    """
    everyone = gather_labels(labels) if gather else labels
    ordered = everyone.sort().values
    first, end = (torch.searchsorted(ordered, everyone, right=right) for right in (False, True))
    own_first, own_end = (torch.searchsorted(ordered, labels, right=right) for right in (False, True))
    labelled = everyone != NO_CLASS
    anchors = (labelled & (end - first > 1)).sum()
    return Positives(
        own=labels,
        everyone=everyone,
        classmates=torch.where(labels != NO_CLASS, own_end - own_first - 1, 0),
        group=first,
        anchors=anchors,
        skipped=labelled.sum() - anchors,
        processes=world_size() if gather else 1,
        valid=(ordered[:1] >= 0).all(),
    )
