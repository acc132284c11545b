"""Classification by the nearest neighbours in feature space."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def knn_scores(
    query: Tensor, bank: Tensor, labels: Tensor, *, num_classes: int, k: int = 200, temperature: float = 0.1
) -> Tensor:
    """Class scores by a weighted vote of the k nearest features.

    ``score[i, c] = sum of exp(cos(q_i, b_j) / temperature)`` over those of the k most similar bank rows j of class c.

    Shapes: query ``[Q, D]``, bank ``[M, D]``, labels ``[M]`` -> ``[Q, num_classes]``. Memory O(Q + M) rows beside a
    block of similarities. The vote of Wu et al. 2018 (instance discrimination), which the SimCLR literature reports.
    """
    bank = F.normalize(bank.float(), dim=1)
    k = min(k, len(bank))
    scores = []
    for block in torch.tensor_split(F.normalize(query.float(), dim=1), list(range(1024, len(query), 1024))):
        similarity, neighbour = (block @ bank.T).topk(k, dim=1)
        # Only ratios matter to the vote, so the largest weight is 1 and a small temperature cannot overflow.
        weight = ((similarity - similarity[:, :1]) / temperature).exp()
        votes = torch.zeros(len(block), num_classes, device=block.device)
        scores.append(votes.scatter_add_(1, labels[neighbour], weight))
    return torch.cat(scores)
