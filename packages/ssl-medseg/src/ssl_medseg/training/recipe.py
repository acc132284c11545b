"""Recipes and efforts: the two names that set network, loss, optimiser, augmentation, size and steps together."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Literal, TypeVar

from contrastive_core.errors import UserError
from contrastive_core.training.launch import choose_device
from ssl_medseg.losses.segmentation import SegmentationLoss
from ssl_medseg.models.network import AUTO, NetworkOptions
from ssl_medseg.training.optim import Schedule
from ssl_medseg.training.slices import AugmentOptions

RecipeName = Literal["strong", "paper"]
"""How a network is trained: as few labels need it, or as the paper's released code does."""

Number = TypeVar("Number", int, float)

EffortName = Literal["auto", "minutes", "hour", "night", "gpu"]
"""How much is spent: auto is `gpu` on a GPU and `hour` elsewhere."""

Keep = Literal["auto", "best", "last"]
"""Weights to keep."""


@dataclass(frozen=True)
class Recipe:
    """What a recipe sets.

    Attributes:
        network: Name of the network.
        loss: Segmentation loss.
        lr: Largest learning rate.
        weight_decay: Weight decay of AdamW; 0 selects Adam.
        ema: Decay of the average of the weights that is scored and kept; 0: none.
        rare_share: Share of a labelled batch that shows the rarest structure.
        augment: Kind of augmentation.
        test_time: Choose mirroring and the largest component on the validation cases.
        keep: Weights to keep, where that is not given.
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


RECIPES: dict[str, Recipe] = {
    "strong": Recipe("plain-unet", "dice-ce", 3e-3, 1e-2, 0.99, 0.5, "strong", test_time=True, keep="last"),
    "paper": Recipe("unet", "dice", 1e-2, 0.0, 0.0, 0.0, "paper", test_time=False, keep="auto"),
}
"""`strong`: the loss, the norm and the augmentation of nnU-Net, AdamW and averaged weights. `paper`: the released code
but for the learning rate, which is 1e-3 throughout there."""


@dataclass(frozen=True)
class Effort:
    """What an effort sets.

    Attributes:
        size: Largest height and width of the slices in pixels; 0: all the pixels that the data have.
        width: Channels of the network at full resolution.
        steps: Training steps of each stage of a run.
        batch_size: Labelled slices per step, and as many unlabelled ones.
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
"""Each name is the time that a whole `run` with consistency is meant to take, on two CPU cores or on one GPU."""

PAPER = Effort(0, 16, 5000, 20)
"""Size, width, steps and batch of the released code, whatever the effort."""


@dataclass(frozen=True)
class TrainingOptions:
    """Length of training, its batches and loss, and the weights that are kept.

    Args:
        recipe: ``strong``, made for few labels, or ``paper``, the settings of the released code; by default strong, or
            the recipe of the segmenter that self-training begins with.
        effort: ``minutes``, ``hour``, ``night`` or ``gpu``: size, width, steps and batch of the strong recipe; ``auto``
            is gpu on a GPU and hour elsewhere.
        steps: Training steps, of self-training in ``rounds`` those of each round; by default set by the effort.
        batch_size: Labelled slices per step, over all processes; by default set by the effort.
        loss: ``dice-ce``, Dice over the batch plus cross-entropy; ``dice``, the released code's; ``dice-foreground``
            (without the background's); or weighted ``cross-entropy``; by default set by the recipe.
        rare_share: Share of each labelled batch that shows the rarest structure; by default set by the recipe.
        least_classes: Smallest number of classes, background included, in a labelled slice that is drawn.
        validate_every: Steps between two scores on the validation cases, 3-D Dice on their own grids; by default a
            twentieth of the steps, or 50 in the paper's recipe.
        keep: Weights to keep: ``best`` mean foreground Dice on validation, or ``last``. ``auto`` is last in the strong
            recipe, whose averaged weights get better to the end, while a validation patient or two cannot tell steps
            apart; in the paper's it is best if the split has validation cases. Self-training keeps the segmenter given
            if, by the validation cases, the best step is worse or the last one much worse (by 0.05 Dice).
        test_time: Choose on the validation cases whether prediction averages mirrored slices and keeps the largest part
            of each structure; by default set by the recipe.
    """

    recipe: RecipeName | None = None
    effort: EffortName = "auto"
    steps: int | None = None
    batch_size: int | None = None
    loss: SegmentationLoss | None = None
    rare_share: float | None = None
    least_classes: int = 1
    validate_every: int | None = None
    keep: Keep = "auto"
    test_time: bool | None = None

    def __post_init__(self) -> None:
        if self.recipe not in (None, *RECIPES) or self.effort not in ("auto", *EFFORTS):
            raise UserError(
                f"found recipe {self.recipe!r} and effort {self.effort!r}; expected a recipe of {', '.join(RECIPES)} "
                f"and an effort of auto, {', '.join(EFFORTS)}"
            )


@dataclass(frozen=True)
class OptimizerOptions:
    """Optimiser, learning rate, and average of the weights.

    Args:
        lr: Peak learning rate; by default set by the recipe.
        weight_decay: Weight decay of AdamW; 0 selects Adam; by default set by the recipe.
        schedule: ``cosine``: warm-up, then down to 0, in every round of self-training; or ``constant``, which at 1e-3
            is the released code's.
        ema: Decay of the exponential moving average of the weights that is scored and kept, and in self-training makes
            the pseudo-labels; 0 keeps the weights themselves; by default set by the recipe. All methods of
            self-training but ``rounds`` need an average and take 0.99 where there is none.
    """

    lr: float | None = None
    weight_decay: float | None = None
    schedule: Schedule = "cosine"
    ema: float | None = None


@dataclass(frozen=True)
class Settings:
    """The values that a recipe, an effort and the options given beside them amount to.

    Attributes:
        recipe: Name of the recipe.
        effort: Name of the effort, never `auto`.
        steps: Training steps.
        batch_size: Labelled slices per step.
        loss: Segmentation loss.
        rare_share: Share of a labelled batch that shows the rarest structure.
        least_classes: Smallest number of classes in a labelled slice that is drawn.
        validate_every: Steps between two scores on the validation cases.
        keep: Weights to keep.
        test_time: Whether to choose mirroring and the largest component on the validation cases.
        lr: Peak learning rate.
        weight_decay: Weight decay of AdamW; 0 selects Adam.
        schedule: Learning-rate schedule.
        ema: Decay of the average of the weights; 0: none.
        largest: Largest size of the slices, in pixels; 0: any.
        network: The network.
        augment: Augmentation of the labelled slices.
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

    @property
    def values(self) -> dict[str, object]:
        """The settings as the options of a command, for the configuration of a run."""
        groups = {"training": TrainingOptions, "optimizer": OptimizerOptions}
        chosen = {
            name: group(**{field.name: getattr(self, field.name) for field in fields(group)})
            for name, group in groups.items()
        }
        return {**chosen, "network": self.network, "augment": self.augment}

    def __str__(self) -> str:
        """The choice in one line, for the person watching."""
        effort = "" if self.recipe == "paper" else f", effort {self.effort}"
        return (
            f"recipe {self.recipe}{effort}: {self.steps:,} steps of {self.batch_size} labelled slices, "
            f"{self.network.name} of width {self.network.width}, loss {self.loss}, learning rate {self.lr:g}, "
            f"{self.augment.kind} augmentation"
        )


def choose(
    training: TrainingOptions = TrainingOptions(),
    optimizer: OptimizerOptions = OptimizerOptions(),
    *,
    device: str,
    network: NetworkOptions = AUTO,
    augment: AugmentOptions = AugmentOptions(),  # noqa: B008
) -> Settings:
    """Fill in by recipe and effort whatever is not given.

    Args:
        training: Length, batches, loss and kept weights.
        optimizer: Optimiser and average of the weights.
        device: Name of the device: auto, cpu, cuda or mps.
        network: With the name `auto` or the width 0 where the recipe is to choose.
        augment: With the kind `auto` where the recipe is to choose.

    Raises:
        UserError: A number is out of its range.
    """
    recipe, effort = training.recipe or "strong", training.effort
    if effort == "auto":
        effort = "hour" if choose_device(device).type == "cpu" else "gpu"
    base, size = RECIPES[recipe], PAPER if recipe == "paper" else EFFORTS[effort]
    steps = _or(training.steps, size.steps)
    chosen = Settings(
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
        # Over a tenth of a short run at most: what is averaged over most of it has the first steps in it.
        ema=_or(optimizer.ema, min(base.ema, max(0.0, 1 - 10 / steps)) if steps > 0 else base.ema),
        largest=size.size,
        network=replace(
            network,
            name=base.network if network.name == "auto" else network.name,
            width=network.width or size.width,
        ),
        augment=replace(augment, kind=base.augment if augment.kind == "auto" else augment.kind),
    )
    _check(chosen)
    return chosen


def _or(given: Number | None, otherwise: Number) -> Number:
    return otherwise if given is None else given


def _check(chosen: Settings) -> None:
    if (
        min(chosen.steps, chosen.validate_every) < 1
        or not 0 < chosen.lr < float("inf")
        or not 0 <= chosen.weight_decay < float("inf")
        or not 0 <= chosen.ema < 1
        or not 0 <= chosen.rare_share <= 1
    ):
        raise UserError(
            "training needs steps and validate_every of at least 1, lr above 0, weight_decay of at least 0, "
            f"0 <= ema < 1 and a rare_share between 0 and 1; got {chosen.steps}, {chosen.validate_every}, {chosen.lr}, "
            f"{chosen.weight_decay}, {chosen.ema} and {chosen.rare_share}"
        )
