"""SupCon: every image of the anchor's class is a positive, averaged outside the logarithm."""

from __future__ import annotations

from torch import Tensor, nn

from contrastive_core.losses._common import check_temperature, labelled_rows, skipped_anchors


def supcon(z: Tensor, labels: Tensor, *, temperature: float = 0.1, gather: bool = False) -> Tensor:
    """Pull together samples of one class, push apart all others; the "out" form.

    ``loss = mean over anchors i of  log(sum over k != i of exp(s_ik)) - mean over positives p of s_ip``
    with ``s_ik = cos(z_i, z_k) / temperature`` and positives the other samples of i's label.

    Shapes: z ``[N, D]``, of any length, labels ``[N]`` whole numbers -> scalar. For two views of each image, stack views and
    labels. The positives' term is linear in s, so that class sums give it: O(N D) memory, no N x N mask.

    Anchors without a positive are left out of the mean (``skipped_anchors(labels)`` counts them); if none is left the loss
    is exactly 0 with a zero gradient. dtype, zero rows and ``gather`` as in :func:`contrastive_core.nt_xent`; anchors are
    counted over all processes.

    Raises:
        TypeError: labels are not whole numbers.
        ValueError: shapes do not belong together, fewer than two samples, temperature not positive, uneven batches.

    Reference: Khosla et al. 2020, "Supervised Contrastive Learning", Eq. 2.

    >>> import torch
    >>> from contrastive_core import supcon
    >>> z, labels = torch.eye(3)[[0, 0, 1, 1]], torch.tensor([5, 5, 7, 7])
    >>> round(supcon(z, labels, temperature=0.5).item(), 4)  # log(1 + 2 exp(-2))
    0.2395
    """
    check_temperature(temperature)
    scale = 1 / temperature
    rows = labelled_rows(z, labels, gather=gather)
    classes = rows.anchor_classes
    sums = rows.candidates.new_zeros(len(rows.counts), z.shape[1]).index_add(0, rows.classes, rows.candidates)
    positives = (rows.counts[classes] - 1).clamp_min(1)
    towards = (rows.anchors * (sums[classes] - rows.anchors)).sum(dim=1) / positives
    return rows.mean(rows.lse_all(scale) - scale * towards)


class SupConLoss(nn.Module):
    """:func:`supcon` with its keywords held.

    Attributes:
        skipped_anchors: how many anchors of the last batch had no positive in it.
    """

    def __init__(self, *, temperature: float = 0.1, gather: bool = False) -> None:
        super().__init__()
        check_temperature(temperature)
        self.temperature, self.gather, self.skipped_anchors = temperature, gather, 0

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        loss = supcon(z, labels, temperature=self.temperature, gather=self.gather)
        self.skipped_anchors = skipped_anchors(labels, gather=self.gather)
        return loss

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, gather={self.gather}"
