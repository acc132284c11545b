"""What the views of unlabelled clips are to learn: pseudo-labels made of the predictions of all views, or of one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from contrastive_core.pseudo_label import fuse
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
