"""NT-Xent, the loss of SimCLR.

With unit rows z, s_ij = z_i z_j / temperature and P_ij = exp(s_ij) / sum_{k != i} exp(s_ik), its gradient is

    dloss / dz_i = ( sum_{j != i} (P_ij + P_ji) z_j - 2 z_pair(i) ) / (2 N temperature)

The sum is the gradient of a row-wise log-sum-exp: `similarity.autograd` states it, and `similarity.torch_backend` (or
the compiled library) computes it in tiles.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from contrastive_core.distributed import Gather, how_to_gather, world_size
from contrastive_core.losses._inputs import (
    PairInputs,
    PairLoss,
    check_at_least_two,
    lse_among_all,
    paired_similarity,
    tensors_first,
    unit_rows,
)


@tensors_first
def nt_xent(
    view_a: Tensor,
    view_b: Tensor,
    bank: Tensor | None = None,
    *,
    temperature: float | Tensor = 0.1,
    gather: Gather = False,
) -> Tensor:
    """Compute the normalised temperature-scaled cross-entropy loss between two views of each sample.

        loss = mean over the 2N views i of   -log( exp(s_i,pair(i)) / sum_{j != i} exp(s_ij) ),
        s_ij = cos(z_i, z_j) / temperature

    The scale is that of the papers; the TensorFlow code of SimCLR adds the two directions, which is exactly twice this.

    With a memory bank (SimCLRv2), its rows b_m are additional negatives of every view:

        loss = mean over the 2N views i of   -log( exp(s_i,pair(i)) / (sum_{j != i} exp(s_ij) + sum_m exp(s_im)) )

    The loss takes O((N + M) D) memory and the time of two matrix products 2N x 2N x D, plus up to four products
    2N x M x D for a bank. It is computed in float32 or better regardless of autocast, and in float64 below temperature
    0.1. It keeps its relative precision close to 0.

    Args:
        view_a: Embeddings [N, D] of the first views, of any magnitude; l2-normalised here.
        view_b: Embeddings [N, D] of the second views; row i belongs to the same sample as row i of `view_a`.
        bank: Embeddings [M, D] of additional negatives, l2-normalised here. None or M = 0: no bank. With several
            processes, each must hold the same bank.
        temperature: Positive number, or a tensor with one element to learn it (the host reads it in every call). The
            papers use 0.1 on ImageNet and 0.5 on CIFAR-10.
        gather: Whether the candidates are the views of all processes; the anchors are those of this process. With
            parameter gradients averaged over processes, this is the loss of the union batch. "all" and "ring" select
            how rows are exchanged (see `how_to_gather`).

    Returns:
        Scalar; float64 if an input is float64, else float32. A row of zeros has similarity 0 with every row and no
        gradient; NaN or infinite embeddings give NaN.

    Raises:
        ValueError: Shapes differ, there are fewer than two samples and no bank, or the temperature is not positive and
            finite; with `gather`, the number of samples differs between processes (raised on each).
        TypeError: Embeddings are not floating point, or the temperature is not a number.

    References: Chen et al. 2020, "A Simple Framework for Contrastive Learning of Visual Representations", equation 1;
    for the bank, Chen et al. 2020, "Big Self-Supervised Models are Strong Semi-Supervised Learners", whose released
    code does not include it (see `MemoryBank`).

    >>> import torch
    >>> from contrastive_core import nt_xent
    >>> a, b = torch.eye(4), torch.eye(4)
    >>> nt_xent(a, b, temperature=1.0)
    tensor(1.1654)
    """
    inputs = PairInputs("nt_xent", bank, temperature, view_a=view_a, view_b=view_b)
    n, t = len(view_a), inputs.temperature
    z = torch.cat([unit_rows(view_a, inputs.dtype), unit_rows(view_b, inputs.dtype)])
    way = how_to_gather("nt_xent", gather, z)
    # Processes compare their numbers of rows first, because an error on one of them would leave the others waiting.
    linked = t.link(z)
    rest = lse_among_all(linked, scale=t.scale, way=way, half=inputs.half, skip=n)
    if bank is None or len(bank) == 0 or n == 0:
        check_at_least_two("nt_xent", n if way == "alone" else n * world_size())
    pair = t.divide(paired_similarity(*z.view(2, n, -1).unbind())).repeat(2)
    rest = inputs.add_bank(rest, linked)
    # This is -log(exp(pair) / (exp(pair) + exp(rest))) without the difference of two almost equal numbers.
    return inputs.mean(softplus(rest - pair))


class NTXentLoss(PairLoss):
    """:func:`nt_xent` as a module: ``NTXentLoss(temperature=0.5)(view_a, view_b)``."""

    def forward(self, view_a: Tensor, view_b: Tensor, bank: Tensor | None = None) -> Tensor:
        return nt_xent(view_a, view_b, bank, temperature=self.temperature, gather=self.gather)


def softplus(x: Tensor) -> Tensor:
    """Compute log(1 + exp(x)) to full float64 precision; with its default threshold, torch returns x above 20."""
    return F.softplus(x, threshold=50.0)
