"""Multiview pseudo-labelling as a module: the losses of one training step for any network."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from contrastive_core.optim.average import MovingAverage
from contrastive_core.synchronization import free_to_read
from ssl_video.models.networks import labelling, last_layer, split_batchnorm, views_in_backward, views_in_batch
from ssl_video.mvpl.losses import (
    TARGETS,
    USUAL_THRESHOLD,
    Selection,
    TargetKind,
    Targets,
    feature_distance,
    make_targets,
    other_views,
    pseudo_label_loss,
    supervised_loss,
)
from ssl_video.mvpl.mixing import Mix, draw_mix, tube_mix
from ssl_video.mvpl.network_output import check_same_in_evaluation, check_unbounded, logits_of
from ssl_video.mvpl.state import (
    AdaptiveThreshold,
    Diagnostics,
    DistributionAlignment,
    SoftWeights,
    ViewWeights,
    diagnose,
)
from ssl_video.views import MEAN, STD, check_normalization, check_views, normalize

Pictures = Mapping[str, Tensor]
"""By view, float ``[N, T, 3, H, W]`` on the scale 0 to 255, as `views.make_views` returns."""


class Losses(NamedTuple):
    """Losses of a step."""

    loss: Tensor
    """Total loss: ``supervised + unlabelled_weight unlabelled + agreement_weight feature_distance``."""
    supervised: Tensor
    """Loss on labelled clips, without gradient."""
    unlabelled: Tensor
    """Loss on pseudo-labels, without gradient; 0 in steps with labels only."""
    diagnostics: Diagnostics | None
    """Diagnostics of the pseudo-labels; None in steps with labels only."""
    feature_distance: Tensor | None = None
    """Distance between the features of the frames and those of the temporal gradient, without gradient; None without
    `agreement_weight`."""

    def scalars(self) -> dict[str, Tensor]:
        """Return the numbers by name, for a log."""
        values = {"loss": self.loss, "supervised": self.supervised, "unlabelled": self.unlabelled}
        if self.feature_distance is not None:
            values["feature_distance"] = self.feature_distance
        return values | (self.diagnostics.scalars() if self.diagnostics is not None else {})


class MultiviewPseudoLabel(nn.Module):
    """Losses of a step of multiview pseudo-labelling (MvPL), for any network and training loop.

    The network classifies every view of a weakly augmented unlabelled clip, without gradient. The predictions are fused
    into one pseudo-label. If it is confident, it becomes the target of every view of the strongly augmented clip. For
    labelled clips, the loss is the cross-entropy of every view. With the single view ``rgb`` this is FixMatch.

        L = L_s + unlabelled_weight L_u + agreement_weight L_f    (see `ssl_video.mvpl.losses`)

    The parameters of `network` are trained. At test time it classifies one view, ``rgb``, at the cost of one view.
    `state_dict` includes batch norm, adaptive weights and thresholds, and the moving average.

    Args:
        network: Module ``[N, 3, T, H, W]`` -> logits ``[N, classes]``, in training and evaluation mode. The output may
            also be a mapping or an object with ``logits``, or a tuple that starts with them. Probabilities are refused:
            build PyTorchVideo's X3D with ``head_activation=None``.
        classes: Number of classes K.
        views: Names of the views; the first is the one to test.
        target: Source of the pseudo-label of a view: ``aggregated`` is MvPL; ``self``, ``random`` and ``cross`` are
            for comparison, see `make_targets`.
        fuse_by: Quantity averaged over views: ``probabilities`` or ``logits``.
        fusion: Weights of the views: ``exact`` for equal ones; ``adaptive`` for weights in proportion to
            ``exp(-loss)``, with the supervised loss of the view averaged over steps; or one number per view.
        threshold: Smallest confidence of a pseudo-label to train on if `select` is ``fixed``; 0.4 by default.
        soft: Train on the whole distribution instead of the most probable class.
        temperature: Temperature of soft targets.
        unlabelled_weight: Weight of the loss on pseudo-labels.
        warmup_steps: Number of steps at the start that use labels only.
        bn: ``split``: every view has batch norm statistics of its own; `network` is changed in place. ``joint``: one
            batch of all views; recalibrate on ``rgb`` before testing (`recalibrate_bn`).
        weak_batch: ``separate``: weak clips form a batch of their own, without dropout and without updating the
            statistics of batch norm; ``joint``: in one batch with all others, as in FixMatch's code.
        align: Distribution alignment of ReMixMatch: divide the targets by their running mean over steps and multiply
            them by the classes' shares among the labelled clips.
        select: ``freematch``: use pseudo-labels that reach thresholds per class that follow the confidence
            (`AdaptiveThreshold`); ``fixed``: those that reach `threshold`; ``softmatch``: all, with weights
            (`SoftWeights`). The default is ``freematch``, and ``fixed`` if a threshold is given or there is one view.
            With fewer than four labelled videos per class, use a threshold of 0.8.
        teacher: Network that makes the pseudo-labels: ``network`` itself, or its moving ``average``, which needs
            `ema_decay` and ``weak_batch="separate"``.
        mix: TubeMix: parameter of the Beta distribution of the remaining share of a strong clip. The rest is
            one box of another clip in all frames, with mixed targets (`ssl_video.mvpl.mixing`). 0 for none.
        directed: Numbers of the classes that the direction of time defines, such as opening and closing. Their
            pseudo-labels are ignored on clips whose frames are reordered (`reordered` of `forward`).
        agreement_weight: Weight of `feature_distance` between the features of ``rgb`` and those of ``tg``: the inputs
            of the last linear layer; 0 for none. The default is 1 if both views and such a layer exist, otherwise 0.
            It suits runs of thousands of steps; it can lower the accuracy in those of a few hundred.
        ema_decay: Decay of a moving average of the network for testing (`tested`); 0 for none.
        seed: Seed for the choice of views for ``random`` and of `mix`.
        mean: Mean of the normalisation ``(x / 255 - mean) / std``, the same for every view; a number, or one per
            channel.
        std: Standard deviation of the normalisation: one number or three.

    Raises:
        ValueError: A setting is out of its range, or requires another one.

    Reference: Xiong, Fan, Grauman and Feichtenhofer, "Multiview Pseudo-Labeling for Semi-supervised Learning from
    Video", ICCV 2021. Sohn et al., "FixMatch", NeurIPS 2020. The paper has no code; docs/ssl-video describes our
    choices where it is silent.
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
        threshold: float | None = None,
        soft: bool = False,
        temperature: float = 1.0,
        unlabelled_weight: float = 1.0,
        warmup_steps: int = 0,
        bn: Literal["joint", "split"] = "split",
        weak_batch: Literal["separate", "joint"] = "separate",
        align: bool = False,
        select: Selection | None = None,
        teacher: Literal["network", "average"] = "network",
        mix: float = 0.0,
        directed: Sequence[int] = (),
        agreement_weight: float | None = None,
        ema_decay: float = 0.0,
        seed: int = 0,
        mean: float | Sequence[float] = MEAN,
        std: float | Sequence[float] = STD,
    ) -> None:
        super().__init__()
        self.views = check_views(views)
        if select is None:
            select = "fixed" if threshold is not None or len(self.views) == 1 else "freematch"
        self.threshold = USUAL_THRESHOLD if threshold is None else threshold
        _check(classes=classes, threshold=self.threshold, target=target, temperature=temperature, ema_decay=ema_decay)
        if select == "fixed":
            _warn_of_low(self.threshold, classes)
        self.target, self.fuse_by = target, fuse_by
        self.soft, self.temperature, self.unlabelled_weight = soft, temperature, unlabelled_weight
        self.warmup_steps, self.weak_batch, self.seed = warmup_steps, weak_batch, seed
        self.mean, self.std, self.classes = mean, std, classes
        self._has_checked_scale, self._has_checked_logits, self._has_checked_modes = False, False, False
        self.network = split_batchnorm(network, self.views) if bn == "split" else network
        self.weights = ViewWeights(fusion, self.views)
        self.alignment = DistributionAlignment(classes) if align else None
        if select not in ("fixed", "freematch", "softmatch"):
            raise ValueError(f"select is {select!r}; expected fixed, freematch or softmatch")
        self.adaptive = AdaptiveThreshold(classes) if select == "freematch" else None
        self.soft_weights = SoftWeights(classes) if select == "softmatch" else None
        if teacher not in ("network", "average"):
            raise ValueError(f"teacher is {teacher!r}; expected network or average")
        if teacher == "average" and (not ema_decay or weak_batch == "joint"):
            raise ValueError(
                f"teacher is average with ema_decay {ema_decay:g} and weak_batch {weak_batch}; expected an ema_decay "
                "above 0 (0.99 for runs of some thousand steps) and weak_batch separate"
            )
        for name, weight in (
            ("mix", mix),
            ("agreement_weight", agreement_weight or 0.0),
            ("unlabelled_weight", unlabelled_weight),
        ):
            if not 0 <= weight < math.inf:
                raise ValueError(f"{name} is {weight}; expected a finite number, at least 0")
        check_normalization(mean, std)
        self.teacher, self.mix = teacher, mix
        wrong = [number for number in directed if not 0 <= number < classes]
        if wrong:
            raise ValueError(f"directed names the classes {wrong}; expected numbers from 0 to {classes - 1}")
        self.directed = tuple(directed)
        # In a tuple, because a module in an attribute would be in the state dict twice.
        self._head = () if agreement_weight == 0 else _agreeing_layer(self.network, self.views)
        if agreement_weight and not self._head:
            raise ValueError(
                f"agreement_weight is {agreement_weight:g} with the views {', '.join(self.views)}; expected rgb and tg "
                "among the views, and a network with a linear layer, whose last one gives the features"
            )
        usual = 1.0 if self._head else 0.0
        self.agreement_weight = usual if agreement_weight is None else agreement_weight
        self._agrees_by_default = agreement_weight is None
        self.average: MovingAverage | None = None
        if ema_decay:
            self.average = MovingAverage(self.network, ema_decay)

    @property
    def tested(self) -> nn.Module:
        """Network to test and save: the moving average, if there is one."""
        return self.network if self.average is None else self.average.module

    def forward(
        self,
        labelled: Pictures,
        labels: Tensor | Sequence[int],
        weak: Pictures | None = None,
        strong: Pictures | None = None,
        *,
        step: int | None = None,
        present: Pictures | None = None,
        labelled_present: Pictures | None = None,
        truth: Tensor | Sequence[int] | None = None,
        reordered: Tensor | Sequence[bool] | None = None,
    ) -> Losses:
        """Compute the losses of a step.

        Args:
            labelled: Labelled clips, every view.
            labels: Their classes, integers ``[B]``.
            weak: Unlabelled clips, every view, weakly augmented; None in steps with labels only. The loss of
                an empty batch is 0, also that of labelled clips.
            strong: The same clips, strongly augmented; None if `weak` is.
            step: Number of the step in the run, which `warmup_steps`, `mix` and the target ``random`` need.
            present: By view, whether each unlabelled clip has it, bool ``[N]``; views that are not listed exist in all.
            labelled_present: The same for the labelled clips.
            truth: Classes of the unlabelled clips, -1 if unknown; used only for the diagnostics.
            reordered: Whether the frames of each strong clip are reordered, bool ``[N]``, see
                `ClipAugment.reordered`; None: none.

        Raises:
            ValueError: `step` is needed; a view is missing; pictures have another shape; weak and strong clips differ
                in number; labels are not classes; pictures are not on the scale 0 to 255; or the network does not
                return logits of `classes`.
        """
        if step is None and (self.warmup_steps or self.mix or self.target == "random"):
            raise ValueError(
                "step was not given; expected the number of the step in the run, because warmup_steps, mix and the "
                "target random depend on it"
            )
        number = step or 0
        if (weak is None) != (strong is None):
            raise ValueError(
                f"{'strong' if weak is None else 'weak'} clips were given alone; expected weak and strong ones, or "
                "neither in steps with labels only"
            )
        labelled_presence = self._present(labelled, labelled_present)
        device = labelled[self.views[0]].device
        there = labelled_presence.to(device, non_blocking=True)
        labels = self._check_labels(labels, there)
        if not self._has_checked_scale:
            self._has_checked_scale = True
            for batch in (labelled, weak, strong):
                check_scale(batch or {})
        if weak is None or strong is None or number < self.warmup_steps:
            logits, distance = self._logits_and_distance(labelled, labelled_presence)
            supervised = self._learn_labels(logits, labels, there)
            return self._total(supervised, torch.zeros_like(supervised), None, distance)
        presence = self._present(weak, present)
        there_too = presence.to(device, non_blocking=True)
        if there_too.shape != self._present(strong, present).shape:
            raise ValueError("weak and strong clips differ in number; expected the same clips, augmented twice")
        true_classes = _one_per_clip(truth, there_too, name="truth")
        is_reordered = _one_per_clip(reordered, there_too, name="reordered")
        mixing, share = None, None
        if self.mix:
            mixing, share = self._mixing(strong, there_too, number)
            strong = {
                view: tube_mix(strong[view], mixing, where=row < 1) for view, row in zip(self.views, share, strict=True)
            }
        if self.weak_batch == "separate":
            labeller = self.network if self.teacher == "network" else self.tested
            with labelling(labeller):
                weak_logits = self._classify(labeller, weak, presence)
            both, distance = self._logits_and_distance(
                _stack(self.views, labelled, strong), torch.cat([labelled_presence, presence], dim=1)
            )
            few_logits, strong_logits = both[:, : len(labels)], both[:, len(labels) :]
        else:
            present_in_all = torch.cat([labelled_presence, presence, presence], dim=1)
            all_logits, distance = self._logits_and_distance(_stack(self.views, labelled, weak, strong), present_in_all)
            few_logits, unlabelled_logits = all_logits[:, : len(labels)], all_logits[:, len(labels) :]
            weak_logits, strong_logits = (
                unlabelled_logits.detach().chunk(2, dim=1)[0],
                unlabelled_logits.chunk(2, dim=1)[1],
            )
        if not self._has_checked_modes and self.weak_batch == "separate":
            self._has_checked_modes = True
            check_same_in_evaluation(weak_logits[there_too], both[torch.cat([there, there_too], dim=1)])
        supervised = self._learn_labels(few_logits, labels, there)
        targets = self._targets(weak_logits, there_too, number)
        threshold: float | Tensor = self.threshold
        if self.adaptive is not None:
            threshold = self.adaptive(*targets)
        weights = None if self.soft_weights is None else self.soft_weights(*targets)
        unlabelled = pseudo_label_loss(
            strong_logits,
            self._without_directed(targets, is_reordered),
            threshold=threshold if weights is None else 0.0,
            soft=self.soft,
            temperature=self.temperature,
            present=there_too,
            weights=weights,
            partners=None if mixing is None else mixing.partners.to(device, non_blocking=True),
            share=share,
        )
        diagnostics = diagnose(
            weak_logits, unlabelled, present=there_too, usable=targets.usable, views=self.views, truth=true_classes
        )
        return self._total(supervised, unlabelled.loss, diagnostics, distance)

    def _total(
        self, supervised: Tensor, unlabelled: Tensor, diagnostics: Diagnostics | None, distance: Tensor | None
    ) -> Losses:
        loss = supervised if diagnostics is None else supervised + self.unlabelled_weight * unlabelled
        if distance is None:
            return Losses(loss, supervised.detach(), unlabelled.detach(), diagnostics)
        loss = loss + self.agreement_weight * distance
        return Losses(loss, supervised.detach(), unlabelled.detach(), diagnostics, distance.detach())

    def update(self) -> None:
        """Update the moving average, if there is one; call it after each step of the optimiser."""
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
        # A half-precision overflow, whose step a GradScaler skips, must not enter the averages.
        targets = targets._replace(usable=targets.usable & targets.probabilities.isfinite().all(dim=-1))
        if self.alignment is None:
            return targets
        return Targets(self.alignment(targets.probabilities, targets.usable), targets.usable)

    def _mixing(self, strong: Pictures, present: Tensor, step: int) -> tuple[Mix, Tensor]:
        """Return the mixing of the strong clips, and the remaining share ``[M, N]`` of each view."""
        shape = strong[self.views[0]].shape
        mixing = draw_mix(shape[0], height=shape[-2], width=shape[-1], alpha=self.mix, seed=self.seed, step=step)
        partners, share = (x.to(present.device, non_blocking=True) for x in (mixing.partners, mixing.share))
        both = present & present[:, partners]
        return mixing, torch.where(both, share, torch.ones_like(share))

    def _without_directed(self, targets: Targets, reordered: Tensor | None) -> Targets:
        """Mark the targets of directed classes as unusable on reordered clips."""
        if reordered is None or not self.directed:
            return targets
        device = targets.usable.device
        classes = torch.tensor(self.directed).to(device, non_blocking=True)
        directed = torch.isin(targets.probabilities.argmax(dim=-1), classes)
        return targets._replace(usable=targets.usable & ~(directed & reordered))

    def _logits_and_distance(self, pictures: Pictures, present: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the logits of the clips to train on, and the distance of their features if it is used."""
        if not self._head:
            return self._classify(self.network, pictures, present), None
        with _inputs_of(*self._head) as inputs:
            logits = self._classify(self.network, pictures, present)
        has = dict(zip(self.views, present, strict=True))  # on the host
        both = has["rgb"] & has["tg"]
        if not bool(both.any()):
            return logits, 0.0 * logits.sum()
        clips = int(present.sum())
        if (why := _why_not(inputs, clips, logits)) is not None:
            if not self._agrees_by_default:
                raise ValueError(f"{why}. Pass agreement_weight=0")
            warnings.warn(f"the features of rgb and tg are not compared: {why}", stacklevel=3)
            self._head, self.agreement_weight = (), 0.0
            return logits, None
        features = inputs[0].reshape(clips, -1, inputs[0].shape[-1]).mean(dim=1)
        by_view = dict(zip(self.views, torch.split(features, present.sum(dim=1).tolist()), strict=True))
        if not bool(both.all()):
            rows = {name: both[has[name]].nonzero().flatten() for name in ("rgb", "tg")}
            by_view |= {name: by_view[name][row.to(features.device, non_blocking=True)] for name, row in rows.items()}
        return logits, feature_distance(by_view["rgb"], by_view["tg"])

    def _learn_labels(self, logits: Tensor, labels: Tensor, present: Tensor) -> Tensor:
        loss, by_view = supervised_loss(logits, labels, present=present)
        if self.training:
            self.weights.remember(by_view, present.sum(dim=1))
            if self.alignment is not None:
                self.alignment.count(labels)
        return loss

    def _check_labels(self, labels: Tensor | Sequence[int], present: Tensor) -> Tensor:
        try:
            tensor = torch.as_tensor(labels, device=present.device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"labels are no numbers ({error}); expected integers [{present.shape[1]}]") from error
        if not tensor.numel():  # an empty list becomes float32
            tensor = tensor.long()
        if tensor.is_floating_point() or tensor.shape != present.shape[1:]:
            raise ValueError(
                f"labels are {tensor.dtype} {list(tensor.shape)}; expected integers [{present.shape[1]}], one per clip"
            )
        # On other devices, reading the values would wait for the device; the loss rejects wrong ones itself.
        if free_to_read(tensor) and len(tensor) and not (tensor.min() >= 0 and tensor.max() < self.classes):
            raise ValueError(
                f"labels range from {tensor.min()} to {tensor.max()}; expected classes from 0 to {self.classes - 1}"
            )
        return tensor.long()

    def _logits(self, output: Any, clips: int) -> Tensor:
        """Return the logits in the output of the network; the first ones with a gradient are checked."""
        logits = logits_of(output, clips=clips, classes=self.classes)
        if logits.requires_grad and not self._has_checked_logits:
            self._has_checked_logits = True
            check_unbounded(logits)
        return logits

    def _present(self, pictures: Pictures, present: Pictures | None) -> Tensor:
        """Which clips have which view, bool [M, N] on the host, where the size of a selection is known."""
        missing = [view for view in self.views if view not in pictures]
        if missing:
            raise ValueError(f"pictures of {', '.join(pictures)} were given; also expected {', '.join(missing)}")
        first = pictures[self.views[0]].shape
        for view in self.views:
            shape = pictures[view].shape
            if len(shape) != 5 or shape[2] != 3 or shape != first:
                size_text = "" if view == self.views[0] else f", as many and as large as those of {self.views[0]}"
                raise ValueError(
                    f"pictures of {view} are {list(shape)}; expected [N, T, 3, H, W], frames before channels{size_text}"
                )
        masks = {} if present is None else present
        strange = sorted(set(masks) - set(pictures))
        if strange:
            raise ValueError(f"present names {', '.join(strange)}; expected views among {', '.join(pictures)}")
        rows = [
            torch.as_tensor(masks[view]).to("cpu", torch.bool) if view in masks else torch.ones(first[0]).bool()
            for view in self.views
        ]
        for view, row in zip(self.views, rows, strict=True):
            if row.shape != first[:1]:
                raise ValueError(f"present of {view} is {list(row.shape)}; expected [{first[0]}], one value per clip")
        return torch.stack(rows)

    def _classify(self, network: nn.Module, pictures: Pictures, present: Tensor) -> Tensor:
        """Return logits ``[M, N, K]`` of all views in one pass; zeros for missing views."""
        if not present.any():
            return torch.zeros(*present.shape, self.classes, device=pictures[self.views[0]].device)
        device, is_complete = pictures[self.views[0]].device, bool(present.all())
        rows = [row.nonzero().flatten().to(device, non_blocking=True) for row in present]
        batches = [
            normalize(
                _at_least_float32(pictures[view] if is_complete else pictures[view][indices]),
                mean=self.mean, std=self.std,
            ).to(_precision(network))
            for view, indices in zip(self.views, rows, strict=True)
        ]  # fmt: skip
        layout = [(view, len(batch)) for view, batch in zip(self.views, batches, strict=True)]
        with views_in_batch(network, layout):
            logits = self._logits(network(torch.cat(batches)), sum(map(len, batches)))
        views_in_backward(network, layout, logits)
        if is_complete:
            return logits.view(*present.shape, -1)
        full = logits.new_zeros(present.numel(), logits.shape[-1])
        places = torch.cat([indices + view * present.shape[1] for view, indices in enumerate(rows)])
        return full.index_copy(0, places, logits).view(*present.shape, -1)


def _at_least_float32(pictures: Tensor) -> Tensor:
    return pictures.to(torch.promote_types(pictures.dtype, torch.float32))


def _precision(network: nn.Module) -> torch.dtype:
    """Return the type of the parameters, such as float64; float32 for a network without any."""
    return next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.float32)


def _agreeing_layer(network: nn.Module, views: Sequence[str]) -> tuple[nn.Module, ...]:
    """Return the layer whose inputs are the features to compare; nothing without it, or without both views."""
    layer = dict(network.named_modules()).get(last_layer(network).removesuffix("."))
    return (layer,) if isinstance(layer, nn.Linear) and {"rgb", "tg"} <= set(views) else ()


def _why_not(inputs: Sequence[Tensor], clips: int, logits: Tensor) -> str | None:
    """Explain why the inputs of a layer cannot be compared as features of the clips; None if they can."""
    if [len(tensor) for tensor in inputs] != [clips]:
        shapes = ", ".join(str(list(tensor.shape)) for tensor in inputs) or "nothing"
        return f"the last linear layer was given {shapes} for {clips} clips; expected features [{clips}, ..., D], once"
    if logits.requires_grad and not inputs[0].requires_grad:
        return (
            "the inputs of the last linear layer have no gradient; expected gradient checkpointing with "
            "use_reentrant=False, and layers before it that are trained"
        )
    return None


def _one_per_clip(values: Tensor | Sequence[int] | None, present: Tensor, *, name: str) -> Tensor | None:
    if values is None:
        return None
    tensor = torch.as_tensor(values).to(present.device, non_blocking=True)
    if tensor.shape != present.shape[1:]:
        raise ValueError(
            f"{name} is {list(tensor.shape)}; expected [{present.shape[1]}], one value per unlabelled clip"
        )
    return tensor


@contextmanager
def _inputs_of(layer: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the inputs of a layer within the context."""
    inputs: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    try:
        yield inputs
    finally:
        handle.remove()


def check_scale(pictures: Pictures) -> None:
    """Check that pictures are on the scale 0 to 255, as far as their values show.

    Raises:
        ValueError: They are on the scale 0 to 1, or normalised.
    """
    for view, batch in pictures.items():
        if not batch.numel():
            continue
        low, high = float(batch.min()), float(batch.max())
        if low < -1 or 0 < high <= 1:
            raise ValueError(
                f"pictures of {view} range from {low:.3g} to {high:.3g}; expected the scale 0 to 255, not 0 to 1 and "
                "not normalised: the method normalises them itself, see `mean` and `std`"
            )


def _stack(views: Sequence[str], *batches: Pictures) -> dict[str, Tensor]:
    sizes = {tuple(batch[views[0]].shape[1:]) for batch in batches}
    if len(sizes) > 1:
        shapes = " and ".join(str(list(size)) for size in sorted(sizes))
        raise ValueError(
            f"labelled and unlabelled clips are {shapes}; expected clips of one length and size, because they pass the "
            "network in one batch"
        )
    return {view: torch.cat([batch[view] for batch in batches]) for view in views}


def _check(*, classes: int, threshold: float, target: str, temperature: float, ema_decay: float) -> None:
    for name, value, holds, condition in (
        ("classes", classes, classes >= 2, "at least 2"),
        ("threshold", threshold, 0 <= threshold <= 1, "a probability"),
        ("target", target, target in TARGETS, f"one of {', '.join(TARGETS)}"),
        ("temperature", temperature, temperature > 0, "a positive number"),
        ("ema_decay", ema_decay, 0 <= ema_decay < 1, "at least 0 and less than 1"),
    ):
        if not holds:
            raise ValueError(f"{name} is {value}; expected {condition}")


def _warn_of_low(threshold: float, classes: int) -> None:
    # With two classes, twice chance is certainty; half-way between chance and certainty is enough.
    if threshold < min(2 / classes, (1 + 1 / classes) / 2):
        warnings.warn(
            f"threshold {threshold:g} is below twice chance ({2 / classes:.3g} for {classes} classes): nearly every "
            "pseudo-label is used from the start. With few classes, choose one well above chance: for 10, 0.4 if "
            "several views are fused, 0.6 to 0.8 for one",
            stacklevel=3,
        )
