"""Validate during training: Dice of whole volumes on their original grids, and pictures of one of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from contrastive_core.training import Run
from contrastive_core.training.files import write_atomic
from ssl_medseg.evaluation.metrics import class_dice
from ssl_medseg.models.largest_parts import largest_parts
from ssl_medseg.models.network import Refinement, slice_probabilities
from ssl_medseg.preprocessing import restore
from ssl_medseg.preprocessing.cases import PreparedCase
from ssl_medseg.preprocessing.prepare import place, to_voxels
from ssl_medseg.training.recipe import RecipeName

_DRAWN = 5
"""Pictures of a training, evenly over its steps."""
_SLICES = 4


@dataclass(frozen=True)
class VolumeScores:
    """Dice scores of some volumes, by structure.

    Attributes:
        names: Names of the structures.
        dice: [V, F]; 0 if the structure is present in only one of truth and prediction, NaN if in neither.
        present: [V, F], whether the truth contains the structure.
        recipe: Recipe of the training, which determines `score`.
    """

    names: tuple[str, ...]
    dice: NDArray[np.float64]
    present: NDArray[np.bool_]
    recipe: RecipeName = "paper"

    @property
    def score(self) -> float | None:
        """Mean Dice that selects weights and test-time settings; None if no truth has a structure.

        In the paper's recipe it is `mean`, otherwise `mean_present`: healthy patients do not decide, in whom a single
        false voxel makes the Dice 0.
        """
        if self.recipe == "paper":
            return self.mean
        return self.mean_present if self.structures else None

    @property
    def mean(self) -> float:
        """Mean foreground Dice in the paper's convention.

        The mean over volumes of the mean over the structures that are present in truth or prediction. A structure that
        is present in only one of them counts as 0. The result is 0 if there is nothing to score.
        """
        means = [float(np.nanmean(row)) for row in self.dice if not np.isnan(row).all()]
        return float(np.mean(means)) if means else 0.0

    @property
    def structures(self) -> dict[str, float]:
        """Mean Dice of each structure over the volumes whose truth contains it; absent structures are left out."""
        columns = zip(self.names, self.dice.T, self.present.T, strict=True)
        return {name: float(dice[there].mean()) for name, dice, there in columns if there.any()}

    @property
    def mean_present(self) -> float:
        """Mean of :attr:`structures`; structures that are predicted but absent from the truth do not count."""
        return float(np.mean(list(self.structures.values()))) if self.structures else 0.0

    @property
    def false_structures(self) -> int:
        """Number of structures that are predicted in a volume whose truth does not contain them."""
        return int((~self.present & ~np.isnan(self.dice)).sum())

    def record(self, prefix: str = "validation") -> dict[str, float]:
        """Return the values for `Run.record`: the mean in both conventions, and every structure."""
        each = {f"{prefix}_dice_{name.replace(' ', '_')}": value for name, value in self.structures.items()}
        return {
            f"{prefix}_dice": self.mean,
            f"{prefix}_dice_present": self.mean_present,
            f"{prefix}_false_structures": self.false_structures,
            **each,
        }


class Validation:
    """Score a network on labelled volumes; the processes of a run share the work.

    Args:
        run: Training run.
        cases: Prepared volumes.
        truths: True classes [X, Y, Z] on the original grids of the volumes.
        names: Names of the structures.
        steps: Steps of the training, over which pictures of the first volume are spread; 0 draws none.
        every: Steps between two validations.
        recipe: Recipe of the training, which determines the score that selects weights.
    """

    def __init__(
        self, run: Run, cases: Sequence[PreparedCase], truths: Sequence[NDArray[np.uint8]], names: tuple[str, ...],
        *, steps: int = 0, every: int = 1, recipe: RecipeName = "paper",
    ) -> None:  # fmt: skip
        self._recipe: RecipeName = recipe
        self._run, self._cases, self._truths, self._names = run, cases, truths, names
        self._steps, self._every = steps, every
        present = [[(truth == number).any() for number in range(1, len(names) + 1)] for truth in truths]
        self._present = np.array(present, dtype=bool).reshape(len(cases), len(names))

    def __len__(self) -> int:
        """Number of volumes."""
        return len(self._cases)

    def scores(
        self,
        network: nn.Module,
        refinement: Refinement = Refinement(),  # noqa: B008 - frozen
        *,
        step: int | None = None,
    ) -> VolumeScores:
        """Compute the Dice of every volume, with probabilities resampled to its original grid before the argmax.

        Args:
            network: Network to score.
            refinement: Test-time mirroring and largest components.
            step: Number of steps done; at five of them, a picture of the first volume is written.
        """
        classes = len(self._names) + 1
        dice = np.zeros((len(self._cases), len(self._names)))
        for number in range(self._run.rank, len(self._cases), self._run.world_size):
            case = self._cases[number]
            probabilities = slice_probabilities(
                network, case.slices, autocast=self._run.fabric.autocast(), mirror=refinement.mirror
            )
            prediction = restore(probabilities.cpu(), case.geometry).argmax(0).astype(np.uint8)
            prediction = largest_parts(prediction, refinement.largest)
            dice[number] = class_dice(prediction, self._truths[number], classes=classes)[1:]
            if number == 0 and step is not None and self._is_drawn(step):
                self._draw(prediction, dice[0], step)
        if self._run.world_size > 1:
            # Reduced in float32, because Apple GPUs have no float64.
            shared = torch.from_numpy(dice).float().to(self._run.device)
            dice = self._run.fabric.all_reduce(shared, reduce_op="sum").double().cpu().numpy()  # type: ignore[union-attr]
        return VolumeScores(self._names, dice, self._present, self._recipe)

    def _is_drawn(self, step: int) -> bool:
        """Whether this is the first score after another fifth of the steps."""
        if not self._steps:
            return False
        return step * _DRAWN // self._steps > (step - self._every) * _DRAWN // self._steps

    def _draw(self, prediction: NDArray[np.uint8], dice: NDArray[np.float64], step: int) -> None:
        # Drawing takes matplotlib, which training without pictures need not wait for.
        from contrastive_core.app.report.figures import to_png  # noqa: PLC0415
        from ssl_medseg.reports.overlay import VALIDATION, Sheet, sheet_figure, view  # noqa: PLC0415

        case, geometry = self._cases[0], self._cases[0].geometry
        image = place(to_voxels(case.slices[:, :1], geometry)[:, 0].numpy(), geometry)
        texts = [f"{n} {d:.2f}" for n, d in zip(self._names, dice, strict=True) if not np.isnan(d)]
        sheet = Sheet(
            title=f"{case.name} after step {step:,}",
            subtitle=f"Dice: {', '.join(texts) or 'no structure on either side'}",
            images={"image": image},
            masks={"truth": self._truths[0], "predicted": prediction},
            structures=self._names,
            view=view(geometry.grid.affine, geometry.axes[0], known=geometry.place_known),
        )
        folder = self._run.out / VALIDATION
        folder.mkdir(exist_ok=True)
        write_atomic(folder / f"step-{step:06d}.png", to_png(sheet_figure(sheet, slices=_SLICES), dpi=90))


_GAIN = 0.002
"""Smallest gain of mean Dice on the validation cases for a refinement to be used; smaller gains are noise."""


def choose_refinement(run: Run, validation: Validation | None, network: nn.Module) -> Refinement:
    """Enable mirroring, and the largest component of each structure, where they raise the validation Dice.

    Args:
        run: Run, which reports the choice.
        validation: Validation; with None, or without any structure in its cases, the refinement is empty.
        network: Network with the weights to keep.
    """
    if validation is None:
        return Refinement()
    plain = validation.scores(network)
    mirrored = validation.scores(network, Refinement(mirror=True))
    if plain.score is None or mirrored.score is None:
        return Refinement()
    mirror = mirrored.score > plain.score + _GAIN
    base = mirrored if mirror else plain
    every = tuple(range(1, len(base.names) + 1))
    parts = validation.scores(network, Refinement(mirror, every))
    largest = tuple(
        number
        for number, name in enumerate(base.names, start=1)
        if parts.structures.get(name, 0.0) > base.structures.get(name, 0.0) + _GAIN
    )
    refinement = Refinement(mirror, largest)
    names = ", ".join(base.names[number - 1] for number in largest)
    run.say(
        f"test-time settings chosen on the validation cases: mirroring {'on' if mirror else 'off'} (Dice "
        f"{plain.score:.3f} without, {mirrored.score:.3f} with); keep the largest component of "
        f"{names if largest else 'no structure'}"
    )
    return refinement
