"""SuNCEt: supervised noise-contrastive estimation, with the positives inside the logarithm."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from contrastive_core.losses._common import LabelledRows, check_temperature, labelled_rows, skipped_anchors
from contrastive_core.similarity import self_lse

_BATCHED = 256
_BATCHED_VALUES = 1 << 20


def suncet(z: Tensor, labels: Tensor, *, temperature: float = 0.1, gather: bool = False) -> Tensor:
    """Make a soft nearest-neighbour classifier, voting by the other labelled samples, right about every sample.

    ``loss = mean over anchors i of  log(sum over k != i of exp(s_ik)) - log(sum over positives p of exp(s_ip))``
    with ``s_ik = cos(z_i, z_k) / temperature`` and positives the other samples of i's label, which are in both sums.

    Shapes: z ``[N, D]``, of any length, one view of each labelled image, labels ``[N]`` whole numbers -> scalar. Draw at
    least two images per class. Memory O(N D) and a block; no N x N mask.

    Anchors without a positive, for whom the released code's loss is infinite, are left out of the mean
    (``skipped_anchors(labels)`` counts them); if none is left the loss is exactly 0 with a zero gradient. dtype, zero rows
    and ``gather`` as in :func:`contrastive_core.nt_xent`; anchors are counted over all processes.

    Raises:
        TypeError: labels are not whole numbers.
        ValueError: shapes do not belong together, fewer than two samples, temperature not positive, uneven batches.

    Reference: Assran et al. 2020, "Supervision Accelerates Pre-training in Contrastive Semi-Supervised Learning of Visual
    Representations"; the released src/losses.py.

    >>> import torch
    >>> from contrastive_core import suncet
    >>> z, labels = torch.eye(3)[[0, 0, 1, 1]], torch.tensor([5, 5, 7, 7])
    >>> round(suncet(z, labels, temperature=0.5).item(), 4)  # log(1 + 2 exp(-2))
    0.2395
    """
    check_temperature(temperature)
    scale = 1 / temperature
    rows = labelled_rows(z, labels, gather=gather)
    return rows.mean(rows.lse_all(scale) - _lse_of_positives(rows, scale))


def _lse_of_positives(rows: LabelledRows, scale: float) -> Tensor:
    """``[N]``: log-sum-exp over the other candidates of an anchor's class; 0 where there are none.

    Sorted by class, the rows of a class are neighbours. Classes of one small size go through one batched product, a large
    class through the primitive, so that memory stays linear in N.
    """
    order = rows.classes.argsort(stable=True)
    members = rows.candidates[order]
    ends = rows.counts.cumsum(0)
    lse = rows.candidates.new_zeros(len(members))
    for size in rows.counts.unique().tolist():
        if size < 2:
            continue
        starts = (ends - rows.counts)[rows.counts == size]
        places = starts[:, None] + torch.arange(size, device=starts.device)
        if size > _BATCHED:
            for place in places:
                lse = lse.index_copy(0, place, self_lse(members[place], scale=scale))
        else:
            for group in places.split(max(1, _BATCHED_VALUES // size**2)):
                lse = lse.index_copy(0, group.flatten(), _small_classes(members[group], scale).flatten())
    unsorted = torch.empty_like(order)
    unsorted[order] = torch.arange(len(order), device=order.device)
    own = unsorted[rows.first : rows.first + len(rows.anchors)]
    return lse[own]


def _small_classes(members: Tensor, scale: float) -> Tensor:
    """``[C, n, D] -> [C, n]``: log-sum-exp over the other members of each class."""
    with torch.autocast(members.device.type, enabled=False):
        similarity = scale * members @ members.mT
    itself = torch.eye(members.shape[1], dtype=torch.bool, device=members.device)
    return similarity.masked_fill(itself, float("-inf")).logsumexp(dim=2)


class SuNCEtLoss(nn.Module):
    """:func:`suncet` with its keywords held.

    Attributes:
        skipped_anchors: how many anchors of the last batch had no positive in it.
    """

    def __init__(self, *, temperature: float = 0.1, gather: bool = False) -> None:
        super().__init__()
        check_temperature(temperature)
        self.temperature, self.gather, self.skipped_anchors = temperature, gather, 0

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        loss = suncet(z, labels, temperature=self.temperature, gather=self.gather)
        self.skipped_anchors = skipped_anchors(labels, gather=self.gather)
        return loss

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, gather={self.gather}"
