"""InfoNCE between queries and keys, with an optional memory bank of further negatives."""

from __future__ import annotations

from torch import Tensor, nn

from contrastive_core.distributed import Gather, how_to_gather, world_size
from contrastive_core.losses._candidates import log_add, lse_of_others
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
from contrastive_core.losses.nt_xent import softplus
from contrastive_core.similarity import row_lse


@tensors_first
def info_nce(
    query: Tensor, key: Tensor, bank: Tensor | None = None, *, temperature: float | Tensor = 0.1, gather: Gather = False
) -> Tensor:
    """Of all keys, and the rows of a memory bank, which is the key of this query?

        loss = mean over queries i of   -log( exp(s(q_i, k_i)) / (sum_j exp(s(q_i, k_j)) + sum_m exp(s(q_i, b_m))) ),
        s = cos / temperature

    One direction; for both, add `info_nce(key, query)`. Memory O((N + M) D), time of up to four matrix products
    N x (N + M) x D. Gradients flow into whatever requires one; detach keys or bank to stop them (a bank usually holds
    detached rows, and then costs nothing in the backward pass but the queries' gradient). Computed in float32 or better
    whatever autocast says; below temperature 0.1 in float64. Close to 0 the loss keeps its relative precision.

    Args:
        query: [N, D], l2-normalised here.
        key: [N, D], row i is the positive of query i, the other rows are negatives; l2-normalised here.
        bank: [M, D], negatives for every query; l2-normalised here. None or M = 0: no bank.
        temperature: positive; 0.07 to 0.2 are usual;
            a number, or a tensor of one to learn it (the host reads it in every call).
        gather: the keys of all processes are negatives of this process's queries. With the mean of parameter gradients
            over processes, the loss of the union batch. "all" and "ring" say how they come (`how_to_gather`).

    Returns:
        Scalar, float64 if an input is, else float32.

    Edges: a row of zeros has similarity 0 with everything and no gradient; NaN embeddings give NaN.

    Raises:
        ValueError: shapes that differ; a single query without a bank, for there is nothing to contrast it with;
            temperature not positive and finite; with `gather`, numbers of queries that differ between processes (raised
            on each).
        TypeError: inputs that are not floating point, temperature not a number.

    References: van den Oord et al. 2018, "Representation Learning with Contrastive Predictive Coding", equation 4; the
    bank: He et al. 2020, "Momentum Contrast for Unsupervised Visual Representation Learning", section 3.

    >>> import torch
    >>> from contrastive_core import info_nce
    >>> info_nce(torch.eye(4), torch.eye(4), temperature=1.0)
    tensor(0.7437)
    """
    check_bank("info_nce", bank, "query", "key")
    t = Temperature("info_nce", temperature)
    inputs = {"query": query, "key": key} | ({} if bank is None else {"bank": bank})
    check_rows("info_nce", **inputs)
    check_same_count("info_nce", query=query, key=key)
    dtype = working_dtype(*inputs.values(), temperature=t.value)
    q, k = unit_rows(query, dtype), unit_rows(key, dtype)
    linked_q, linked_k = t.link(q), t.link(k)
    way = how_to_gather("info_nce", gather, k)
    half = are_half(*inputs.values())
    rest = row_lse(linked_q, linked_k, scale=t.scale, self_offset=0, max_norm=1.0, half=half)
    if way != "alone":
        rest = log_add(rest, lse_of_others(linked_q, linked_k, scale=t.scale, way=way, half=half))
    if bank is None or len(bank) == 0 or len(query) == 0:
        check_at_least_two("info_nce", len(query) if way == "alone" else len(query) * world_size())
    if bank is not None:
        # Apart from the keys: the bank's gradient is then computed only if it is wanted.
        negatives = t.link(unit_rows(bank, dtype))
        rest = log_add(rest, row_lse(linked_q, negatives, scale=t.scale, max_norm=1.0, half=half))
    return softplus(rest - t.divide(paired_similarity(q, k))).mean().to(result_dtype(*inputs.values()))


class InfoNCELoss(nn.Module):
    """:func:`info_nce` with its keywords held: ``InfoNCELoss(temperature=0.2)(query, key, bank)``."""

    @tensors_first
    def __init__(self, *, temperature: float | Tensor = 0.1, gather: Gather = False) -> None:
        super().__init__()
        check_learned_temperature("InfoNCELoss", temperature)
        self.temperature, self.gather = temperature, gather

    def forward(self, query: Tensor, key: Tensor, bank: Tensor | None = None) -> Tensor:
        return info_nce(query, key, bank, temperature=self.temperature, gather=self.gather)

    def extra_repr(self) -> str:
        return f"temperature={shown(self.temperature)}, gather={self.gather}"
