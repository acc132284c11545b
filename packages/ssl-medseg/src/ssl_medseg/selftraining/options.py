"""Settings of self-training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from contrastive_core.errors import UserError
from contrastive_core.losses.local_contrastive import Reduction, Variant
from ssl_medseg.io.label_map import LabelMap
from ssl_medseg.models.network import Norm
from ssl_medseg.preprocessing.cases import PreparedCase
from ssl_medseg.selftraining.crf import CrfName
from ssl_medseg.training.recipe import Settings
from ssl_medseg.training.slices import AugmentOptions

Method = Literal["consistency", "copy-paste", "rounds", "mean-teacher"]
"""Method of learning from unlabelled slices."""

Reuse = Literal["whole", "trunk", "none"]
"""Initial weights of self-training: the whole segmenter, its trunk with a new head, or random weights."""


@dataclass(frozen=True)
class PseudoLabelOptions:
    """Options for turning predictions on unlabelled cases into pseudo-labels.

    Args:
        crf: Refinement of each slice with a fully connected CRF: off, mild, or the settings of the released code. If a
            class would lose more than half of its area in a slice, the slice keeps its prediction.
        threshold: Probability below which a pixel is not used.
        class_share: Fraction of the most confident pixels of each class that are used; 1 uses all.
        predictions: Number of predictions averaged per slice: 1 uses the slice itself; 3 adds its left-right and
            up-down mirror images.
        agreement: Fraction of the predictions that must agree on the class of a pixel for it to be used.
        case_dice: Agreement of the predictions, as mean Dice over structures, below which a case is not used. The
            quality control of the released code uses 0.9 and is off by default, as here.
        guard: Reaction to a class that is nearly missing from the unlabelled cases or over-represented in them,
            compared with the labelled ones. stop: `rounds` stops, and the other methods keep the initial segmenter
            unless it has the same problem; warn: print a warning; off: do nothing.
        least_area: Fraction of its area in the labelled cases below which a class counts as missing.
        most_area: Multiple of its area in the labelled cases above which a class counts as over-represented.
    """

    crf: CrfName = "off"
    threshold: float = 0.0
    class_share: float = 1.0
    predictions: Literal[1, 3] = 1
    agreement: float = 0.0
    case_dice: float = 0.0
    guard: Literal["stop", "warn", "off"] = "stop"
    least_area: float = 0.2
    most_area: float = 5.0

    def __post_init__(self) -> None:
        for name in ("threshold", "agreement", "case_dice", "least_area"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"pseudo.{name} is {getattr(self, name)}; expected a fraction from 0 to 1")
        if not 0 < self.class_share <= 1 or self.most_area <= 1:
            raise UserError(
                f"pseudo.class_share is {self.class_share} and pseudo.most_area is {self.most_area}; expected a "
                "fraction above 0 and up to 1, and a multiple above 1"
            )
        if self.predictions == 1 and (self.agreement or self.case_dice):
            raise UserError(
                "pseudo.agreement and pseudo.case_dice compare several predictions, but pseudo.predictions is 1; set "
                "--pseudo.predictions 3"
            )


@dataclass(frozen=True)
class ContrastOptions:
    """Options of the local contrastive loss on labelled and unlabelled slices.

    Args:
        weight: Weight of the loss, which can be added to any method; 0 disables it. The paper's code uses 0.1 with a
            reduction that shrinks the gradient about tenfold; we use 0.03 to 0.1 with `pair_mean`.
        class_means: Class means to compare pixels with: those of both slices of a pair (inter) or of their own slice
            (intra).
        reduction: Mean over pairs (`pair_mean`), or the reduction of the released code, in which the last pair
            dominates (`official`).
        temperature: Temperature of the similarities.
        anchors: Number of anchor pixels per class and slice.
        pairs: Pairs per step over all processes, a multiple of 10. Used by `rounds` only; the other methods compare
            each slice of the step with the next.
        embedding: Dimension of the embeddings.
        background: Treat the background as a further class with anchors and means; not in the paper.
    """

    weight: float = 0.0
    class_means: Variant = "inter"
    reduction: Reduction = "pair_mean"
    temperature: float = 0.1
    anchors: int = 3
    pairs: int = 10
    embedding: int = 16
    background: bool = False

    def __post_init__(self) -> None:
        if self.weight < 0 or self.temperature <= 0 or min(self.anchors, self.embedding) < 1:
            raise UserError(
                f"contrast has weight {self.weight}, temperature {self.temperature}, anchors {self.anchors}, embedding "
                f"{self.embedding}; expected a weight of at least 0, a temperature above 0, and at least one anchor "
                "and one dimension"
            )
        if self.pairs < 10 or self.pairs % 10:
            raise UserError(
                f"contrast.pairs is {self.pairs}; expected a multiple of 10, because the paper forms pairs in tens"
            )


@dataclass(frozen=True)
class ConsistencyOptions:
    """Options of `consistency` and `copy-paste`, whose pseudo-labels come from a mean teacher in every step.

    Args:
        weight: Weight of the loss on unlabelled pixels; halved in `copy-paste`.
        confidence: Teacher probability of the predicted class below which a pixel is not used.
        ramp: Fraction of the steps over which the weight ramps up.
        cutmix: Fraction of the slices into which a box of another slice is pasted (`consistency`).
        smallest: Smallest area of the pasted box, as a fraction of the slice (`consistency`).
        largest: Largest area of the pasted box, as a fraction of the slice (`consistency`).
        feature_dropout: Fraction of the channels of each encoder feature map that are set to 0 in a second, weakly
            augmented view of every slice, which is trained on the same pseudo-labels (`consistency`). Both views then
            have half the weight. 0.5 in UniMatch; 0 disables the second view.
        box: Side of the box that `copy-paste` exchanges, as a fraction of the side of the slice.
    """

    weight: float = 1.0
    confidence: float = 0.9
    ramp: float = 0.3
    cutmix: float = 0.66
    smallest: float = 0.05
    largest: float = 0.4
    feature_dropout: float = 0.0
    box: float = 2 / 3

    def __post_init__(self) -> None:
        for name in ("confidence", "ramp", "cutmix", "smallest", "largest"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"consistency.{name} is {getattr(self, name)}; expected a fraction from 0 to 1")
        if not 0 <= self.feature_dropout < 1:
            raise UserError(
                f"consistency.feature_dropout is {self.feature_dropout}; expected a fraction from 0 to below 1"
            )
        if not 0 <= self.weight < float("inf") or self.smallest > self.largest or not 0 < self.box < 1:
            raise UserError(
                f"consistency has weight {self.weight}, areas from {self.smallest} to {self.largest} and a box of "
                f"{self.box}; expected a weight of at least 0, areas in ascending order, and a box between 0 and 1"
            )


@dataclass(frozen=True)
class TeacherOptions:
    """Options of ``mean-teacher``.

    Args:
        consistency: Weight of the consistency loss: squared distance between the class probabilities of student and
            teacher on the same unlabelled slice under two intensity augmentations.
        ramp: Fraction of the steps over which the weight of the consistency loss ramps up.
    """

    consistency: float = 1.0
    ramp: float = 0.4

    def __post_init__(self) -> None:
        if self.consistency < 0 or not 0 <= self.ramp <= 1:
            raise UserError(
                f"teacher has consistency {self.consistency} and ramp {self.ramp}; expected a weight of at least 0 "
                "and a fraction from 0 to 1"
            )


@dataclass(frozen=True)
class SelfTrainingOptions:
    """Options of self-training.

    Args:
        method: Method of learning from the unlabelled slices: ``consistency``, ``copy-paste``, ``rounds`` or
            ``mean-teacher``.
        rounds: Number of rounds; ``rounds`` makes new pseudo-labels at the start of each.
        unlabelled_batch: Unlabelled slices per step, or mixed slices in ``copy-paste``; by default as many as labelled
            ones.
        pseudo_weight: Weight of the segmentation loss on the pseudo-labels of ``rounds``.
        reuse: Initial weights: the ``whole`` segmenter; its ``trunk`` with a new head, as in the released code; or
            ``none``, random weights. By default whole, or trunk in the paper's recipe.
        norm: Batch norm of the contrastive images of ``rounds``: ``apart``, in a separate forward pass that does not
            update the running averages; ``joint``, in one batch with the segmented images, as in the released code
            (costs much accuracy in short runs); ``trunk``, joint in the trunk only.
        contrast: Local contrastive loss.
        consistency: Pseudo-labels of ``consistency`` and ``copy-paste``.
        pseudo: Generation, refinement and plausibility check of the pseudo-labels of ``rounds``.
        teacher: Loss of ``mean-teacher``.
        unlabelled_augment: Augmentation of the unlabelled slices and their pseudo-labels.
    """

    method: Method = "consistency"
    rounds: int = 3
    unlabelled_batch: int | None = None
    pseudo_weight: float = 1.0
    reuse: Reuse | None = None
    norm: Norm = "apart"
    contrast: ContrastOptions = field(default_factory=ContrastOptions)
    consistency: ConsistencyOptions = field(default_factory=ConsistencyOptions)
    pseudo: PseudoLabelOptions = field(default_factory=PseudoLabelOptions)
    teacher: TeacherOptions = field(default_factory=TeacherOptions)
    unlabelled_augment: AugmentOptions = field(default_factory=AugmentOptions)

    def __post_init__(self) -> None:
        if self.rounds < 1 or not 0 <= self.pseudo_weight < float("inf"):
            raise UserError(
                f"rounds is {self.rounds} and pseudo_weight is {self.pseudo_weight}; expected at least one round and a "
                "weight of at least 0"
            )
        if self.unlabelled_batch is not None and self.unlabelled_batch < 1:
            raise UserError(f"unlabelled_batch is {self.unlabelled_batch}; expected at least 1")

    def settled(self, training: Settings) -> SelfTrainingOptions:
        """Fill in the options that depend on recipe and effort.

        Raises:
            UserError: The number of unlabelled slices is odd in `copy-paste`.
        """
        count = training.batch_size if self.unlabelled_batch is None else self.unlabelled_batch
        if self.method == "copy-paste" and count % 2:
            raise UserError(f"unlabelled_batch is {count}; expected an even number: copy-paste mixes slices in pairs")
        kind = self.unlabelled_augment.kind
        return replace(
            self,
            unlabelled_batch=count,
            reuse=self.reuse or ("trunk" if training.recipe == "paper" else "whole"),
            unlabelled_augment=replace(self.unlabelled_augment, kind=training.augment.kind if kind == "auto" else kind),
        )

    def for_data(self, labels: LabelMap, labelled: Sequence[PreparedCase], *, oriented: bool) -> SelfTrainingOptions:
        """Return the options with an augmentation that suits the structures and the orientation of the data.

        Raises:
            UserError: Predictions of mirror images are to be averaged, but structures lie on a side of the body.
        """
        if labels.sided and self.pseudo.predictions > 1:
            raise UserError(
                f"pseudo.predictions is {self.pseudo.predictions}, but mirror images exchange the sides of "
                f"{labels.sided[0]}; expected 1"
            )
        augment = self.unlabelled_augment.for_data(labels, labelled, oriented=oriented)
        return replace(self, unlabelled_augment=augment)
