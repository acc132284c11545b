"""Log-sum-exp of an anchor's similarities with the candidates of all processes, in two parts.

The anchors of a process meet each other in the square form, which computes every similarity once, and the rows of the
other processes in the rectangular form.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from contrastive_core.distributed import gather_rows, split_own
from contrastive_core.similarity import row_lse, self_lse
from contrastive_core.similarity.ring_lse import ring_lse

Way = Literal["alone", "all", "ring"]


def log_add(a: Tensor, b: Tensor) -> Tensor:
    """log(exp a + exp b) where both may be -inf: torch's gradient is NaN there, this one is 0."""
    neither = (a == -torch.inf) & (b == -torch.inf)
    total = torch.logaddexp(a.masked_fill(neither, 0.0), b.masked_fill(neither, 0.0))
    return total.masked_fill(neither, -torch.inf)


def lse_among_all(
    z: Tensor, *, scale: float, way: Way, skip: int | None = None, everyone: Tensor | None = None
) -> Tensor:
    """Over all rows but the anchor's own and, in z, those `skip` before and after: z [n, D] -> [n]."""
    own = self_lse(z, scale=scale, skip=skip, max_norm=1.0)
    return own if way == "alone" else log_add(own, lse_of_others(z, z, scale=scale, way=way, everyone=everyone))


def lse_of_others(q: Tensor, k: Tensor, *, scale: float, way: Way, everyone: Tensor | None = None) -> Tensor:
    """Over the keys of the other processes: q [n, D], k [n, D] -> [n]. `everyone`: k of all, if it is gathered."""
    if way == "ring":
        return ring_lse(q, k, scale=scale)[0]
    return row_lse(q, split_own(gather_rows(k) if everyone is None else everyone)[1], scale=scale)


def lse_by_class(z: Tensor, labels: Tensor, *, scale: float, way: Way) -> tuple[Tensor, Tensor]:
    """Over the anchor's class (itself left out) and over the other classes, each [n], in the order of z.

    Rows are sorted by class, so that either kind fills whole tiles: together they cost little more than one pass.
    """
    z, labels, back = _by_class(z, labels)
    same = self_lse(z, scale=scale, classes=labels, among="same", max_norm=1.0)
    different = self_lse(z, scale=scale, classes=labels, among="other", max_norm=1.0)
    if way == "ring":
        others_same, others_different = ring_lse(z, z, scale=scale, classes=(labels, labels))
        same, different = log_add(same, others_same), log_add(different, others_different)
    elif way == "all":
        others, other_labels, _ = _by_class(split_own(gather_rows(z))[1], split_own(gather_rows(labels))[1])
        classes = (labels, other_labels)
        same = log_add(same, row_lse(z, others, scale=scale, classes=classes, among="same"))
        different = log_add(different, row_lse(z, others, scale=scale, classes=classes, among="other"))
    return same[back], different[back]


def _by_class(z: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows and labels in ascending order of label, and the indices that undo it."""
    labels, order = labels.sort(stable=True)
    return z[order], labels, order.argsort()
