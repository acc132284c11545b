"""Define recipes and efforts, which set network, loss, optimiser, augmentation, size and steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal, TypeVar

from contrastive_core.errors import UserError
from contrastive_core.training.config import FixedPrecision, Precision
from contrastive_core.training.launch import resolve_precision
from ssl_medseg.io.label_map import LabelMap
from ssl_medseg.losses.segmentation import SegmentationLoss
from ssl_medseg.models.network import NetworkOptions
from ssl_medseg.preprocessing.cases import PreparedCase
from ssl_medseg.training.optim import Schedule
from ssl_medseg.training.slices import AugmentOptions

RecipeName = Literal["strong", "paper"]
"""Recipe of training: `strong`, for few labels, or `paper`, that of the paper's released code."""

Number = TypeVar("Number", int, float)

EffortName = Literal["minutes", "hour", "night", "gpu"]
"""Compute budget."""

Keep = Literal["auto", "best", "last"]
"""Weights to keep."""


@dataclass(frozen=True)
class Recipe:
    """Values that a recipe sets.

    Attributes:
        network: Name of the network.
        loss: Segmentation loss.
        lr: Peak learning rate.
        weight_decay: Weight decay of AdamW; 0 selects Adam.
        ema: Decay of the moving average of the weights that is scored and kept; 0 for no average.
        rare_share: Fraction of a labelled batch that contains the rarest structure.
        augment: Kind of augmentation.
        test_time: Whether to choose mirroring and the largest component on the validation cases.
        keep: Weights to keep by default.
        precision: Number format of the network if none is given.
    """

    network: str
    loss: SegmentationLoss
    lr: float
    weight_decay: float
    ema: float
    rare_share: float
    augment: Literal["strong", "paper"]
    test_time: bool
    keep: Keep
    precision: Precision


RECIPES: dict[str, Recipe] = {
    "strong": Recipe(
        "plain-unet", "dice-ce", 3e-3, 1e-2, 0.99, 0.5, "strong", test_time=True, keep="last", precision="auto"
    ),
    "paper": Recipe("unet", "dice", 1e-2, 0.0, 0.0, 0.0, "paper", test_time=False, keep="auto", precision="32-true"),
}
"""`strong`: loss, norm and augmentation as in nnU-Net, AdamW and averaged weights. `paper`: as in the released code,
except for the learning rate, which is constant at 1e-3 there."""


@dataclass(frozen=True)
class Effort:
    """Values that an effort sets.

    Attributes:
        size: Largest height and width of the slices in pixels; 0 for no limit.
        width: Channels of the network at full resolution.
        steps: Training steps of each stage of a run.
        batch_size: Labelled slices per step; self-training adds as many unlabelled ones.
    """

    size: int
    width: int
    steps: int
    batch_size: int


EFFORTS: dict[str, Effort] = {
    "minutes": Effort(64, 16, 600, 12),
    "hour": Effort(96, 16, 2500, 12),
    "night": Effort(128, 24, 10_000, 12),
    "gpu": Effort(192, 32, 20_000, 24),
}
"""The names give the order of magnitude of the duration of a whole `run` with consistency on a CPU, or on one GPU."""

PAPER = Effort(0, 16, 5000, 20)
"""Size, width, steps and batch size of the released code, which the paper's recipe uses with any effort."""


@dataclass(frozen=True)
class TrainingOptions:
    """Length of training, batches, loss, and the weights to keep.

    Args:
        recipe: ``strong``, designed for few labels, or ``paper``, the settings of the released code; by default strong,
            or the recipe of the initial segmenter in self-training.
        effort: Compute budget, which sets size, width, steps and batch size of the strong recipe: ``minutes``,
            ``hour``, ``night`` or ``gpu``. Results of ``night`` and ``gpu`` were not measured.
        steps: Training steps; with the method ``rounds``, steps of each round. By default set by the effort.
        batch_size: Labelled slices per step, over all processes; by default set by the effort.
        loss: Segmentation loss: ``dice-ce``, Dice over the batch plus cross-entropy; ``dice``, that of the released
            code; ``dice-foreground``, the same without the background; or weighted ``cross-entropy``. By default set by
            the recipe.
        rare_share: Fraction of each labelled batch that contains the rarest structure; by default set by the recipe.
        least_classes: Smallest number of classes, background included, that a labelled slice must contain to be used.
        validate_every: Steps between two validations (3-D Dice on the original grids); by default a twentieth of the
            steps, or 50 in the paper's recipe.
        keep: Weights to keep: ``best`` (mean Dice on the validation cases, in the strong recipe over those that contain
            the structure) or ``last``. ``auto`` means last in the strong recipe, whose averaged weights improve until
            the end, while one or two validation patients cannot distinguish steps; in the paper's recipe it means best
            if the split has validation cases.
            Self-training keeps the initial segmenter if the best step scores lower, or the last step much lower (by
            0.05 Dice), on the validation cases.
        test_time: Whether to choose mirroring of slices and the largest component of each structure for prediction,
            using the validation cases; by default set by the recipe.
    """

    recipe: RecipeName | None = None
    effort: EffortName = "hour"
    steps: int | None = None
    batch_size: int | None = None
    loss: SegmentationLoss | None = None
    rare_share: float | None = None
    least_classes: int = 1
    validate_every: int | None = None
    keep: Keep = "auto"
    test_time: bool | None = None

    def __post_init__(self) -> None:
        if self.recipe not in (None, *RECIPES) or self.effort not in EFFORTS:
            raise UserError(
                f"got recipe {self.recipe!r} and effort {self.effort!r}; expected one of the recipes "
                f"{', '.join(RECIPES)} and one of the efforts {', '.join(EFFORTS)}"
            )


@dataclass(frozen=True)
class OptimizerOptions:
    """Optimiser, learning rate, and averaging of the weights.

    Args:
        lr: Peak learning rate; by default set by the recipe.
        weight_decay: Weight decay of AdamW; 0 selects Adam; by default set by the recipe.
        schedule: Learning-rate schedule: ``cosine``, a warm-up followed by decay to 0, restarted in every round of
            self-training; or ``constant``, used by the released code with a rate of 1e-3.
        ema: Decay of the exponential moving average of the weights, which is scored, kept, and in self-training also
            makes the pseudo-labels; 0 disables it; by default set by the recipe. All methods of self-training except
            ``rounds`` need an average and use 0.99 if it is disabled.
    """

    lr: float | None = None
    weight_decay: float | None = None
    schedule: Schedule = "cosine"
    ema: float | None = None


@dataclass(frozen=True)
class Settings:
    """The values that result from a recipe, an effort and explicit options.

    Attributes:
        recipe: Name of the recipe.
        effort: Name of the effort, never `auto`.
        steps: Training steps.
        batch_size: Labelled slices per step.
        loss: Segmentation loss.
        rare_share: Fraction of a labelled batch that contains the rarest structure.
        least_classes: Smallest number of classes that a labelled slice must contain to be used.
        validate_every: Steps between two validations.
        keep: Weights to keep.
        test_time: Whether to choose mirroring and the largest component on the validation cases.
        lr: Peak learning rate.
        weight_decay: Weight decay of AdamW; 0 selects Adam.
        schedule: Learning-rate schedule.
        ema: Decay of the moving average of the weights; 0 for no average.
        largest: Largest size of the slices in pixels; 0 for no limit.
        network: Network.
        augment: Augmentation of the labelled slices.
        precision: Number format of the network.
    """

    recipe: RecipeName
    effort: EffortName
    steps: int
    batch_size: int
    loss: SegmentationLoss
    rare_share: float
    least_classes: int
    validate_every: int
    keep: Keep
    test_time: bool
    lr: float
    weight_decay: float
    schedule: Schedule
    ema: float
    largest: int
    network: NetworkOptions
    augment: AugmentOptions
    precision: FixedPrecision

    def for_data(self, labels: LabelMap, labelled: Sequence[PreparedCase], *, oriented: bool) -> Settings:
        """Return the settings with an augmentation that suits the structures and the orientation of the data."""
        return replace(self, augment=self.augment.for_data(labels, labelled, oriented=oriented))

    @property
    def values(self) -> dict[str, object]:
        """The settings as options of a command, for the configuration of a run."""
        groups = {"training": TrainingOptions, "optimizer": OptimizerOptions}
        options = {
            name: group(**{field.name: getattr(self, field.name) for field in fields(group)})
            for name, group in groups.items()
        }
        return {**options, "network": self.network, "augment": self.augment}

    def __str__(self) -> str:
        """Summarise the settings in one line, for the log."""
        effort = "" if self.recipe == "paper" else f", effort {self.effort}"
        augmentation = f"{self.augment.kind} augmentation"
        if self.augment.kind == "strong":
            augmentation += " without mirroring" if self.augment.mirror == 0 else ""
            larger = self.augment.enlarge or self.augment.scale
            augmentation += f" and up to {larger:.2g}-fold enlargement" if larger > self.augment.scale else ""
        return (
            f"recipe {self.recipe}{effort}: {self.steps:,} steps of {self.batch_size} labelled slices, "
            f"{self.network.name} of width {self.network.width}, loss {self.loss}, learning rate {self.lr:g}, "
            f"{augmentation}, precision {self.precision}"
        )


def choose(
    training: TrainingOptions = TrainingOptions(),
    optimizer: OptimizerOptions = OptimizerOptions(),
    *,
    device: str,
    network: NetworkOptions = NetworkOptions(),  # noqa: B008
    augment: AugmentOptions = AugmentOptions(),  # noqa: B008
    precision: Precision = "auto",
) -> Settings:
    """Complete the options with the values of the recipe and the effort.

    Args:
        training: Length, batches, loss, and the weights to keep.
        optimizer: Optimiser and averaging of the weights.
        device: Device: auto, cpu, cuda or mps.
        network: Network; name `auto` and width 0 leave the choice to recipe and effort.
        augment: Augmentation; kind `auto` leaves the choice to the recipe.
        precision: Number format of the network; `auto` leaves the choice to recipe and device.

    Raises:
        UserError: A number is out of range.
    """
    recipe, effort = training.recipe or "strong", training.effort
    base, size = RECIPES[recipe], PAPER if recipe == "paper" else EFFORTS[effort]
    steps = _or(training.steps, size.steps)
    settings = Settings(
        recipe=recipe,
        effort=effort,
        steps=steps,
        batch_size=_or(training.batch_size, size.batch_size),
        loss=training.loss or base.loss,
        rare_share=_or(training.rare_share, base.rare_share),
        least_classes=training.least_classes,
        validate_every=_or(training.validate_every, 50 if recipe == "paper" else max(1, steps // 20)),
        keep=base.keep if training.keep == "auto" else training.keep,
        test_time=base.test_time if training.test_time is None else training.test_time,
        lr=_or(optimizer.lr, base.lr),
        weight_decay=_or(optimizer.weight_decay, base.weight_decay),
        schedule=optimizer.schedule,
        # Average over at most a tenth of a short run; otherwise the first steps would enter the average.
        ema=_or(optimizer.ema, min(base.ema, max(0.0, 1 - 10 / steps)) if steps > 0 else base.ema),
        largest=size.size,
        network=replace(
            network,
            name=base.network if network.name == "auto" else network.name,
            width=network.width or size.width,
        ),
        augment=replace(augment, kind=base.augment if augment.kind == "auto" else augment.kind),
        precision=resolve_precision(base.precision if precision == "auto" else precision, device),
    )
    _check(settings)
    return settings


def _or(value: Number | None, otherwise: Number) -> Number:
    return otherwise if value is None else value


def _check(settings: Settings) -> None:
    if (
        min(settings.steps, settings.validate_every) < 1
        or not 0 < settings.lr < float("inf")
        or not 0 <= settings.weight_decay < float("inf")
        or not 0 <= settings.ema < 1
        or not 0 <= settings.rare_share <= 1
    ):
        raise UserError(
            f"steps is {settings.steps}, validate_every is {settings.validate_every}, lr is {settings.lr}, "
            f"weight_decay is {settings.weight_decay}, ema is {settings.ema} and rare_share is {settings.rare_share}; "
            "expected steps and validate_every of at least 1, an lr above 0, a weight_decay of at least 0, an ema from "
            "0 to below 1, and a rare_share from 0 to 1"
        )
