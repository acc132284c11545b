"""Recipes and efforts: the two names that set network, loss, optimiser, augmentation, size and steps together."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Literal, TypeVar

from contrastive_core.errors import UserError
from contrastive_core.training.launch import choose_device
from ssl_medseg.losses.segmentation import SegmentationLoss
from ssl_medseg.models import NetworkOptions
from ssl_medseg.training.augment import AugmentOptions

RecipeName = Literal["strong", "paper"]
"""How a network is trained: as few labels need it, or as the paper's released code does."""

Number = TypeVar("Number", int, float)

EffortName = Literal["auto", "minutes", "hour", "night", "gpu"]
"""How much is spent: auto is `gpu` on a GPU and `hour` elsewhere."""


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
    """

    network: str
    loss: SegmentationLoss
    lr: float
    weight_decay: float
    ema: float
    rare_share: float
    augment: Literal["strong", "paper"]
    test_time: bool


RECIPES: dict[str, Recipe] = {
    "strong": Recipe("plain-unet", "dice-ce", 3e-3, 1e-2, 0.99, 0.5, "strong", test_time=True),
    "paper": Recipe("unet", "dice", 1e-2, 0.0, 0.0, 0.0, "paper", test_time=False),
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
class Settings:
    """Everything that a recipe, an effort and the options given beside them amount to.

    Attributes:
        recipe: Name of the recipe.
        effort: Name of the effort, never `auto`.
        steps: Training steps.
        batch_size: Labelled slices per step.
        lr: Largest learning rate.
        weight_decay: Weight decay of AdamW; 0 selects Adam.
        loss: Segmentation loss.
        ema: Decay of the average of the weights; 0: none.
        rare_share: Share of a labelled batch that shows the rarest structure.
        validate_every: Steps between two scores on the validation cases.
        test_time: Choose mirroring and the largest component on the validation cases.
        largest: Largest size of the slices, in pixels; 0: any.
        network: The network.
        augment: Augmentation of the labelled slices.
    """

    recipe: RecipeName
    effort: EffortName
    steps: int
    batch_size: int
    lr: float
    weight_decay: float
    loss: SegmentationLoss
    ema: float
    rare_share: float
    validate_every: int
    test_time: bool
    largest: int
    network: NetworkOptions
    augment: AugmentOptions

    @property
    def values(self) -> dict[str, object]:
        """The settings by the names that commands give them, for the configuration of a run."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "largest"}

    def __str__(self) -> str:
        """The choice in one line, for the person watching."""
        effort = "" if self.recipe == "paper" else f", effort {self.effort}"
        return (
            f"recipe {self.recipe}{effort}: {self.steps:,} steps of {self.batch_size} labelled slices, "
            f"{self.network.name} of width {self.network.width}, loss {self.loss}, learning rate {self.lr:g}, "
            f"{self.augment.kind} augmentation"
        )


def choose(
    recipe: RecipeName,
    effort: EffortName,
    *,
    device: str,
    steps: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    weight_decay: float | None = None,
    loss: SegmentationLoss | None = None,
    ema: float | None = None,
    rare_share: float | None = None,
    validate_every: int | None = None,
    test_time: bool | None = None,
    network: NetworkOptions | None = None,
    augment: AugmentOptions | None = None,
) -> Settings:
    """Fill in by recipe and effort whatever is not given.

    Args:
        recipe: Name of the recipe.
        effort: Name of the effort; auto depends on the device.
        device: Name of the device: auto, cpu, cuda or mps.
        steps: Training steps.
        batch_size: Labelled slices per step.
        lr: Largest learning rate.
        weight_decay: Weight decay of AdamW.
        loss: Segmentation loss.
        ema: Decay of the average of the weights.
        rare_share: Share of a labelled batch that shows the rarest structure.
        validate_every: Steps between two scores on validation; a twentieth of the steps, or 50 in the paper's recipe.
        test_time: Choose mirroring and the largest component on the validation cases.
        network: With the name `auto` or the width 0 where the recipe is to choose.
        augment: With the kind `auto` where the recipe is to choose.

    Raises:
        UserError: An unknown name, or a number out of its range.
    """
    if recipe not in RECIPES or effort not in ("auto", *EFFORTS):
        raise UserError(
            f"found recipe {recipe!r} and effort {effort!r}; expected a recipe of {', '.join(RECIPES)} and an "
            f"effort of auto, {', '.join(EFFORTS)}"
        )
    if effort == "auto":
        effort = "hour" if choose_device(device).type == "cpu" else "gpu"
    base, size = RECIPES[recipe], PAPER if recipe == "paper" else EFFORTS[effort]
    network = network or NetworkOptions("auto", 0)
    augment = augment or AugmentOptions()
    steps = _or(steps, size.steps)
    chosen = Settings(
        recipe=recipe,
        effort=effort,
        steps=steps,
        batch_size=_or(batch_size, size.batch_size),
        lr=_or(lr, base.lr),
        weight_decay=_or(weight_decay, base.weight_decay),
        loss=loss or base.loss,
        # Over a tenth of a short run at most: what is averaged over most of it has the first steps in it.
        ema=_or(ema, min(base.ema, max(0.0, 1 - 10 / steps)) if steps > 0 else base.ema),
        rare_share=_or(rare_share, base.rare_share),
        validate_every=_or(validate_every, 50 if recipe == "paper" else max(1, steps // 20)),
        test_time=base.test_time if test_time is None else test_time,
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
