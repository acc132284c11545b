"""Candidates and positives of each anchor, across processes.

The log-sum-exp over the candidates has two parts: the anchors of one process are compared with each other in the square
form, which computes every similarity once, and with the rows of other processes in the rectangular form.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from contrastive_core.distributed import gather_labels, gather_rows, split_own, world_size
from contrastive_core.similarity import row_lse, self_lse
from contrastive_core.similarity.ring import ring_lse

Way = Literal["alone", "all", "ring"]


def log_add(a: Tensor, b: Tensor) -> Tensor:
    """log(exp a + exp b) where both may be -inf: torch's gradient is NaN there, this one is 0."""
    neither = (a == -torch.inf) & (b == -torch.inf)
    total = torch.logaddexp(a.masked_fill(neither, 0.0), b.masked_fill(neither, 0.0))
    return total.masked_fill(neither, -torch.inf)


def lse_among_all(
    z: Tensor, *, scale: float, way: Way, half: bool, skip: int | None = None, everyone: Tensor | None = None
) -> Tensor:
    """Over all unit rows but the anchor's own and, in z, those `skip` before and after: z [n, D] -> [n].

    `half` as in :func:`contrastive_core.similarity.self_lse`.
    """
    own = self_lse(z, scale=scale, skip=skip, max_norm=1.0, half=half)
    if way == "alone":
        return own
    return log_add(own, lse_of_others(z, z, scale=scale, way=way, half=half, everyone=everyone))


def lse_of_others(
    q: Tensor, k: Tensor, *, scale: float, way: Way, half: bool, everyone: Tensor | None = None
) -> Tensor:
    """Over the keys of the other processes: q [n, D], k [n, D] -> [n]. `everyone`: k of all, if it is gathered."""
    if way == "ring":
        return ring_lse(q, k, scale=scale)[0]
    others = split_own(gather_rows(k) if everyone is None else everyone)[1]
    return row_lse(q, others, scale=scale, max_norm=1.0, half=half)


def lse_by_class(z: Tensor, labels: Tensor, *, scale: float, way: Way, half: bool) -> tuple[Tensor, Tensor]:
    """Over the anchor's class (itself left out) and over the other classes, each [n], in the order of z.

    Rows are sorted by class, so that either kind fills whole tiles: together they cost little more than one pass.
    """
    z, labels, back = _by_class(z, labels)
    same = self_lse(z, scale=scale, classes=labels, among="same", max_norm=1.0)
    different = self_lse(z, scale=scale, classes=labels, among="other", max_norm=1.0, half=half)
    if way == "ring":
        others_same, others_different = ring_lse(z, z, scale=scale, classes=(labels, labels))
        same, different = log_add(same, others_same), log_add(different, others_different)
    elif way == "all":
        others, other_labels, _ = _by_class(split_own(gather_rows(z))[1], split_own(gather_rows(labels))[1])
        classes = (labels, other_labels)
        same = log_add(same, row_lse(z, others, scale=scale, classes=classes, among="same"))
        of_others = row_lse(z, others, scale=scale, classes=classes, among="other", max_norm=1.0, half=half)
        different = log_add(different, of_others)
    return same[back], different[back]


def _by_class(z: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows and labels in ascending order of label, and the indices that undo it."""
    labels, order = labels.sort(stable=True)
    return z[order], labels, order.argsort()


_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def count_skipped_anchors(labels: Tensor, *, gather: bool = False) -> Tensor:
    """How many anchors have no other sample of their class, so that `suncet` and `supcon` leave them out.

    Args:
        labels: integers [N].
        gather: look for positives in, and count the anchors of, all processes.

    Returns:
        int64 scalar on the labels' device.

    Raises:
        TypeError, ValueError: labels are not integers [N]; with `gather`, unequal numbers on the processes.

    >>> count_skipped_anchors(torch.tensor([0, 1, 1, 2]))
    tensor(2)
    """
    check_labels("count_skipped_anchors", labels)
    return find_positives(labels, gather=gather).skipped


def check_labels(name: str, labels: Tensor, rows: Tensor | None = None) -> None:
    """Raises TypeError unless labels are integers, ValueError unless there is one for each of `rows`."""
    if not isinstance(labels, Tensor) or labels.dtype not in _INTEGERS:
        found = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise TypeError(f"{name}: labels are {found}, expected an integer tensor [N] of class numbers")
    expected = "[N]" if rows is None else f"[{len(rows)}], one per embedding"
    if labels.ndim != 1 or (rows is not None and len(labels) != len(rows)):
        hint = "; turn one-hot labels into numbers with argmax(1)" if labels.ndim == 2 else ""
        raise ValueError(f"{name}: labels have shape {list(labels.shape)}, expected {expected}{hint}")


@dataclass(frozen=True)
class Positives:
    """The labels of this process's n anchors among those of all N candidates."""

    own: Tensor
    """Labels [n] of the anchors."""
    everyone: Tensor
    """Labels [N] of the candidates: those of all processes in the order of their ranks."""
    classmates: Tensor
    """How many positives each anchor has: int64 [n], itself not counted."""
    group: Tensor
    """A number in 0 .. N-1 for the class of each candidate: int64 [N], the same for the same class, not consecutive."""
    skipped: Tensor
    """How many of all N candidates have no positive, as anchors: int64 scalar."""
    processes: int
    """Over how many processes the candidates are spread."""

    @property
    def live(self) -> Tensor:
        """Which anchors have a positive: bool [n]."""
        return self.classmates > 0

    def mean(self, losses: Tensor) -> Tensor:
        """Sum of this process's live losses [n] over the mean number of live anchors per process.

        For one process that is the mean over its live anchors. For several, the processes may skip unequal numbers;
        this way the mean over processes is the mean over the live anchors of all. None at all: exactly 0.
        """
        live = (len(self.everyone) - self.skipped).clamp(min=1)
        return torch.where(self.live, losses, 0.0).sum() * self.processes / live


def find_positives(labels: Tensor, *, gather: bool) -> Positives:
    """Sorts the labels of all candidates and looks every one up: N log N, static shapes, no wait for a GPU."""
    labels = labels.to(torch.int64).contiguous()
    everyone = gather_labels(labels) if gather else labels
    ordered = everyone.sort().values
    first, end = (torch.searchsorted(ordered, everyone, right=right) for right in (False, True))
    own_first, own_end = (torch.searchsorted(ordered, labels, right=right) for right in (False, True))
    return Positives(
        own=labels,
        everyone=everyone,
        classmates=own_end - own_first - 1,
        group=first,
        skipped=(end - first == 1).sum(),
        processes=world_size() if gather else 1,
    )
