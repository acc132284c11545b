"""NT-Xent, the loss of SimCLR."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contrastive_core.distributed import Gather, how_to_gather, world_size
from contrastive_core.losses._candidates import log_add, lse_among_all
from contrastive_core.losses._inputs import (
    Temperature,
    are_half,
    check_at_least_two,
    check_bank,
    check_learned_temperature,
    check_rows,
    check_same_count,
    paired_similarity,
    result_dtype,
    shown,
    tensors_first,
    unit_rows,
    working_dtype,
)
from contrastive_core.similarity import row_lse


@tensors_first
def nt_xent(
    view_a: Tensor,
    view_b: Tensor,
    bank: Tensor | None = None,
    *,
    temperature: float | Tensor = 0.1,
    gather: Gather = False,
) -> Tensor:
    """Normalised temperature-scaled cross-entropy: of all views in the batch, which is the other view of this sample?

        loss = mean over the 2N views i of   -log( exp(s_i,pair(i)) / sum_{j != i} exp(s_ij) ),
        s_ij = cos(z_i, z_j) / temperature

    The papers' scale; the TensorFlow code of SimCLR adds the two directions, which is exactly twice this.

    With a memory bank (SimCLRv2) its rows b_m are negatives of every view beside those of the batch:

        loss = mean over the 2N views i of   -log( exp(s_i,pair(i)) / (sum_{j != i} exp(s_ij) + sum_m exp(s_im)) )

    Memory O((N + M) D), time of two matrix products 2N x 2N x D, and of up to four 2N x M x D for a bank. Computed in
    float32 or better whatever autocast says; below temperature 0.1 in float64. The loss keeps its relative precision
    when it is close to 0.

    Args:
        view_a: embeddings [N, D] of the first views; they are l2-normalised here, so any magnitude will do.
        view_b: embeddings [N, D] of the second views; row i belongs to the same sample.
        bank: [M, D], further negatives; l2-normalised here. None or M = 0: no bank. Over processes, the same on each.
        temperature: positive; 0.1 (the papers on ImageNet), 0.5 (on CIFAR-10);
            a number, or a tensor of one to learn it (the host reads it in every call).
        gather: candidates are the views of all processes, anchors those of this process. With the mean of parameter
            gradients that data-parallel training takes, this is the loss of the union batch. "all"
            and "ring" say how they come (`how_to_gather`).

    Returns:
        Scalar, float64 if an input is, else float32.

    Edges: a row of zeros has similarity 0 with everything and no gradient; NaN or infinite embeddings give NaN.

    Raises:
        ValueError: shapes that differ, fewer than two samples without a bank, temperature not positive and finite; with
            `gather`, numbers of samples that differ between processes (raised on each).
        TypeError: embeddings that are not floating point, temperature not a number.

    References: Chen et al. 2020, "A Simple Framework for Contrastive Learning of Visual Representations", equation 1;
    the bank: Chen et al. 2020, "Big Self-Supervised Models are Strong Semi-Supervised Learners", whose code does not
    have it (see `MemoryBank`).

    >>> import torch
    >>> from contrastive_core import nt_xent
    >>> a, b = torch.eye(4), torch.eye(4)
    >>> nt_xent(a, b, temperature=1.0)
    tensor(1.1654)
    """
    check_bank("nt_xent", bank, "view_a", "view_b")
    t = Temperature("nt_xent", temperature)
    inputs = {"view_a": view_a, "view_b": view_b} | ({} if bank is None else {"bank": bank})
    check_rows("nt_xent", **inputs)
    check_same_count("nt_xent", view_a=view_a, view_b=view_b)
    n, dtype = len(view_a), working_dtype(*inputs.values(), temperature=t.value)
    z = torch.cat([unit_rows(view_a, dtype), unit_rows(view_b, dtype)])
    way = how_to_gather("nt_xent", gather, z)
    # First the processes compare their numbers of rows: an error of a single one would leave the others waiting.
    linked = t.link(z)
    half = are_half(*inputs.values())
    rest = lse_among_all(linked, scale=t.scale, way=way, half=half, skip=n)
    if bank is None or len(bank) == 0 or n == 0:
        check_at_least_two("nt_xent", n if way == "alone" else n * world_size())
    pair = t.divide(paired_similarity(*z.view(2, n, -1).unbind())).repeat(2)
    if bank is not None:
        negatives = t.link(unit_rows(bank, dtype))
        rest = log_add(rest, row_lse(linked, negatives, scale=t.scale, max_norm=1.0, half=half))
    # -log(exp(pair) / (exp(pair) + exp(rest))), without the difference of two almost equal numbers.
    return softplus(rest - pair).mean().to(result_dtype(*inputs.values()))


class NTXentLoss(nn.Module):
    """:func:`nt_xent` with its keywords held: ``NTXentLoss(temperature=0.5)(view_a, view_b)``."""

    @tensors_first
    def __init__(self, *, temperature: float | Tensor = 0.1, gather: Gather = False) -> None:
        super().__init__()
        check_learned_temperature("NTXentLoss", temperature)
        self.temperature, self.gather = temperature, gather

    def forward(self, view_a: Tensor, view_b: Tensor, bank: Tensor | None = None) -> Tensor:
        return nt_xent(view_a, view_b, bank, temperature=self.temperature, gather=self.gather)

    def extra_repr(self) -> str:
        return f"temperature={shown(self.temperature)}, gather={self.gather}"


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)), to the last digits of float64 too: torch's default returns x above 20."""
    return F.softplus(x, threshold=50.0)
