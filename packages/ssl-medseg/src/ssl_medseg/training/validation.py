"""Dice of whole volumes on their own grids, while training goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from contrastive_core.training import Run
from ssl_medseg.evaluation.metrics import class_dice
from ssl_medseg.models.largest_parts import largest_parts
from ssl_medseg.models.network import Refinement, slice_probabilities
from ssl_medseg.preprocessing import restore
from ssl_medseg.preprocessing.cases import PreparedCase


@dataclass(frozen=True)
class VolumeScores:
    """Dice of some volumes, by structure.

    Attributes:
        names: of the structures.
        dice: [V, F]; 0 for a structure on one side only, NaN for one on neither.
        present: [V, F], whether the truth has the structure.
    """

    names: tuple[str, ...]
    dice: NDArray[np.float64]
    present: NDArray[np.bool_]

    @property
    def mean(self) -> float:
        """Mean foreground Dice in the paper's convention, by which the best step is chosen.

        Mean over volumes of the mean over the structures that are in the truth or the prediction; one that is on one
        side only counts 0. 0 if there is nothing to score.
        """
        scored = [float(np.nanmean(row)) for row in self.dice if not np.isnan(row).all()]
        return float(np.mean(scored)) if scored else 0.0

    @property
    def structures(self) -> dict[str, float]:
        """Mean Dice of each structure over the volumes whose truth has it; structures that none has are left out."""
        columns = zip(self.names, self.dice.T, self.present.T, strict=True)
        return {name: float(dice[there].mean()) for name, dice, there in columns if there.any()}

    @property
    def mean_present(self) -> float:
        """Mean over structures of :attr:`structures`: what is predicted where the truth has nothing does not count."""
        return float(np.mean(list(self.structures.values()))) if self.structures else 0.0

    @property
    def false_structures(self) -> int:
        """How often a structure is predicted in a volume whose truth lacks it."""
        return int((~self.present & ~np.isnan(self.dice)).sum())

    def record(self, prefix: str = "validation") -> dict[str, float]:
        """For `Run.record`: the mean in both conventions and every structure."""
        each = {f"{prefix}_dice_{name.replace(' ', '_')}": value for name, value in self.structures.items()}
        return {
            f"{prefix}_dice": self.mean,
            f"{prefix}_dice_present": self.mean_present,
            f"{prefix}_false_structures": self.false_structures,
            **each,
        }


class Validation:
    """Scores a network on volumes with labels; the processes of a run share the work.

    Args:
        run: the run.
        cases: prepared volumes.
        truths: their classes [X, Y, Z] on the volumes' own grids.
        names: of the structures.
    """

    def __init__(
        self, run: Run, cases: Sequence[PreparedCase], truths: Sequence[NDArray[np.uint8]], names: tuple[str, ...]
    ) -> None:
        self._run, self._cases, self._truths, self._names = run, cases, truths, names
        present = [[(truth == number).any() for number in range(1, len(names) + 1)] for truth in truths]
        self._present = np.array(present, dtype=bool).reshape(len(cases), len(names))

    def __len__(self) -> int:
        """Number of volumes."""
        return len(self._cases)

    def scores(self, network: nn.Module, refinement: Refinement = Refinement()) -> VolumeScores:  # noqa: B008 - frozen
        """Dice of every volume: probabilities of the slices, brought back to the volume's grid, then the largest."""
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
        if self._run.world_size > 1:
            # float32 on the way: Apple's GPUs have no float64.
            shared = torch.from_numpy(dice).float().to(self._run.device)
            dice = self._run.fabric.all_reduce(shared, reduce_op="sum").double().cpu().numpy()  # type: ignore[union-attr]
        return VolumeScores(self._names, dice, self._present)


_GAIN = 0.002
"""Mean Dice that a refinement has to add on the validation cases; less is noise of a few volumes."""


def choose_refinement(run: Run, validation: Validation | None, network: nn.Module) -> Refinement:
    """Mirroring, and the largest part of each structure, where the validation cases score higher with it.

    Args:
        run: the run, which says what was chosen.
        validation: None: nothing can be chosen.
        network: with the weights that are kept.
    """
    if validation is None:
        return Refinement()
    plain = validation.scores(network)
    mirrored = validation.scores(network, Refinement(mirror=True))
    mirror = mirrored.mean > plain.mean + _GAIN
    base = mirrored if mirror else plain
    every = tuple(range(1, len(base.names) + 1))
    parts = validation.scores(network, Refinement(mirror, every))
    largest = tuple(
        number
        for number, name in enumerate(base.names, start=1)
        if parts.structures.get(name, 0.0) > base.structures.get(name, 0.0) + _GAIN
    )
    chosen = Refinement(mirror, largest)
    names = ", ".join(base.names[number - 1] for number in largest)
    run.say(
        f"test time, by the validation cases: mirroring {'on' if mirror else 'off'} (Dice {plain.mean:.3f} without, "
        f"{mirrored.mean:.3f} with), largest part {f'of {names}' if largest else 'of no structure'}"
    )
    return chosen
