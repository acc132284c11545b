"""The local contrastive loss as a term of joint training, on pairs of labelled and unlabelled slices."""

from __future__ import annotations

import torch
from torch import Tensor

from contrastive_core.errors import UserError
from contrastive_core.losses import local_contrastive
from contrastive_core.rng import derive
from contrastive_core.training import Run
from ssl_medseg.augment import jitter_intensity
from ssl_medseg.selftraining.options import ContrastOptions
from ssl_medseg.selftraining.pairing import draw_pairs, usable
from ssl_medseg.slices import SliceSet


class ContrastTerm:
    """Pairs of every step, each side under intensity changes of its own; shared evenly by the processes.

    Args:
        run: gives seed, device and processes.
        labelled: slices with true labels.
        unlabelled: slices with the pseudo-labels of this round.
        classes: C, the background included.
        options: of the loss.
    """

    def __init__(
        self, run: Run, labelled: SliceSet, unlabelled: SliceSet, *, classes: int, options: ContrastOptions
    ) -> None:
        check_processes(options, run.world_size)
        self.weight = options.weight
        self._run, self._options, self._classes = run, options, classes
        self._images = torch.cat([labelled.images, unlabelled.images]).to(run.device)
        self._labels = torch.cat([labelled.truth, unlabelled.truth]).to(run.device)
        self._pools = usable(labelled.presence(classes)), usable(unlabelled.presence(classes)) + len(labelled)
        self._slices = len(labelled), len(unlabelled)
        self._drawn = torch.empty(0)

    def __str__(self) -> str:
        """Which slices can be drawn, for the person watching."""
        known, other = (f"{len(pool)} of {count}" for pool, count in zip(self._pools, self._slices, strict=True))
        return (
            f"contrastive pairs are of {known} labelled and {other} unlabelled slices: those that show every class, or "
            "any structure where none shows all"
        )

    def images(self, step: int) -> Tensor:
        """Both sides of the pairs of this process, first sides first."""
        run, total = self._run, self._options.pairs
        pairs = draw_pairs(
            *self._pools, pairs=total, variant=self._options.variant,
            generator=torch.Generator().manual_seed(run.seed("pairs", step)),
        )  # fmt: skip
        own = torch.arange(total // run.world_size) + run.rank * (total // run.world_size)
        index = torch.cat([pairs.first[own], pairs.second[own]]).to(run.device)
        self._drawn = self._labels[index]
        return jitter_intensity(
            self._images[index], seed=derive(run.seed("pairs"), step), ids=torch.cat([own, own + total])
        )

    def loss(self, output: Tensor, step: int) -> Tensor:
        """The loss of embeddings; anchors are drawn as a function of seed, step and process."""
        options, labels, half = self._options, self._drawn, len(output) // 2
        # What is not used has neither anchors nor means, and that is what the loss does with class 0.
        shifted = labels.long() + 1 if options.background else labels.long()
        classes = self._classes + 1 if options.background else self._classes
        return local_contrastive(
            output,
            shifted.masked_fill(labels >= self._classes, 0),
            pairs=torch.stack([torch.arange(half), torch.arange(half) + half], 1),
            variant=options.variant,
            temperature=options.temperature,
            anchors_per_class=options.anchors,
            num_classes=classes,
            reduction=options.reduction,
            generator=torch.Generator().manual_seed(self._run.seed("anchors", step, self._run.rank)),
        )


def check_processes(options: ContrastOptions, world_size: int) -> None:
    """Refuse what several processes cannot share.

    Raises:
        UserError: pairs that cannot be shared evenly, or the released code's reduction, in which pairs have an order.
    """
    if options.pairs % world_size:
        raise UserError(f"contrast.pairs is {options.pairs} on {world_size} processes; expected a multiple of them")
    if options.reduction == "official" and world_size > 1:
        raise UserError(
            f"contrast.reduction official weighs a pair by its place in the batch, which {world_size} processes cannot "
            "share; use one process, or pair_mean"
        )
