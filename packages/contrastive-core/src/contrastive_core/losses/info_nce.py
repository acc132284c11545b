"""InfoNCE loss between queries and keys, with an optional memory bank of additional negatives."""

from __future__ import annotations

from torch import Tensor

from contrastive_core.distributed import Gather, how_to_gather, world_size
from contrastive_core.losses._inputs import (
    PairInputs,
    PairLoss,
    check_at_least_two,
    log_add,
    lse_of_others,
    paired_similarity,
    tensors_first,
    unit_rows,
)
from contrastive_core.losses.nt_xent import softplus
from contrastive_core.similarity import row_lse


@tensors_first
def info_nce(
    query: Tensor, key: Tensor, bank: Tensor | None = None, *, temperature: float | Tensor = 0.1, gather: Gather = False
) -> Tensor:
    """Compute the InfoNCE loss, which classifies each query's key among all keys and an optional memory bank.

        loss = mean over queries i of   -log( exp(s(q_i, k_i)) / (sum_j exp(s(q_i, k_j)) + sum_m exp(s(q_i, b_m))) ),
        s = cos / temperature

    The loss has one direction, from queries to keys; add `info_nce(key, query)` for both. It takes O((N + M) D) memory
    and the time of up to four matrix products N x (N + M) x D. Gradients flow to every input that requires one; detach
    keys or bank to stop them. (A bank usually holds detached rows, for which the backward pass computes only the
    gradient of the queries.) The loss is computed in float32 or better regardless of autocast, and in float64 below
    temperature 0.1. It keeps its relative precision close to 0.

    Args:
        query: Embeddings [N, D], l2-normalised here.
        key: Embeddings [N, D], l2-normalised here. Row i is the positive of query i; the other rows are negatives.
        bank: Embeddings [M, D], l2-normalised here, that are negatives for every query. None or M = 0: no bank.
        temperature: Positive number, or a tensor with one element to learn it (the host reads it in every call); 0.07
            to 0.2 are usual.
        gather: Whether the keys of other processes are also negatives of this process's queries. With parameter
            gradients averaged over processes, this is the loss of the union batch. "all" and "ring" select how rows are
            exchanged (see `how_to_gather`).

    Returns:
        Scalar; float64 if an input is float64, else float32. A row of zeros has similarity 0 with every row and no
        gradient; NaN embeddings give NaN.

    Raises:
        ValueError: Shapes differ; there is only one query and no bank, so that the query has no negative; the
            temperature is not positive and finite; with `gather`, the number of queries differs between processes
            (raised on each).
        TypeError: Inputs are not floating point, or the temperature is not a number.

    References: van den Oord et al. 2018, "Representation Learning with Contrastive Predictive Coding", equation 4; for
    the bank, He et al. 2020, "Momentum Contrast for Unsupervised Visual Representation Learning", section 3.

    >>> import torch
    >>> from contrastive_core import info_nce
    >>> info_nce(torch.eye(4), torch.eye(4), temperature=1.0)
    tensor(0.7437)
    """
    inputs = PairInputs("info_nce", bank, temperature, query=query, key=key)
    t, half = inputs.temperature, inputs.half
    q, k = unit_rows(query, inputs.dtype), unit_rows(key, inputs.dtype)
    linked_q, linked_k = t.link(q), t.link(k)
    way = how_to_gather("info_nce", gather, k)
    rest = row_lse(linked_q, linked_k, scale=t.scale, self_offset=0, max_norm=1.0, half=half)
    if way != "alone":
        rest = log_add(rest, lse_of_others(linked_q, linked_k, scale=t.scale, way=way, half=half))
    if bank is None or len(bank) == 0 or len(query) == 0:
        check_at_least_two("info_nce", len(query) if way == "alone" else len(query) * world_size())
    # The bank is separate from the keys, so that its gradient is computed only if it is required.
    rest = inputs.add_bank(rest, linked_q)
    return inputs.mean(softplus(rest - t.divide(paired_similarity(q, k))))


class InfoNCELoss(PairLoss):
    """:func:`info_nce` as a module: ``InfoNCELoss(temperature=0.2)(query, key, bank)``."""

    def forward(self, query: Tensor, key: Tensor, bank: Tensor | None = None) -> Tensor:
        return info_nce(query, key, bank, temperature=self.temperature, gather=self.gather)
