"""Pseudo-labels from the predictions of several views, and the cross-entropy losses over views."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from contrastive_core.pseudo_label import fuse, hard_labels, sharpen
from contrastive_core.rng import derive, uniform

TargetKind = Literal["self", "random", "cross", "aggregated"]
TARGETS: tuple[TargetKind, ...] = ("self", "random", "cross", "aggregated")


class Targets(NamedTuple):
    """For M views of N clips and K classes."""

    probabilities: Tensor
    """What each view is to learn: float ``[M, N, K]``, no gradient."""
    usable: Tensor
    """Whether there is such a thing: bool ``[M, N]``; not where the view whose prediction it is, is missing."""


def make_targets(
    logits: Tensor,
    *,
    kind: TargetKind = "aggregated",
    fuse_by: Literal["probabilities", "logits"] = "probabilities",
    weights: Tensor | None = None,
    present: Tensor | None = None,
    sources: Sequence[int] | None = None,
) -> Targets:
    """The targets of every view from the predictions on weakly augmented clips.

    ``self``: its own prediction, FixMatch on every view. ``random`` and ``cross``: that of one other view.
    ``aggregated``: the mean over the views, the same for all; this is the method, the others are for comparison.

    Args:
        logits: of M views, float ``[M, N, K]``; no gradient goes back to them.
        kind: see above.
        fuse_by: for ``aggregated``, the mean of probabilities, or the softmax of the mean of logits.
        weights: for ``aggregated``, of the views ``[M]``; None: equal.
        present: bool ``[M, N]``, which views a clip has; None: all.
        sources: for ``random`` and ``cross``, from which view each takes its target; see `other_views`.

    Raises:
        ValueError: an unknown kind, or no sources where they are needed.

    Reference: Xiong, Fan, Grauman and Feichtenhofer, "Multiview Pseudo-Labeling for Semi-supervised Learning from
    Video", ICCV 2021, figure 2.
    """
    logits = logits.detach().to(torch.promote_types(logits.dtype, torch.float32))
    probabilities = logits.softmax(dim=-1)
    there = torch.ones(logits.shape[:2], dtype=torch.bool, device=logits.device) if present is None else present
    if kind == "self":
        return Targets(probabilities, there)
    if kind == "aggregated":
        given = logits if fuse_by == "logits" else probabilities
        fused = fuse(given, weights=weights, kind=fuse_by, present=present)
        any_view = there.any(dim=0)
        return Targets(fused.expand_as(probabilities), any_view.expand_as(there))
    if kind in ("random", "cross"):
        if sources is None or len(sources) != len(logits):
            raise ValueError(f"targets of kind {kind!r} need a source for each of the {len(logits)} views")
        return Targets(probabilities[list(sources)], there[list(sources)])
    raise ValueError(f"unknown target {kind!r}; expected one of {', '.join(TARGETS)}")


def other_views(kind: TargetKind, views: int, *, seed: int = 0, step: int = 0) -> list[int]:
    """From which view each takes its target: the next one (``cross``), or any other, drawn anew in every step.

    A single view has no other and takes its own.

    >>> other_views("cross", 3)
    [1, 2, 0]
    """
    if views == 1 or kind not in ("random", "cross"):
        return list(range(views))
    if kind == "cross":
        return [(v + 1) % views for v in range(views)]
    ids = torch.arange(views)
    draws = (uniform(derive(seed, "target", step), ids, 1)[:, 0] * (views - 1)).long()
    return ((ids + 1 + draws) % views).tolist()


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
    threshold: float | Tensor,
    soft: bool = False,
    temperature: float = 1.0,
    present: Tensor | None = None,
    weights: Tensor | None = None,
) -> PseudoLabelLoss:
    """``1 / N sum_j 1 / M_j sum_v [max q_vj >= threshold] CE(logits_vj, target_vj)``, on strongly augmented clips.

    The mean is over all N clips, not over those selected, as in FixMatch: few confident clips, a small loss.

    Args:
        logits: of M views, ``[M, N, K]``.
        targets: q, of `make_targets`.
        threshold: Smallest confidence that counts: a number, or one for each class ``[K]``.
        soft: learn the distribution ``q^(1 / temperature)``, normalised, instead of its largest class.
        temperature: of soft targets; the threshold is on q itself.
        present: bool ``[M, N]``, which views a clip has; None: all.
        weights: Weight of each target ``[M, N]``; None: 1.
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
    counted = losses.view(m, n) * mask
    loss = _mean_over_views(counted if weights is None else counted * weights, there).mean()
    return PseudoLabelLoss(loss, mask, labels, confidence)


def _precise(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _there(present: Tensor | None, like: Tensor) -> Tensor:
    return torch.ones_like(like) if present is None else present.to(like.dtype)


def _mean_over_views(losses: Tensor, there: Tensor) -> Tensor:
    return (losses * there).sum(dim=0) / there.sum(dim=0).clamp(min=1)
