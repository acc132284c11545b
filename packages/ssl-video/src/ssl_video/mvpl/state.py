"""Running state of MvPL: view weights, distribution alignment, and diagnostics of pseudo-labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch import distributed as dist

from contrastive_core.distributed import is_distributed, world_size
from ssl_video.mvpl.losses import PseudoLabelLoss

_DECAY = 0.99


class _Averages(nn.Module):
    """Running averages, in float32 or float64 also after the module is converted to half precision.

    bfloat16 rounds off nearly all updates of 1 %, so that the averages would never reach their values.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> _Averages:
        def move(value: Tensor) -> Tensor:
            result = fn(value)
            return value.to(result.device) if result.dtype.itemsize < value.dtype.itemsize else result

        super()._apply(move, recurse)  # type: ignore[no-untyped-call]
        return self


class ViewWeights(_Averages):
    """Weights of the views when their predictions are fused.

    Args:
        fusion: ``exact``: equal weights; ``adaptive``: ``w_v ~ exp(-L_v)``, where L_v is the supervised loss of the
            view averaged over steps (decay 0.99, unbiased from the start); or numbers, one per view.
        views: Names of the views.

    Raises:
        ValueError: The number of weights differs from that of the views, or they are negative, or all 0.
    """

    losses: Tensor
    steps: Tensor

    def __init__(self, fusion: Literal["exact", "adaptive"] | Sequence[float], views: Sequence[str]) -> None:
        super().__init__()
        self.adaptive, self.fixed = fusion == "adaptive", None
        if not isinstance(fusion, str):
            self.fixed = torch.tensor([float(weight) for weight in fusion], dtype=torch.float32)
            if len(self.fixed) != len(views) or not math.isfinite(self.fixed.sum()) or (self.fixed < 0).any():
                raise ValueError(
                    f"fusion is {list(fusion)}; expected {len(views)} weights of at least 0, for {', '.join(views)}"
                )
            if not self.fixed.any():
                raise ValueError("fusion is all 0; expected at least one view with a positive weight")
        elif fusion not in ("exact", "adaptive"):
            raise ValueError(f"fusion is {fusion!r}; expected exact, adaptive, or one weight per view")
        self.register_buffer("losses", torch.zeros(len(views), dtype=torch.float32))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self) -> Tensor | None:
        """Return the weights ``[M]``, which sum to 1; None: equal ones."""
        if self.fixed is not None:
            return (self.fixed / self.fixed.sum()).to(self.losses.device)
        if not self.adaptive:
            return None
        return (-self._means()).softmax(dim=0)

    def _means(self) -> Tensor:
        # Before the first step all losses are 0 and the weights equal; reading the step would wait for the device.
        return self.losses / (1 - _DECAY**self.steps).clamp(min=_DECAY * (1 - _DECAY))

    @torch.no_grad()
    def remember(self, losses: Tensor, clips: Tensor | None = None) -> None:
        """Update the averages with the supervised loss of each view ``[M]`` in this step.

        The average of a view that no clip has, or whose loss is not finite, stays; before its first clip it is the mean
        of the others.

        Args:
            losses: Mean loss of each view.
            clips: Number of clips that have the view ``[M]``; None: all views have as many.
        """
        if not self.adaptive:
            return
        losses = losses.to(self.losses.dtype)
        count = losses.isfinite().to(losses.dtype) * (1 if clips is None else clips)
        total, count = _over_processes(torch.stack([losses.nan_to_num(0, 0, 0) * count, count])).unbind()
        seen = count > 0
        now = total / count.clamp(min=torch.finfo(count.dtype).tiny)
        mean = now.sum() / seen.sum().clamp(min=1)
        now = torch.where(seen, now, torch.where(self.steps > 0, self._means(), mean))
        self.losses.lerp_(now, (1 - _DECAY) * seen.any().to(now.dtype))
        self.steps += seen.any()


class DistributionAlignment(_Averages):
    """Align the mean of the targets with the labels: ``q' ~ q * (share among labels) / (running mean of q)``.

    Reference: Berthelot et al., "ReMixMatch", ICLR 2020, section 3.1. Our running mean decays by 0.99 per step; the
    paper averages over the last 128 batches.
    """

    labels: Tensor
    mean: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.register_buffer("labels", torch.ones(classes, dtype=torch.float32))
        self.register_buffer("mean", torch.full((classes,), 1 / classes, dtype=torch.float32))

    @torch.no_grad()
    def forward(self, probabilities: Tensor, usable: Tensor) -> Tensor:
        """Align targets ``[M, N, K]``; those that are not `usable` ``[M, N]`` do not enter the running mean."""
        share = self.labels / self.labels.sum()
        result = probabilities * (share / self.mean.clamp(min=1e-6)).to(probabilities.dtype)
        result = result / result.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(result.dtype).tiny)
        if self.training:
            # Sums rather than a selection, whose size must be read from the device.
            total = torch.where(usable[..., None], probabilities, 0).to(self.mean.dtype).sum(dim=(0, 1))
            total, count = _over_processes(total), _over_processes(usable.sum().to(self.mean.dtype))
            step = (1 - _DECAY) * (count > 0).to(self.mean.dtype)
            self.mean.lerp_(total / count.clamp(min=torch.finfo(self.mean.dtype).tiny), step)
        return result

    @torch.no_grad()
    def count(self, labels: Tensor) -> None:
        """Count the labels of a step."""
        # Not torch.bincount, which reads the largest label from the device.
        seen = torch.zeros_like(self.labels).index_add_(0, labels, torch.ones_like(labels, dtype=self.labels.dtype))
        self.labels += _over_processes(seen) * world_size()


class AdaptiveThreshold(_Averages):
    """Thresholds of pseudo-labels per class that follow the confidence of the network (FreeMatch).

        tau = EMA of the mean over targets of max_c q_c, starting at 1 / K
        p_c = EMA of the mean of q_c, starting at 1 / K
        threshold of class c = tau * p_c / max_k p_k

    Reference: Wang et al., "FreeMatch: Self-adaptive Thresholding for Semi-supervised Learning", ICLR 2023, eq. 4 to 8.

    Args:
        classes: Number of classes K.
        decay: Decay of the averages per step; 0.999 in the paper, 0.99 for runs of some thousand steps.
    """

    confidence: Tensor
    mean: Tensor

    def __init__(self, classes: int, *, decay: float = 0.99) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("confidence", torch.tensor(1 / classes, dtype=torch.float32))
        self.register_buffer("mean", torch.full((classes,), 1 / classes, dtype=torch.float32))

    @torch.no_grad()
    def forward(self, probabilities: Tensor, usable: Tensor) -> Tensor:
        """Update the averages with the usable ``[M, N]`` targets ``[M, N, K]``; return the thresholds ``[K]``."""
        if self.training:
            now = torch.where(usable[..., None], probabilities, 0).to(self.mean.dtype)
            sums = torch.cat([now.amax(dim=-1).sum()[None], now.sum(dim=(0, 1))])
            means, share, _ = _mean_of_usable(sums, usable, decay=self.decay)
            self.confidence.lerp_(means[0], share)
            self.mean.lerp_(means[1:], share)
        return self.confidence * self.mean / self.mean.amax()


class SoftWeights(_Averages):
    """Weight pseudo-labels by a truncated Gaussian of their confidence instead of a threshold (SoftMatch).

        mu, var = EMA of mean and variance over targets of max_c q_c, starting at 1 / K and 1
        weight = exp(-min(max_c q_c - mu, 0)^2 / (2 var / 4))

    Reference: Chen et al., "SoftMatch: Addressing the Quantity-Quality Trade-off in Semi-supervised Learning", ICLR
    2023, eq. 5 to 7; the 4 comes from its code (two standard deviations).

    Args:
        classes: Number of classes K.
        decay: Decay of the averages per step; 0.999 in the paper, 0.99 for runs of some thousand steps.
    """

    confidence: Tensor
    variance: Tensor

    def __init__(self, classes: int, *, decay: float = 0.99) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("confidence", torch.tensor(1 / classes, dtype=torch.float32))
        self.register_buffer("variance", torch.tensor(1.0, dtype=torch.float32))

    @torch.no_grad()
    def forward(self, probabilities: Tensor, usable: Tensor) -> Tensor:
        """Update the averages with the usable ``[M, N]`` targets ``[M, N, K]``; return the weights ``[M, N]``."""
        largest = probabilities.amax(dim=-1).to(self.confidence.dtype)
        if self.training:
            mean, share, _ = _mean_of_usable(torch.where(usable, largest, 0).sum()[None], usable, decay=self.decay)
            squares = torch.where(usable, largest - mean, 0).square().sum()[None]
            variance, _, count = _mean_of_usable(squares, usable, decay=self.decay)
            self.confidence.lerp_(mean[0], share)
            self.variance.lerp_(variance[0] * count / (count - 1).clamp(min=1), share)
        below = (largest - self.confidence).clamp(max=0)
        return torch.exp(-below.square() / (2 * self.variance.clamp(min=1e-12) / 4))


def _mean_of_usable(sums: Tensor, usable: Tensor, *, decay: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return sums over the usable targets as means, the share that averages move by, and the number of targets.

    All over the targets of all processes; without usable ones the share is 0. No branch depends on values: every
    process takes part in the exchange, and none waits for its device.
    """
    totals = _over_processes(torch.cat([sums, usable.sum()[None].to(sums.dtype)])) * world_size()
    count = totals[-1]
    return totals[:-1] / count.clamp(min=1), (1 - decay) * (count > 0).to(sums.dtype), count


def _over_processes(value: Tensor) -> Tensor:
    """Average over processes, so that the buffers stay the same on all."""
    if is_distributed() and world_size() > 1:
        value = value.clone()
        dist.all_reduce(value)
        value /= world_size()
    return value


class Diagnostics(NamedTuple):
    """Diagnostics of the pseudo-labels of one step, as tensors, so that nothing waits for the device."""

    coverage: Tensor
    """Share of the clips' views whose pseudo-label is used."""
    confidence: Tensor
    """Mean of the largest probability of the targets."""
    agreement: Tensor
    """Share of pairs of views of one clip that predict the same class; 1 with a single view."""
    histogram: Tensor
    """Number of used pseudo-labels of each class, ``[K]``."""
    accuracy: Tensor | None = None
    """Share of used pseudo-labels that are correct, if the truth was given; NaN if none is used."""
    accuracy_all: Tensor | None = None
    """The same for all pseudo-labels, confident or not."""
    accuracy_by_view: Mapping[str, Tensor] = MappingProxyType({})
    """By view, accuracy of the weakly augmented view alone."""

    def scalars(self) -> dict[str, Tensor]:
        """Return the numbers by name, for a log."""
        values = {"coverage": self.coverage, "confidence": self.confidence, "agreement": self.agreement}
        if self.accuracy is not None and self.accuracy_all is not None:
            values |= {"pseudo_accuracy": self.accuracy, "pseudo_accuracy_all": self.accuracy_all}
        return values | {f"pseudo_accuracy_{view}": value for view, value in self.accuracy_by_view.items()}


@torch.no_grad()
def diagnose(
    logits: Tensor,
    found: PseudoLabelLoss,
    *,
    present: Tensor,
    usable: Tensor,
    views: Sequence[str],
    truth: Tensor | None = None,
) -> Diagnostics:
    """Compute the diagnostics of one step.

    Args:
        logits: Logits of the weak views, ``[M, N, K]``.
        found: Loss on them.
        present: Whether each clip has each view, bool ``[M, N]``.
        usable: Whether each target exists, bool ``[M, N]``.
        views: Names of the M views.
        truth: Classes int64 ``[N]``, -1 if unknown; those are ignored.
    """
    m, _, k = logits.shape
    there, targets = present.to(logits.dtype), (present & usable).to(logits.dtype)
    predictions = logits.argmax(dim=-1)
    both = present[:, None] & present[None, :]
    first, second = torch.triu_indices(m, m, offset=1, device=logits.device).unbind()
    pairs = both[first, second]
    same = (predictions[first] == predictions[second]) & pairs
    agreement = same.sum() / pairs.sum().clamp(min=1) if m > 1 else logits.new_ones(())
    weights = found.mask.to(logits.dtype)
    histogram = logits.new_zeros(k, dtype=torch.float32)
    histogram.index_add_(0, found.labels.flatten(), weights.flatten().float())
    result = Diagnostics(
        coverage=weights.sum() / there.sum().clamp(min=1),
        confidence=torch.where(targets > 0, found.confidence, 0).sum() / targets.sum().clamp(min=1),
        agreement=agreement,
        histogram=histogram,
    )
    if truth is None:
        return result
    has_truth = (truth >= 0).to(logits.dtype)
    there, targets, weights = there * has_truth, targets * has_truth, weights * has_truth
    right = (found.labels == truth).to(logits.dtype)
    alone = (predictions == truth).to(logits.dtype)
    return result._replace(
        # NaN if no pseudo-label with a known class is used.
        accuracy=(right * weights).sum() / weights.sum(),
        accuracy_all=(right * targets).sum() / targets.sum(),
        accuracy_by_view={view: (alone[v] * there[v]).sum() / there[v].sum() for v, view in enumerate(views)},
    )
