"""Apply the local contrastive loss in self-training, on pairs of labelled and unlabelled slices."""

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
"""Pairs formed from ten slices: five labelled (l0 .. l4 have index 0 .. 4), five unlabelled (u0 .. u4: 5 .. 9)."""

# (l0,l0) (l1,u1) (l2,l2) (l3,u3) (l4,u4) (u0,u0) (u0,u1) (u2,u2) (u2,u3) (u3,u4): never two labelled slices.
_INTER = ((0, 0), (1, 6), (2, 2), (3, 8), (4, 9), (5, 5), (5, 6), (7, 7), (7, 8), (8, 9))


class Pairs(NamedTuple):
    """Pairs of slices of a step."""

    first: Tensor
    """int64 [B]: index of the first slice of each pair."""
    second: Tensor
    """int64 [B]: index of the second slice of each pair."""


def usable(presence: Tensor) -> Tensor:
    """Select the slices that the loss can use: those with all classes, or with any structure if none has all.

    Args:
        presence: bool [N, C], whether a slice contains a class, background included.

    Returns:
        int64 indices, ascending; empty if no slice contains a structure.
    """
    every = presence.all(1)
    return torch.nonzero(every if bool(every.any()) else presence[:, 1:].any(1)).flatten()


def draw_pairs(
    labelled: Tensor, unlabelled: Tensor, *, pairs: int, variant: Variant, generator: torch.Generator
) -> Pairs:
    """Draw slices with replacement and pair them as in the released code.

    With `inter`, every ten pairs consist of two labelled slices paired with themselves, three labelled slices paired
    with unlabelled ones, two unlabelled slices paired with themselves, and three pairs of unlabelled slices. With
    `intra`, each of the ten slices is paired with itself. The two members of a pair are augmented independently.

    Args:
        labelled: int64, indices of the usable labelled slices.
        unlabelled: int64, indices of the usable slices with pseudo-labels, disjoint from `labelled`.
        pairs: Number of pairs B, a multiple of 10.
        variant: Variant of the loss.
        generator: Random generator.

    Raises:
        UserError: The number of pairs is not a multiple of 10, or one kind of slices has no usable one.
    """
    if pairs < PER_GROUP or pairs % PER_GROUP:
        raise UserError(f"pairs is {pairs}; expected a multiple of {PER_GROUP}: five labelled, five unlabelled slices")
    for kind, slices in (("labelled", labelled), ("unlabelled", unlabelled)):
        if len(slices) == 0:
            raise UserError(
                f"no {kind} slice contains a structure, so the contrastive loss has nothing to compare; check the "
                "labels (`ssl-medseg check`) or the pseudo-labels of this round, or train without this loss "
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
    """Contrastive term on pairs drawn in every step and divided evenly among the processes.

    The two slices of a pair have independent intensity augmentations.

    Args:
        run: Run that provides seed, device and processes.
        labelled: Slices with true labels.
        unlabelled: Slices with the pseudo-labels of this round.
        classes: Number of classes C, background included.
        options: Options of the loss.
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
        self._pair_labels = torch.empty(0)

    def __str__(self) -> str:
        """Describe which slices can be drawn, for the log."""
        known, other = (f"{len(pool)} of {count}" for pool, count in zip(self._pools, self._slices, strict=True))
        return (
            f"contrastive pairs are drawn from {known} labelled and {other} unlabelled slices: those that contain "
            "every class, or any structure if none contains all"
        )

    def images(self, step: int) -> Tensor:
        """Return the slices of this process: the first members of all pairs, then the second ones."""
        run, total = self._run, self._options.pairs
        pairs = draw_pairs(
            *self._pools, pairs=total, variant=self._options.class_means,
            generator=torch.Generator().manual_seed(run.seed("pairs", step)),
        )  # fmt: skip
        own = torch.arange(total // run.world_size) + run.rank * (total // run.world_size)
        index = torch.cat([pairs.first[own], pairs.second[own]]).to(run.device, non_blocking=True)
        self._pair_labels = self._labels[index]
        return jitter_intensity(
            self._images[index], seed=derive(run.seed("pairs"), step), ids=torch.cat([own, own + total])
        )

    @property
    def known(self) -> Tensor:
        """Classes [n, H, W] of the slices of the step; 0 where the pseudo-label is unused."""
        return self._pair_labels.long().masked_fill(self._pair_labels >= self._classes, 0)

    def loss(self, output: Tensor, step: int) -> Tensor:
        """Compute the loss of embeddings; the anchors depend on seed, step and process only."""
        options, labels, half = self._options, self._pair_labels, len(output) // 2
        # Unused pixels must not contribute to anchors or means; the loss ignores class 0.
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
    """Local contrastive loss on the slices of the segmentation losses, each paired with the next slice of the batch.

    Labelled slices have their true labels, unlabelled ones the confident predictions of the teacher, and mixed ones
    mixed labels.

    Args:
        run: Run that provides the seed of the anchors.
        classes: Number of classes C, background included.
        options: Options of the loss.
    """

    def __init__(self, run: Run, *, classes: int, options: ContrastOptions) -> None:
        self.weight = options.weight
        self._run, self._classes, self._options = run, classes, options

    def loss(self, embedding: Tensor, labels: Tensor, step: int) -> Tensor:
        """Compute the loss of embeddings [N, E, H, W] with labels [N, H, W]; 0 marks background and unknown pixels."""
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
    """Check that the pairs can be divided among the processes.

    Raises:
        UserError: The pairs cannot be divided evenly, or the reduction of the released code is used, which depends on
            the order of the pairs.
    """
    if options.pairs % world_size:
        raise UserError(
            f"contrast.pairs is {options.pairs}, but there are {world_size} processes; expected a multiple of that"
        )
    if options.reduction == "official" and world_size > 1:
        raise UserError(
            "contrast.reduction official weights a pair by its position in the batch, which is undefined across "
            f"{world_size} processes; use one process, or pair_mean"
        )
