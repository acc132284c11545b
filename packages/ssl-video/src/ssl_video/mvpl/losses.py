"""Pseudo-labels from the predictions of several views, and the cross-entropy losses over views."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from contrastive_core.pseudo_label import fuse, hard_labels, sharpen
from contrastive_core.rng import derive, uniform
from contrastive_core.similarity.precision import full

TargetKind = Literal["self", "random", "cross", "aggregated"]
Selection = Literal["fixed", "freematch", "softmatch"]
_NO_CLASS = -(2**31)  # no label has this number
USUAL_THRESHOLD = 0.4
"""Fixed threshold that was best in our measurements, with ten classes and two or three views."""
TARGETS: tuple[TargetKind, ...] = ("self", "random", "cross", "aggregated")


class Targets(NamedTuple):
    """Targets of M views of N clips with K classes."""

    probabilities: Tensor
    """Target of each view, float ``[M, N, K]``, without gradient."""
    usable: Tensor
    """Whether the target exists, bool ``[M, N]``: false if its source view is missing (all of weight above 0)."""


def make_targets(
    logits: Tensor,
    *,
    kind: TargetKind = "aggregated",
    fuse_by: Literal["probabilities", "logits"] = "probabilities",
    weights: Tensor | None = None,
    present: Tensor | None = None,
    sources: Sequence[int] | None = None,
) -> Targets:
    """Make the targets of every view from the predictions on weakly augmented clips.

    ``aggregated``, the mean over the views, is MvPL. The others are for comparison: ``self``, the view's own prediction
    (FixMatch on every view), and ``random`` and ``cross``, the prediction of one other view.

    Args:
        logits: Logits of M views, float ``[M, N, K]``; they receive no gradient.
        kind: Kind of the targets.
        fuse_by: For ``aggregated``: mean of probabilities, or softmax of the mean of logits.
        weights: For ``aggregated``: weights of the views ``[M]``; None: equal.
        present: Whether each clip has each view, bool ``[M, N]``; None: all have.
        sources: For ``random`` and ``cross``: source view of each view, see `other_views`.

    Raises:
        ValueError: The kind is unknown, or `sources` are missing.

    Reference: Xiong, Fan, Grauman and Feichtenhofer, "Multiview Pseudo-Labeling for Semi-supervised Learning from
    Video", ICCV 2021, figure 2.
    """
    logits = full(logits.detach())
    probabilities = logits.softmax(dim=-1)
    there = torch.ones(logits.shape[:2], dtype=torch.bool, device=logits.device) if present is None else present
    if kind == "self":
        return Targets(probabilities, there)
    if kind == "aggregated":
        predictions = logits if fuse_by == "logits" else probabilities
        fusion = fuse(predictions, weights=weights, kind=fuse_by, present=present)
        usable = there if weights is None else there & (weights > 0)[:, None]
        return Targets(fusion.expand_as(probabilities), usable.any(dim=0).expand_as(there))
    if kind in ("random", "cross"):
        if sources is None or len(sources) != len(logits):
            raise ValueError(f"targets of kind {kind!r} need a source for each of the {len(logits)} views")
        return Targets(probabilities[list(sources)], there[list(sources)])
    raise ValueError(f"unknown target {kind!r}; expected one of {', '.join(TARGETS)}")


def other_views(kind: TargetKind, views: int, *, seed: int = 0, step: int = 0) -> list[int]:
    """Return the source view of each view: the next one (``cross``), or another one drawn for the step (``random``).

    A single view is its own source.

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
    """Loss on unlabelled clips, and its parts."""

    loss: Tensor
    """Scalar."""
    mask: Tensor
    """Whether the target of a view is used, bool ``[M, N]``."""
    labels: Tensor
    """Pseudo-label of each view, int64 ``[M, N]``, whether it is used or not."""
    confidence: Tensor
    """Largest probability of each target, ``[M, N]``."""


def supervised_loss(logits: Tensor, labels: Tensor, *, present: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Cross-entropy over the M_j views that clip j has: ``1 / N sum_j 1 / M_j sum_v CE(logits_vj, y_j)``.

    Args:
        logits: Logits of M views ``[M, N, K]``.
        labels: Classes, int64 ``[N]``.
        present: Whether each clip has each view, bool ``[M, N]``; None: all have.

    Returns:
        The loss, a scalar, 0 without clips; and the mean loss of each view over the clips that have it ``[M]``, without
        gradient, 0 if there are none.
    """
    losses = _cross_entropy(logits, labels.expand(len(logits), -1))
    there = _there(present, losses)
    by_view = (losses.detach() * there).sum(dim=1) / there.sum(dim=1).clamp(min=1)
    return _mean_over_clips(losses, there), by_view


def pseudo_label_loss(
    logits: Tensor,
    targets: Targets,
    *,
    threshold: float | Tensor,
    soft: bool = False,
    temperature: float = 1.0,
    present: Tensor | None = None,
    weights: Tensor | None = None,
    partners: Tensor | None = None,
    share: Tensor | None = None,
) -> PseudoLabelLoss:
    """Cross-entropy of strongly augmented clips with their confident targets.

        L = 1 / N sum_j 1 / M_j sum_v m_vj CE(logits_vj, target_vj),  m_vj = [max q_vj >= threshold]

    As in FixMatch, the mean is over all N clips, not over the selected ones, so that few confident clips give a small
    loss. A mixed clip (see `ssl_video.mvpl.mixing`) consists of a share s_vj of clip j and the rest of its partner p;
    the target is mixed likewise, which for a cross-entropy is the same as mixing the losses:

        s_vj m_vj CE(logits_vj, target_vj) + (1 - s_vj) m_vp CE(logits_vj, target_vp)

    Args:
        logits: Logits of M views ``[M, N, K]``.
        targets: Targets q from `make_targets`.
        threshold: Smallest confidence of a target to use: a number, or one per class ``[K]``.
        soft: Train on the normalised distribution ``q^(1 / temperature)`` instead of its largest class.
        temperature: Temperature of soft targets; the threshold applies to q itself.
        present: Whether each clip has each view, bool ``[M, N]``; None: all have.
        weights: Weight of each target ``[M, N]``; None: 1.
        partners: Partner of each clip, int64 ``[N]``; None: no mixing.
        share: Share of a clip that remains ``[M, N]``; needed with `partners`.
    """
    m, n, k = logits.shape
    flat_targets = targets.probabilities.reshape(m * n, k)
    labels, confidence, sure = (value.view(m, n) for value in hard_labels(flat_targets, threshold=threshold))
    there = _there(present, confidence)
    mask = sure & targets.usable & (there > 0)
    counts = mask.to(confidence.dtype) if weights is None else mask * weights
    target = labels
    if soft:
        # Unused targets may not be distributions at all.
        target = sharpen(flat_targets.where(mask.view(-1, 1), 1 / k), temperature=temperature).view(m, n, k)
    losses = counts * _cross_entropy(logits, target)
    if partners is not None and share is not None:
        partner_losses = counts[:, partners] * _cross_entropy(logits, target[:, partners])
        losses = share * losses + (1 - share) * partner_losses
    return PseudoLabelLoss(_mean_over_clips(losses, there), mask, labels, confidence)


def feature_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Compute the mean over clips of ``1 - cos(student, teacher)``; the teacher receives no gradient.

    Args:
        student: Features of the frames ``[N, D]``.
        teacher: Features of the temporal gradient ``[N, D]``.

    Reference: Xiao et al., "Learning from Temporal Gradient for Semi-supervised Action Recognition" (LTG), CVPR 2022,
    section 3.3. The paper compares two networks after each of four stages and adds a contrastive loss; this function
    compares features of one network, after its last pooling.
    """
    return (1 - F.cosine_similarity(full(student), full(teacher.detach()), dim=-1)).mean()


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy ``[M, N]`` of logits ``[M, N, K]`` with classes ``[M, N]`` or distributions ``[M, N, K]``."""
    m, n, k = logits.shape
    flat = full(logits).reshape(m * n, k)
    flat_target = target.reshape(m * n) if target.ndim == 2 else target.reshape(m * n, k).to(flat.dtype)
    # By default, -100 is ignored: the loss of such a label would be 0.
    return F.cross_entropy(flat, flat_target, reduction="none", ignore_index=_NO_CLASS).view(m, n)


def _there(present: Tensor | None, like: Tensor) -> Tensor:
    return torch.ones_like(like) if present is None else present.to(like.dtype)


def _mean_over_clips(losses: Tensor, there: Tensor) -> Tensor:
    """Mean over clips of the mean over their views; 0 without clips."""
    by_clip = (losses * there).sum(dim=0) / there.sum(dim=0).clamp(min=1)
    return by_clip.sum() / max(1, len(by_clip))
