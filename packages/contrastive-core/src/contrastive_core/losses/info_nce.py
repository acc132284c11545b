"""InfoNCE: every query finds its key among the keys of the batch and a memory bank."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from contrastive_core.losses._common import check_matrix, check_same_shape, check_temperature, normalise
from contrastive_core.similarity import row_lse


def info_nce(query: Tensor, key: Tensor, bank: Tensor | None = None, *, temperature: float = 0.1) -> Tensor:
    """Cross-entropy of picking the key of the same row.

    ``loss = mean over i of  log(sum over j of exp(s(q_i, k_j)) + sum over m of exp(s(q_i, b_m))) - s(q_i, k_i)``
    with ``s(a, b) = cos(a, b) / temperature``.

    Shapes: query, key ``[N, D]``, row i belonging together, bank ``[M, D]`` or None, of any length -> scalar. For an image and
    text pair, average both directions; for a momentum encoder, pass its detached keys and its queue as bank.

    Memory O((N + M) D); the gradient of an operand that needs none is not computed. dtype and zero rows as in
    :func:`contrastive_core.nt_xent`.

    Raises:
        ValueError: shapes do not belong together, no rows, no alternative to the key, temperature not positive.

    Reference: van den Oord et al. 2018, "Representation Learning with Contrastive Predictive Coding", Eq. 4; with a bank,
    He et al. 2020, "Momentum Contrast", Eq. 1.

    >>> import torch
    >>> from contrastive_core import info_nce
    >>> round(info_nce(torch.eye(3), torch.eye(3), temperature=0.5).item(), 4)  # log(1 + 2 exp(-2))
    0.2395
    """
    check_temperature(temperature)
    check_matrix("query", query)
    check_matrix("key", key)
    check_same_shape(query=query, key=key)
    scale = 1 / temperature
    q, k = normalise(query), normalise(key)
    candidates = k
    if bank is not None:
        check_matrix("bank", bank)
        if bank.shape[1] != key.shape[1]:
            raise ValueError(f"bank must be as wide as key, got {tuple(bank.shape)} and {tuple(key.shape)}")
        candidates = torch.cat([k, normalise(bank).to(k.dtype)])
    if len(q) == 0 or len(candidates) < 2:
        raise ValueError(f"info_nce needs a query and at least two candidates, got {len(q)} and {len(candidates)}")
    return row_lse(q, candidates, scale=scale).mean() - scale * (q * k).sum(dim=1).mean()


class InfoNCELoss(nn.Module):
    """:func:`info_nce` with its keyword held."""

    def __init__(self, *, temperature: float = 0.1) -> None:
        super().__init__()
        check_temperature(temperature)
        self.temperature = temperature

    def forward(self, query: Tensor, key: Tensor, bank: Tensor | None = None) -> Tensor:
        return info_nce(query, key, bank, temperature=self.temperature)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"
