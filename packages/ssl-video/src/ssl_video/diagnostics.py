"""What to watch while pseudo-labels are learned: how many count, whether the views agree, which classes they are of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from ssl_video.losses import PseudoLabelLoss


class Diagnostics(NamedTuple):
    """Of the pseudo-labels of one step; all are tensors, so that nothing waits for an accelerator."""

    coverage: Tensor
    """Share of the clips' views whose pseudo-label counts."""
    confidence: Tensor
    """Mean of the targets' largest probability."""
    agreement: Tensor
    """Share of the pairs of views, of the same clip, that predict the same class; 1 of one view."""
    histogram: Tensor
    """How many of the counting pseudo-labels are of each class, ``[K]``."""
    accuracy: Tensor | None = None
    """Share of the counting pseudo-labels that are right, where the truth was given; NaN of none."""
    accuracy_all: Tensor | None = None
    """The same over all, confident or not."""
    accuracy_by_view: Mapping[str, Tensor] = MappingProxyType({})
    """By view, share of the clips whose weak view alone is classified right."""

    def scalars(self) -> dict[str, Tensor]:
        """The numbers by name, as a log takes them."""
        named = {"coverage": self.coverage, "confidence": self.confidence, "agreement": self.agreement}
        if self.accuracy is not None and self.accuracy_all is not None:
            named |= {"pseudo_accuracy": self.accuracy, "pseudo_accuracy_all": self.accuracy_all}
        return named | {f"pseudo_accuracy_{view}": value for view, value in self.accuracy_by_view.items()}


@torch.no_grad()
def diagnose(
    logits: Tensor, found: PseudoLabelLoss, *, present: Tensor, views: Sequence[str], truth: Tensor | None = None
) -> Diagnostics:
    """See `Diagnostics`.

    Args:
        logits: of the weak views, ``[M, N, K]``.
        found: the loss on them.
        present: bool ``[M, N]``.
        views: names of the M views.
        truth: int64 ``[N]``.
    """
    m, _, k = logits.shape
    there = present.to(logits.dtype)
    weight = there.sum().clamp(min=1)
    predicted = logits.argmax(dim=-1)
    both = present[:, None] & present[None, :]
    first, second = torch.triu_indices(m, m, offset=1, device=logits.device).unbind()
    pairs = both[first, second]
    same = (predicted[first] == predicted[second]) & pairs
    agreement = same.sum() / pairs.sum().clamp(min=1) if m > 1 else logits.new_ones(())
    counted = found.mask.to(logits.dtype)
    histogram = torch.zeros(k, device=logits.device).index_add_(0, found.labels.flatten(), counted.flatten().float())
    result = Diagnostics(
        coverage=counted.sum() / weight,
        confidence=(found.confidence * there).sum() / weight,
        agreement=agreement,
        histogram=histogram,
    )
    if truth is None:
        return result
    right = (found.labels == truth).to(logits.dtype)
    alone = (predicted == truth).to(logits.dtype)
    return result._replace(
        accuracy=(right * counted).sum() / counted.sum(),
        accuracy_all=(right * there).sum() / weight,
        accuracy_by_view={
            view: (alone[v] * there[v]).sum() / there[v].sum().clamp(min=1) for v, view in enumerate(views)
        },
    )
