"""Settings of self-training."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from contrastive_core.errors import UserError
from contrastive_core.losses.local_contrastive import Reduction, Variant
from ssl_medseg.models.network import Norm
from ssl_medseg.selftraining.crf import CrfName
from ssl_medseg.training.recipe import Settings
from ssl_medseg.training.slices import AugmentOptions

Method = Literal["consistency", "copy-paste", "rounds", "mean-teacher"]
"""How unlabelled slices take part."""

Reuse = Literal["whole", "trunk", "none"]
"""Part of the segmenter that self-training begins with: all of it, its trunk and a new head, or random weights."""


@dataclass(frozen=True)
class PseudoLabelOptions:
    """How predictions on unlabelled cases become labels.

    Args:
        crf: Clean-up of every slice with a fully connected CRF: off, mild, or as the released code sets it. Where a
            class would lose more than half its area in a slice, the slice stays as predicted.
        threshold: Smallest probability of a pixel that is used.
        class_share: Share of the most confident pixels of each class that are used; 1 uses all.
        predictions: Predictions per slice: 1 as it is; 3 also mirrored left-right and up-down, averaged.
        agreement: Smallest share of the views that must agree on the class of a pixel that is used.
        case_dice: Smallest agreement of the views, as mean Dice over structures, of a case that is used; 0.9 in the
            released code's quality control, which is off there as here.
        guard: Reaction to a class that is nearly missing from the unlabelled cases or over-represented in them,
            compared with the labelled ones. stop: `rounds` stop, the other methods keep the segmenter they began with
            if it does not have the problem; warn: a warning; off: nothing.
        least_area: Share of its area in the labelled cases below which a class counts as missing.
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
                raise UserError(f"pseudo.{name} is {getattr(self, name)}; expected a share from 0 to 1")
        if not 0 < self.class_share <= 1 or self.most_area <= 1:
            raise UserError(
                f"pseudo.class_share is {self.class_share} and pseudo.most_area {self.most_area}; expected a share "
                "above 0 up to 1, and a multiple above 1"
            )
        if self.predictions == 1 and (self.agreement or self.case_dice):
            raise UserError(
                "pseudo.agreement and pseudo.case_dice compare views, and there is one; set pseudo.predictions 3"
            )


@dataclass(frozen=True)
class ContrastOptions:
    """The local contrastive loss on labelled and unlabelled slices.

    Args:
        weight: Weight of the loss beside any method; 0 leaves it out. The paper's code uses 0.1, under a reduction that
            shrinks the gradient about tenfold; with `pair_mean` we use 0.03 to 0.1.
        class_means: Pixels against the class means of both slices of a pair (inter) or of their own (intra).
        reduction: Mean over pairs, or the released code's, in which the last pair decides.
        temperature: Temperature of the similarities.
        anchors: Pixels drawn per class and slice.
        pairs: Pairs per step over all processes, a multiple of 10. Of `rounds` alone: the other methods compare each
            slice of the step with the next.
        embedding: Width of the embeddings.
        background: Treat the background as one more class with anchors and means; not in the paper.
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
                f"{self.embedding}; expected a weight of at least 0, a temperature above 0, whole numbers above 0"
            )
        if self.pairs < 10 or self.pairs % 10:
            raise UserError(f"contrast.pairs is {self.pairs}; expected a multiple of 10, the paper's pattern of pairs")


@dataclass(frozen=True)
class ConsistencyOptions:
    """Pseudo-labels that an averaged teacher makes in every step, for `consistency` and `copy-paste`.

    Args:
        weight: Weight of the loss on unlabelled pixels; half of it in `copy-paste`.
        confidence: Smallest largest-class probability of the teacher for a pixel that is used.
        ramp: Share of the steps over which the weight grows to its value.
        cutmix: Share of the slices into which a box of another one is pasted (`consistency`).
        smallest: Smallest area of that box, as a share of the slice.
        largest: Largest area of that box.
        feature_dropout: Share of the channels of each encoder map that are set to 0 in a second, weakly augmented
            version of every slice, which learns the same pseudo-labels (`consistency`); each version has half the
            weight. 0.5 in UniMatch; 0 leaves that version out.
        box: Side of the box that `copy-paste` exchanges, as a share of that of the slice.
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
                raise UserError(f"consistency.{name} is {getattr(self, name)}; expected a share from 0 to 1")
        if not 0 <= self.feature_dropout < 1:
            raise UserError(
                f"consistency.feature_dropout is {self.feature_dropout}; expected a share from 0 to below 1"
            )
        if not 0 <= self.weight < float("inf") or self.smallest > self.largest or not 0 < self.box < 1:
            raise UserError(
                f"consistency has weight {self.weight}, areas from {self.smallest} to {self.largest} and a box of "
                f"{self.box}; expected a weight of at least 0, areas in ascending order, a box between 0 and 1"
            )


@dataclass(frozen=True)
class TeacherOptions:
    """The loss of ``mean-teacher``.

    Args:
        consistency: Weight of the mean teacher's loss: squared distance of the class probabilities of student and
            teacher on the same unlabelled slice under two intensity changes.
        ramp: Share of the steps over which that weight grows to its value.
    """

    consistency: float = 1.0
    ramp: float = 0.4

    def __post_init__(self) -> None:
        if self.consistency < 0 or not 0 <= self.ramp <= 1:
            raise UserError(
                f"teacher has consistency {self.consistency} and ramp {self.ramp}; expected a weight of at least 0, "
                "and a share"
            )


@dataclass(frozen=True)
class SelfTrainingOptions:
    """Use of the unlabelled slices.

    Args:
        method: Method of learning from the unlabelled slices: ``consistency``, ``copy-paste``, ``rounds`` or
            ``mean-teacher``.
        rounds: Number of times that ``rounds`` makes pseudo-labels.
        unlabelled_batch: Unlabelled slices per step, mixed ones in ``copy-paste``; by default as many as labelled ones.
        pseudo_weight: Weight of the segmentation loss on the pseudo-labels of ``rounds``.
        reuse: Part of the segmenter to begin with: the ``whole``; its ``trunk`` with a new head, as the released code;
            or ``none``, random weights; by default the whole, or the trunk in the paper's recipe.
        norm: Batch norm of the contrastive images of ``rounds``: ``apart``, in a pass of their own that leaves the
            running averages alone; ``joint``, in one batch with the segmented images, as the released code (costs much
            accuracy in short runs); ``trunk``, joint in the trunk only.
        contrast: Local contrastive loss.
        consistency: Pseudo-labels of ``consistency`` and ``copy-paste``.
        pseudo: Making, cleaning and guarding of the pseudo-labels of ``rounds``.
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
                f"got rounds {self.rounds} and pseudo_weight {self.pseudo_weight}; expected at least one round and a "
                "weight of at least 0"
            )
        if self.unlabelled_batch is not None and self.unlabelled_batch < 1:
            raise UserError(f"unlabelled_batch is {self.unlabelled_batch}; expected at least 1")

    def settled(self, training: Settings) -> SelfTrainingOptions:
        """These options with every value that recipe and effort leave to set.

        Raises:
            UserError: `copy-paste` has an odd number of slices.
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
