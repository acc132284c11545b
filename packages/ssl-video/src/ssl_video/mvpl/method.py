"""Multiview pseudo-labelling as a module: the losses of one training step for any network."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ssl_video.models.batchnorm import labelling, split_batchnorm, views_in_batch
from ssl_video.mvpl.losses import (
    TARGETS,
    TargetKind,
    Targets,
    make_targets,
    other_views,
    pseudo_label_loss,
    supervised_loss,
)
from ssl_video.mvpl.state import (
    AdaptiveThreshold,
    Diagnostics,
    DistributionAlignment,
    SoftWeights,
    ViewWeights,
    diagnose,
)
from ssl_video.views import MEAN, STD, check_views, normalize

Pictures = Mapping[str, Tensor]
"""By view: float ``[N, T, 3, H, W]``, 0 to 255, what `views.make_views` gives."""


_ONE = 1e-3  # how far the sum of a row of probabilities may be from 1, in half precision


class Losses(NamedTuple):
    """What one step gives."""

    loss: Tensor
    """To go backward from: ``supervised + unlabelled_weight * unlabelled``."""
    supervised: Tensor
    """On labelled clips, without gradient."""
    unlabelled: Tensor
    """On pseudo-labels, without gradient; 0 while there are labels only."""
    diagnostics: Diagnostics | None
    """Of the pseudo-labels; None while there are labels only."""


class MultiviewPseudoLabel(nn.Module):
    """Losses of a step of multiview pseudo-labelling (MvPL), for a network and a loop of your own.

    Every view of a weakly augmented unlabelled clip is classified by the same network, without gradient; the
    predictions are fused into one pseudo-label; if it is confident, every view of the strongly augmented clip learns
    it. Labelled clips are learned by cross-entropy on every view. With the single view ``rgb`` this is FixMatch.

        L = L_s + unlabelled_weight * L_u;  L_s, L_u and the pseudo-labels: see `ssl_video.mvpl.losses`

    What is trained are the parameters of `network`; it is tested on one view, ``rgb``, at the cost of one view. State
    that changes (batch norm, adaptive weights, moving average) is in `state_dict`.

    Args:
        network: ``[N, 3, T, H, W]`` -> logits ``[N, classes]``, in training mode and in evaluation mode; or a mapping
            or an object with ``logits``, or a tuple whose first entry they are. No probabilities: of PyTorchVideo's X3D
            take ``head_activation=None``.
        classes: K.
        views: which views, the first being the one tested on.
        target: ``aggregated`` is the method; ``self``, ``random``, ``cross`` for comparison, see `make_targets`.
        fuse_by: ``probabilities``, or ``logits``.
        fusion: ``exact``: the mean; ``adaptive``: views of small supervised loss count more, in proportion to
            ``exp(-loss)``, the loss averaged over steps; or weights, one for each view.
        threshold: confidence of a pseudo-label that counts.
        soft: learn the whole distribution instead of its largest class.
        temperature: of soft targets.
        unlabelled_weight: of the loss on pseudo-labels.
        warmup_steps: first steps with labels only.
        bn: ``joint``: batch norm sees all views of a step as one batch; recalibrate it on ``rgb`` before testing
            (`recalibrate_bn`). ``split``: every view has statistics of its own; `network` is changed in place.
        weak_batch: ``separate``: the weak clips go through the network on their own, without dropout and without
            leaving a trace in batch norm; ``joint``: in one batch with all others, as in FixMatch's code.
        align: divide the targets by their running mean over steps and multiply by the classes' shares among the
            labelled clips (distribution alignment, ReMixMatch).
        select: ``fixed``: pseudo-labels that reach `threshold` count; ``freematch``: each class has a threshold that
            follows the confidence (`AdaptiveThreshold`); ``softmatch``: all count, by a weight (`SoftWeights`).
        ema_decay: keep a moving average of the network for testing (`tested`); 0: none.
        seed: of the choice of views for ``random``.
        mean: of the normalisation ``(x / 255 - mean) / std``, the same for every view; a number, or one for each
            channel.
        std: of the normalisation, likewise.

    Raises:
        ValueError: a setting out of its range.

    Reference: Xiong, Fan, Grauman and Feichtenhofer, "Multiview Pseudo-Labeling for Semi-supervised Learning from
    Video", ICCV 2021. Sohn et al., "FixMatch", NeurIPS 2020. The paper has no code; what it leaves open is said in
    docs/ssl-video.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        classes: int,
        views: Sequence[str] = ("rgb", "tg"),
        target: TargetKind = "aggregated",
        fuse_by: Literal["probabilities", "logits"] = "probabilities",
        fusion: Literal["exact", "adaptive"] | Sequence[float] = "exact",
        threshold: float = 0.4,
        soft: bool = False,
        temperature: float = 1.0,
        unlabelled_weight: float = 1.0,
        warmup_steps: int = 0,
        bn: Literal["joint", "split"] = "split",
        weak_batch: Literal["separate", "joint"] = "separate",
        align: bool = False,
        select: Literal["fixed", "freematch", "softmatch"] = "fixed",
        ema_decay: float = 0.0,
        seed: int = 0,
        mean: float | Sequence[float] = MEAN,
        std: float | Sequence[float] = STD,
    ) -> None:
        super().__init__()
        self.views = check_views(views)
        _check(classes=classes, threshold=threshold, target=target, temperature=temperature, ema_decay=ema_decay)
        self.target, self.fuse_by, self.threshold = target, fuse_by, threshold
        self.soft, self.temperature, self.unlabelled_weight = soft, temperature, unlabelled_weight
        self.warmup_steps, self.weak_batch, self.seed = warmup_steps, weak_batch, seed
        self.mean, self.std, self.classes = mean, std, classes
        self._looked_at_pictures, self._looked_at_logits = False, False
        self.network = split_batchnorm(network, self.views) if bn == "split" else network
        self.weights = ViewWeights(fusion, self.views)
        self.alignment = DistributionAlignment(classes) if align else None
        if select not in ("fixed", "freematch", "softmatch"):
            raise ValueError(f"select is {select!r}; expected fixed, freematch or softmatch")
        self.adaptive = AdaptiveThreshold(classes) if select == "freematch" else None
        self.soft_weights = SoftWeights(classes) if select == "softmatch" else None
        self.average: AveragedModel | None = None
        if ema_decay:
            follow = get_ema_multi_avg_fn(ema_decay)  # type: ignore[no-untyped-call]
            self.average = AveragedModel(self.network, multi_avg_fn=follow, use_buffers=True)
            self.average.requires_grad_(False)

    @property
    def tested(self) -> nn.Module:
        """The network to test and to keep: the moving average, if there is one."""
        return self.network if self.average is None else self.average.module

    def forward(
        self,
        labelled: Pictures,
        labels: Tensor | Sequence[int],
        weak: Pictures | None = None,
        strong: Pictures | None = None,
        *,
        step: int = 0,
        present: Pictures | None = None,
        labelled_present: Pictures | None = None,
        truth: Tensor | None = None,
    ) -> Losses:
        """The losses of a step.

        Args:
            labelled: labelled clips, every view.
            labels: their classes, integers ``[B]``.
            weak: unlabelled clips, every view, weakly augmented; None: labels only.
            strong: the same clips, strongly augmented.
            step: of the run, for `warmup_steps` and the choice of ``random``.
            present: by view, which of the unlabelled clips have it, bool ``[N]``; a view not named here all have.
            labelled_present: the same of the labelled clips.
            truth: the classes of the unlabelled clips where they are known, for the diagnostics alone.

        Raises:
            ValueError: a view is missing; weak and strong clips differ in number; labels are no classes; pictures are
                not on the scale 0 to 255; or the network gives no logits of `classes`.
        """
        there = self._present(labelled, labelled_present)
        labels = self._checked_labels(labels, there)
        if not self._looked_at_pictures:
            self._looked_at_pictures = True
            for batch in (labelled, weak, strong):
                check_scale(batch or {})
        # Known without a look at the device.
        complete = not labelled_present and not present
        if weak is None or strong is None or step < self.warmup_steps:
            loss = self._learn_labels(self._classify(labelled, there, complete=complete), labels, there)
            return Losses(loss, loss.detach(), torch.zeros_like(loss), None)
        there_too = self._present(weak, present)
        if there_too.shape != self._present(strong, present).shape:
            raise ValueError("weak and strong clips differ in number; expected the same clips, augmented twice")
        if self.weak_batch == "separate":
            with labelling(self.network):
                weak_logits = self._classify(weak, there_too, complete=complete)
            present_in_both = torch.cat([there, there_too], dim=1)
            both = self._classify(_stack(labelled, strong), present_in_both, complete=complete)
            few_logits, strong_logits = both[:, : len(labels)], both[:, len(labels) :]
        else:
            present_in_all = torch.cat([there, there_too, there_too], dim=1)
            everything = self._classify(_stack(labelled, weak, strong), present_in_all, complete=complete)
            few_logits, others = everything[:, : len(labels)], everything[:, len(labels) :]
            weak_logits, strong_logits = others.detach().chunk(2, dim=1)[0], others.chunk(2, dim=1)[1]
        supervised = self._learn_labels(few_logits, labels, there)
        targets = self._targets(weak_logits, there_too, step)
        threshold: float | Tensor = self.threshold
        if self.adaptive is not None:
            threshold = self.adaptive(*targets)
        weights = None if self.soft_weights is None else self.soft_weights(*targets)
        unlabelled = pseudo_label_loss(
            strong_logits,
            targets,
            threshold=threshold if weights is None else 0.0,
            soft=self.soft,
            temperature=self.temperature,
            present=there_too,
            weights=weights,
        )
        found = diagnose(weak_logits, unlabelled, present=there_too, views=self.views, truth=truth)
        loss = supervised + self.unlabelled_weight * unlabelled.loss
        return Losses(loss, supervised.detach(), unlabelled.loss.detach(), found)

    def update(self) -> None:
        """After the optimiser's step: let the moving average, if there is one, follow the network."""
        if self.average is not None:
            self.average.update_parameters(self.network)

    def _targets(self, logits: Tensor, present: Tensor, step: int) -> Targets:
        targets = make_targets(
            logits,
            kind=self.target,
            fuse_by=self.fuse_by,
            weights=self.weights(),
            present=present,
            sources=other_views(self.target, len(self.views), seed=self.seed, step=step),
        )
        if self.alignment is None:
            return targets
        return Targets(self.alignment(targets.probabilities, targets.usable), targets.usable)

    def _learn_labels(self, logits: Tensor, labels: Tensor, present: Tensor) -> Tensor:
        loss, by_view = supervised_loss(logits, labels, present=present)
        if self.training:
            self.weights.remember(by_view)
            if self.alignment is not None:
                self.alignment.count(labels)
        return loss

    def _checked_labels(self, labels: Tensor | Sequence[int], present: Tensor) -> Tensor:
        given = torch.as_tensor(labels, device=present.device)
        if given.is_floating_point() or given.shape != present.shape[1:]:
            raise ValueError(
                f"labels are {given.dtype} {list(given.shape)}; expected integers [{present.shape[1]}], one for a clip"
            )
        # Elsewhere than on the CPU a look at the values would wait for the device; the loss refuses them there itself.
        if given.device.type == "cpu" and len(given) and not (given.min() >= 0 and given.max() < self.classes):
            raise ValueError(
                f"labels are from {given.min()} to {given.max()}; expected classes from 0 to {self.classes - 1}"
            )
        return given.long()

    def _logits(self, output: Any, clips: int) -> Tensor:
        """The logits in what the network gives."""
        found = output
        if isinstance(output, Mapping):
            found = output.get("logits")
        elif isinstance(output, tuple | list):
            found = output[0] if output else None
        elif not isinstance(output, Tensor):
            found = getattr(output, "logits", None)
        expected = f"expected logits [{clips}, {self.classes}] for classes={self.classes}"
        if not isinstance(found, Tensor):
            entries = f" with the entries {', '.join(map(str, output))}" if isinstance(output, Mapping) else ""
            raise ValueError(f"the network gives a {type(output).__name__}{entries} and in it no logits; {expected}")
        if found.shape != (clips, self.classes):
            raise ValueError(f"the network gives {list(found.shape)}; {expected}")
        if not self._looked_at_logits:
            self._looked_at_logits = True
            values = found.detach().float()
            if clips > 1 and (values >= 0).all() and (values.sum(dim=1) - 1).abs().max() < _ONE:
                raise ValueError(
                    f"the network gives probabilities, every row of them adds up to 1; {expected}: leave out its last "
                    "softmax (of PyTorchVideo's X3D by head_activation=None)"
                )
        return found

    def _present(self, pictures: Pictures, present: Pictures | None) -> Tensor:
        missing = [view for view in self.views if view not in pictures]
        if missing:
            raise ValueError(f"pictures of {', '.join(pictures)} were given; expected also {', '.join(missing)}")
        given = present or {}
        rows = [
            given[view].to(pictures[view].device, torch.bool)
            if view in given
            else torch.ones(len(pictures[view]), dtype=torch.bool, device=pictures[view].device)
            for view in self.views
        ]
        return torch.stack(rows)

    def _classify(self, pictures: Pictures, present: Tensor, *, complete: bool) -> Tensor:
        """Logits ``[M, N, K]`` of all views in one pass; zeros where a clip has no such view, if not `complete`."""
        everything = complete or bool(present.all())
        parts = [
            normalize(pictures[view] if everything else pictures[view][rows], mean=self.mean, std=self.std)
            for view, rows in zip(self.views, present, strict=True)
        ]
        with views_in_batch(self.network, [(view, len(part)) for view, part in zip(self.views, parts, strict=True)]):
            logits = self._logits(self.network(torch.cat(parts)), sum(map(len, parts)))
        if everything:
            return logits.view(*present.shape, -1)
        full = logits.new_zeros(*present.shape, logits.shape[-1])
        full[present] = logits
        return full


def check_scale(pictures: Pictures) -> None:
    """Check that pictures are on the scale 0 to 255, as far as a look at them tells.

    Raises:
        ValueError: they are on the scale 0 to 1, or normalised.
    """
    for view, batch in pictures.items():
        if not batch.numel():
            continue
        low, high = float(batch.min()), float(batch.max())
        if low < -1 or 0 < high <= 1:
            raise ValueError(
                f"pictures of {view} are from {low:.3g} to {high:.3g}; expected the scale 0 to 255, neither 0 to 1 nor "
                "normalised: the method normalises them itself, see `mean` and `std`"
            )


def _stack(*batches: Pictures) -> dict[str, Tensor]:
    return {view: torch.cat([batch[view] for batch in batches]) for view in batches[0]}


def _check(*, classes: int, threshold: float, target: str, temperature: float, ema_decay: float) -> None:
    for name, value, holds, expected in (
        ("classes", classes, classes >= 2, "at least 2"),
        ("threshold", threshold, 0 <= threshold <= 1, "a probability"),
        ("target", target, target in TARGETS, f"one of {', '.join(TARGETS)}"),
        ("temperature", temperature, temperature > 0, "a positive number"),
        ("ema_decay", ema_decay, 0 <= ema_decay < 1, "at least 0 and less than 1"),
    ):
        if not holds:
            raise ValueError(f"{name} is {value}; expected {expected}")
    if threshold < 2 / classes:
        warnings.warn(
            f"threshold {threshold:g} is below twice chance ({2 / classes:g} for {classes} classes): nearly every "
            "pseudo-label counts from the start. With few classes take one well above chance: for 10, 0.4 where "
            "several views are fused, 0.6 to 0.8 for one",
            stacklevel=3,
        )
