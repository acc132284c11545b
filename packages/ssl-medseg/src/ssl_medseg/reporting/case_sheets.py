"""The best, the median and the worst case of an evaluation, drawn."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from matplotlib.figure import Figure

from ssl_medseg.data.cases import DataSet
from ssl_medseg.preprocessing.geometry import slice_axis
from ssl_medseg.reporting.orientation import view
from ssl_medseg.reporting.overlay import Sheet, sheet_figure
from ssl_medseg.scoring.cases import read_pair
from ssl_medseg.scoring.records import CaseScores, Evaluation
from ssl_medseg.scoring.summary import case_dice
from ssl_medseg.scoring.words import number
from ssl_medseg.volumes import read_volume


def choose(evaluation: Evaluation) -> dict[str, CaseScores]:
    """``best``, ``median`` and ``worst`` by mean Dice; of fewer than three cases those there are."""
    ranked = [(dice, case) for case in evaluation.judged if (dice := case_dice(case)) is not None]
    ranked.sort(key=lambda pair: (-pair[0], pair[1].case))
    picks = {"best": 0, "median": len(ranked) // 2, "worst": len(ranked) - 1}
    chosen: dict[str, CaseScores] = {}
    for name, place in picks.items():
        if ranked and ranked[place][1] not in chosen.values():
            chosen[name] = ranked[place][1]
    return chosen


def case_sheets(evaluation: Evaluation, dataset: DataSet, folder: Path) -> Iterator[tuple[str, Figure]]:
    """A sheet for each of `choose`.

    Args:
        evaluation: with the files of its masks.
        dataset: with images and truth.
        folder: that the files of masks are relative to.
    """
    for which, scores in choose(evaluation).items():
        case = dataset.case(scores.case)
        predicted, truth, grid = read_pair(folder / scores.mask, case, dataset)
        volume = read_volume(case.image)
        sheet = Sheet(
            title=f"{which.capitalize()} case: {scores.case}",
            subtitle=in_words(scores, evaluation),
            image=volume.array,
            masks={"truth": truth, "predicted": predicted},
            structures=evaluation.structures,
            view=view(grid.affine, slice_axis(grid), known=grid.spacing_known),
        )
        yield which, sheet_figure(sheet)


def in_words(scores: CaseScores, evaluation: Evaluation) -> str:
    """``LV: Dice 0.912, HD95 4.2 mm; RV: missed``."""
    parts = []
    for score in scores.structures:
        if score.found == "both":
            distance = f"HD95 {number('hd95', score.hd95)} {evaluation.unit}"
            parts.append(f"{score.structure}: Dice {number('dice', score.dice)}, {distance}")
        elif score.found != "neither":
            parts.append(f"{score.structure}: {'missed' if score.found == 'truth only' else 'found, and is not there'}")
    return "; ".join(parts)
