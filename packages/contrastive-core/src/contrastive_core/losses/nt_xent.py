"""NT-Xent, the loss of SimCLR: normalised temperature-scaled cross-entropy over pairs of views."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from contrastive_core.distributed import gather_rows, rank, world_size
from contrastive_core.losses._common import check_matrix, check_same_shape, check_temperature, normalise
from contrastive_core.similarity import row_lse, self_lse


def nt_xent(view_a: Tensor, view_b: Tensor, *, temperature: float = 0.1, gather: bool = False) -> Tensor:
    """Each view finds the other view of its image among all other views of the batch.

    ``loss = mean over the 2N views i of  log(sum over k != i of exp(s_ik)) - s_i,pair(i)``
    with ``s_ik = cos(z_i, z_k) / temperature``.

    Shapes: view_a, view_b ``[N, D]``, row i of both from image i; any length, they are normalised here -> scalar.
    The scale is the paper's; the released TensorFlow code sums the two directions and is exactly twice this.

    Memory O(N D), time of two 2N x 2N x D matrix products with backward. Computed in float32 (float64 for float64 inputs)
    whatever autocast says. A row of zeros has cosine 0 to all and finite gradient.

    With ``gather=True`` under torch.distributed the candidates are the views of all processes; each process returns the mean
    over its own anchors, and averaging gradients over processes (DDP) gives that of the union batch.

    Raises:
        ValueError: shapes differ, N < 1, temperature not positive, or (with gather) uneven batches on processes.

    Reference: Chen et al. 2020, "A Simple Framework for Contrastive Learning of Visual Representations", Eq. 1.

    >>> import torch
    >>> from contrastive_core import nt_xent
    >>> view_a, view_b = torch.eye(4), torch.eye(4)
    >>> round(nt_xent(view_a, view_b, temperature=0.5).item(), 4)  # log(1 + 6 exp(-2))
    0.5946
    """
    check_temperature(temperature)
    check_matrix("view_a", view_a)
    check_matrix("view_b", view_b)
    check_same_shape(view_a=view_a, view_b=view_b)
    if len(view_a) == 0:
        raise ValueError("nt_xent needs at least one image with its two views, got none")
    scale = 1 / temperature
    a, b = normalise(view_a), normalise(view_b)
    z = torch.cat([a, b])
    if gather and world_size() > 1:
        lse = row_lse(z, gather_rows(z), scale=scale, self_offset=rank() * len(z))
    else:
        lse = self_lse(z, scale=scale)
    return lse.mean() - scale * (a * b).sum(dim=1).mean()


class NTXentLoss(nn.Module):
    """:func:`nt_xent` with its keywords held."""

    def __init__(self, *, temperature: float = 0.1, gather: bool = False) -> None:
        super().__init__()
        check_temperature(temperature)
        self.temperature, self.gather = temperature, gather

    def forward(self, view_a: Tensor, view_b: Tensor) -> Tensor:
        return nt_xent(view_a, view_b, temperature=self.temperature, gather=self.gather)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, gather={self.gather}"
