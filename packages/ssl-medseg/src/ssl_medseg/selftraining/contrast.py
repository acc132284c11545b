"""The local contrastive loss as a term of self-training, on pairs of labelled and unlabelled slices."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from contrastive_core.errors import UserError
from contrastive_core.losses import local_contrastive
from contrastive_core.losses.local_contrastive import Variant
from contrastive_core.rng import derive
from contrastive_core.training import Run
from ssl_medseg.selftraining.options import ContrastOptions
from ssl_medseg.training.slices import SliceSet, jitter_intensity

PER_GROUP = 10
"""Pairs that ten slices make: five labelled (l0 .. l4 are 0 .. 4) and five unlabelled ones (u0 .. u4 are 5 .. 9)."""

# (l0,l0) (l1,u1) (l2,l2) (l3,u3) (l4,u4) (u0,u0) (u0,u1) (u2,u2) (u2,u3) (u3,u4): never two labelled slices.
_INTER = ((0, 0), (1, 6), (2, 2), (3, 8), (4, 9), (5, 5), (5, 6), (7, 7), (7, 8), (8, 9))


class Pairs(NamedTuple):
    """The slices of both sides of a step's pairs."""

    first: Tensor
    """int64 [B]: the slice on the first side of each pair."""
    second: Tensor
    """int64 [B]: that on the second side."""


def usable(presence: Tensor) -> Tensor:
    """Slices the loss can use: those that show every class, the background included; if none does, any structure.

    Args:
        presence: whether a class is in a slice, bool [N, C].

    Returns:
        int64 indices, ascending. Empty if no slice shows a structure.
    """
    every = presence.all(1)
    return torch.nonzero(every if bool(every.any()) else presence[:, 1:].any(1)).flatten()


def draw_pairs(
    labelled: Tensor, unlabelled: Tensor, *, pairs: int, variant: Variant, generator: torch.Generator
) -> Pairs:
    """Slices drawn with replacement, and paired as the released code pairs them.

    `inter`: of every ten pairs two join a labelled slice with itself, three a labelled with an unlabelled one, two an
    unlabelled one with itself and three two unlabelled ones. `intra`: each of the ten slices with itself. The sides of
    a pair differ by their augmentation.

    Args:
        labelled: usable labelled slices, int64.
        unlabelled: usable slices with pseudo-labels, int64; other numbers than `labelled`.
        pairs: B, a multiple of 10.
        variant: of the loss.
        generator: of the draws.

    Raises:
        UserError: a number of pairs that 10 does not divide, or no usable slice on one side.
    """
    if pairs < PER_GROUP or pairs % PER_GROUP:
        raise UserError(f"pairs is {pairs}; expected a multiple of {PER_GROUP}: five labelled, five unlabelled slices")
    for what, slices in (("labelled", labelled), ("unlabelled", unlabelled)):
        if len(slices) == 0:
            raise UserError(
                f"no {what} slice shows a structure, so the contrastive loss has nothing to compare; look at the "
                "labels (`ssl-medseg check`) or at the pseudo-labels of this round, or train without it "
                "(--contrast.weight 0)"
            )
    half = PER_GROUP // 2
    first, second = [], []
    for _ in range(pairs // PER_GROUP):
        ten = torch.cat(
            [slices[torch.randint(len(slices), (half,), generator=generator)] for slices in (labelled, unlabelled)]
        )
        pattern = torch.tensor(_INTER if variant == "inter" else [(i, i) for i in range(PER_GROUP)])
        first.append(ten[pattern[:, 0]])
        second.append(ten[pattern[:, 1]])
    return Pairs(torch.cat(first), torch.cat(second))


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
            *self._pools, pairs=total, variant=self._options.class_means,
            generator=torch.Generator().manual_seed(run.seed("pairs", step)),
        )  # fmt: skip
        own = torch.arange(total // run.world_size) + run.rank * (total // run.world_size)
        index = torch.cat([pairs.first[own], pairs.second[own]]).to(run.device, non_blocking=True)
        self._drawn = self._labels[index]
        return jitter_intensity(
            self._images[index], seed=derive(run.seed("pairs"), step), ids=torch.cat([own, own + total])
        )

    @property
    def known(self) -> Tensor:
        """Classes [n, H, W] of the slices of the step, 0 where a pseudo-label is not used."""
        return self._drawn.long().masked_fill(self._drawn >= self._classes, 0)

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
            variant=options.class_means,
            temperature=options.temperature,
            anchors_per_class=options.anchors,
            num_classes=classes,
            reduction=options.reduction,
            generator=torch.Generator().manual_seed(self._run.seed("anchors", step, self._run.rank)),
        )


class BatchContrast:
    """The local contrastive loss on the slices that the segmentation losses see: each is paired with the next.

    Labelled slices come with their true labels, unlabelled ones with the teacher's confident pixels, mixed ones with
    mixed labels.

    Args:
        run: gives the seed of the anchors.
        classes: C, the background included.
        options: of the loss.
    """

    def __init__(self, run: Run, *, classes: int, options: ContrastOptions) -> None:
        self.weight = options.weight
        self._run, self._classes, self._options = run, classes, options

    def loss(self, embedding: Tensor, labels: Tensor, step: int) -> Tensor:
        """The loss of embeddings [N, E, H, W] with labels [N, H, W], 0 where a pixel is background or not known."""
        first = torch.arange(len(labels))
        options = self._options
        return local_contrastive(
            embedding,
            labels,
            pairs=torch.stack([first, first.roll(-1)], 1),
            variant=options.class_means,
            temperature=options.temperature,
            anchors_per_class=options.anchors,
            num_classes=self._classes,
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
