"""What the losses share: checks at the boundary, normalisation, the labels of anchors."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from contrastive_core.distributed import gather_labels, gather_rows, rank, world_size
from contrastive_core.similarity import row_lse, self_lse


def check_temperature(temperature: float) -> None:
    """A temperature is a positive finite number."""
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature must be positive and finite, got {temperature}")


def check_matrix(name: str, x: Tensor) -> None:
    """Embeddings are a floating-point matrix."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor [N, D], got {type(x).__name__}")
    if x.ndim != 2 or not x.is_floating_point():
        raise ValueError(f"{name} must be a floating-point matrix [N, D], got {x.dtype} {tuple(x.shape)}")


def check_same_shape(**pair: Tensor) -> None:
    """Two tensors that belong together row by row."""
    (first, a), (second, b) = pair.items()
    if a.shape != b.shape:
        raise ValueError(f"{first} and {second} must have the same shape, got {tuple(a.shape)} and {tuple(b.shape)}")


def normalise(x: Tensor) -> Tensor:
    """Rows divided by their length, in float32 or better.

    Rows are first brought to a largest entry of 1, so that no square over- or underflows; the direction, and so the
    gradient, does not change by that. A row of zeros stays zero and passes its gradient on as it is.
    """
    x = x if x.dtype == torch.float64 else x.float()
    largest = x.detach().abs().amax(dim=1, keepdim=True)
    x = x / torch.where(largest > 0, largest, 1.0)
    length = x.square().sum(dim=1, keepdim=True)
    return x / torch.where(length > 0, length, 1.0).sqrt()


@dataclass(frozen=True)
class LabelledRows:
    """Normalised rows with labels: those of this process (the anchors) among those of all (the candidates).

    Attributes:
        anchors: ``[N, D]``, rows ``first .. first + N`` of candidates.
        candidates: ``[M, D]``.
        classes: ``[M]``, the class of every candidate as 0 .. C-1.
        counts: ``[C]``, how many candidates a class has.
        first: where the anchors begin.
    """

    anchors: Tensor
    candidates: Tensor
    classes: Tensor
    counts: Tensor
    first: int

    @property
    def anchor_classes(self) -> Tensor:
        """``[N]``, the class of every anchor."""
        return self.classes[self.first : self.first + len(self.anchors)]

    @property
    def has_positive(self) -> Tensor:
        """``[N]``, whether an anchor's class has another candidate."""
        return self.counts[self.anchor_classes] > 1

    def lse_all(self, scale: float) -> Tensor:
        """``[N]``: log-sum-exp over all candidates but the anchor itself."""
        if self.anchors is self.candidates:
            return self_lse(self.anchors, scale=scale)
        return row_lse(self.anchors, self.candidates, scale=scale, self_offset=self.first)

    def mean(self, values: Tensor) -> Tensor:
        """Mean over anchors that have a positive; the mean of it over processes is that over all their anchors.

        Without any, 0 with a zero gradient.
        """
        live = int((self.counts * (self.counts > 1)).sum())
        kept = torch.where(self.has_positive, values, torch.zeros_like(values))
        return kept.sum() * (len(self.candidates) / len(self.anchors) / live if live else 0.0)


def labelled_rows(z: Tensor, labels: Tensor, *, gather: bool) -> LabelledRows:
    """Check, normalise and, if asked, gather.

    Raises:
        TypeError: labels are not whole numbers.
        ValueError: shapes do not belong together, or fewer than two samples.
    """
    check_matrix("z", z)
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        found = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise TypeError(f"labels must be a tensor of whole numbers [N], got {found}")
    if labels.shape != z.shape[:1]:
        raise ValueError(f"labels must have one entry per row of z, got {tuple(labels.shape)} for z {tuple(z.shape)}")
    anchors = candidates = normalise(z)
    first = 0
    if gather and world_size() > 1:
        candidates, labels = gather_rows(anchors), gather_labels(labels)
        first = rank() * len(anchors)
    if len(candidates) < 2:
        raise ValueError(f"a contrastive loss needs at least two samples, got {len(candidates)}")
    _, classes, counts = labels.to(z.device).unique(return_inverse=True, return_counts=True)
    return LabelledRows(anchors, candidates, classes, counts, first)


def skipped_anchors(labels: Tensor, *, gather: bool = False) -> int:
    """How many anchors SuNCEt and SupCon leave out because no other sample has their label (of all processes: gather)."""
    counts = (gather_labels(labels) if gather else labels).unique(return_counts=True)[1]
    return int((counts == 1).sum())
