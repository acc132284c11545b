"""Cross-entropy over views: on labelled clips, and on the pseudo-labels that are confident enough."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from contrastive_core.pseudo_label import hard_labels, sharpen
from ssl_video.targets import Targets


class PseudoLabelLoss(NamedTuple):
    """The loss on unlabelled clips, and what it was made of."""

    loss: Tensor
    """Scalar."""
    mask: Tensor
    """Which view of which clip counts: bool ``[M, N]``."""
    labels: Tensor
    """The class each view is to learn: int64 ``[M, N]``, also where it does not count."""
    confidence: Tensor
    """The largest probability of each target: ``[M, N]``."""


def supervised_loss(logits: Tensor, labels: Tensor, *, present: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """``1 / N sum_j 1 / M_j sum_v CE(logits_vj, y_j)``, over the M_j views that clip j has.

    Args:
        logits: of M views, ``[M, N, K]``.
        labels: int64 ``[N]``.
        present: bool ``[M, N]``, which views a clip has; None: all.

    Returns:
        The loss, scalar, and the mean of each view over the clips that have it ``[M]``, without gradient (0 of none).
    """
    m, n, k = logits.shape
    losses = F.cross_entropy(_precise(logits).reshape(m * n, k), labels.repeat(m), reduction="none").view(m, n)
    there = _there(present, losses)
    by_view = (losses.detach() * there).sum(dim=1) / there.sum(dim=1).clamp(min=1)
    return _mean_over_views(losses, there).mean(), by_view


def pseudo_label_loss(
    logits: Tensor,
    targets: Targets,
    *,
    threshold: float,
    soft: bool = False,
    temperature: float = 1.0,
    present: Tensor | None = None,
) -> PseudoLabelLoss:
    """``1 / N sum_j 1 / M_j sum_v [max q_vj >= threshold] CE(logits_vj, target_vj)``, on strongly augmented clips.

    The mean is over all N clips, not over those selected, as in FixMatch: few confident clips, a small loss.

    Args:
        logits: of M views, ``[M, N, K]``.
        targets: q, of `make_targets`.
        threshold: how large the largest probability must be.
        soft: learn the distribution ``q^(1 / temperature)``, normalised, instead of its largest class.
        temperature: of soft targets; the threshold is on q itself.
        present: bool ``[M, N]``, which views a clip has; None: all.
    """
    m, n, k = logits.shape
    flat, learned = _precise(logits).reshape(m * n, k), targets.probabilities.reshape(m * n, k)
    labels, confidence, sure = (part.view(m, n) for part in hard_labels(learned, threshold=threshold))
    there = _there(present, confidence)
    mask = sure & targets.usable & (there > 0)
    if soft:
        # What does not count may be no distribution at all.
        sharp = sharpen(learned.where(mask.view(-1, 1), 1 / k), temperature=temperature)
        losses = F.cross_entropy(flat, sharp.to(flat.dtype), reduction="none")
    else:
        losses = F.cross_entropy(flat, labels.reshape(m * n), reduction="none")
    loss = _mean_over_views(losses.view(m, n) * mask, there).mean()
    return PseudoLabelLoss(loss, mask, labels, confidence)


def _precise(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _there(present: Tensor | None, like: Tensor) -> Tensor:
    return torch.ones_like(like) if present is None else present.to(like.dtype)


def _mean_over_views(losses: Tensor, there: Tensor) -> Tensor:
    return (losses * there).sum(dim=0) / there.sum(dim=0).clamp(min=1)
