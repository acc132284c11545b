"""Format an evaluation as text: the printed table, and warnings that limit its validity."""

from __future__ import annotations

from collections.abc import Iterator

from contrastive_core.text import several, some_of
from ssl_medseg.evaluation.results import Evaluation
from ssl_medseg.evaluation.summary import Statistic, Summary, case_dice, statistic

_FEW = 10
_APART = 0.1
_TITLES = {
    "dice": "Dice",
    "hd95": "HD95",
    "assd": "ASSD",
    "surface_dice": "surface Dice",
    "error_ml": "volume error, mL",
    "error_percent": "volume error, %",
}


def title(measure: str, evaluation: Evaluation) -> str:
    """Return the name of a measure with its unit."""
    if measure in ("hd95", "assd"):
        return f"{_TITLES[measure]}, {evaluation.unit}"
    if measure == "surface_dice":
        return f"{_TITLES[measure]} at {evaluation.tolerance:g} {evaluation.unit}"
    return _TITLES[measure]


def number(measure: str, value: float | None) -> str:
    """Format a value with its significant digits."""
    if value is None:
        return "–"
    if measure in ("dice", "surface_dice"):
        return f"{value:.3f}"
    return f"{value:+.1f}" if measure.startswith("error") else f"{value:.1f}"


def mean_and_sd(measure: str, found: Statistic) -> str:
    """Format mean and standard deviation, ``0.872 ± 0.031``; the mean alone for a single value."""
    if found.sd is None:
        return number(measure, found.mean)
    return f"{number(measure, found.mean)} ± {number(measure, found.sd).lstrip('+')}"


def median_and_quartiles(measure: str, found: Statistic) -> str:
    """Format median and quartiles, ``0.880 (0.851 to 0.893)``."""
    if found.n == 0:
        return "–"
    low, high = number(measure, found.q1), number(measure, found.q3)
    return f"{number(measure, found.median)} ({low} to {high})"


def table(evaluation: Evaluation, summary: Summary) -> list[str]:
    """Return a line per structure and measure, with the number of cases."""
    lines = [
        f"{evaluation.name}: {several(summary.cases, 'case')} of {several(summary.patients, 'patient')}",
        "",
        f"{'structure':20}{'measure':28}{'mean ± sd':>18}{'median (quartiles)':>30}{'n':>5}",
    ]
    for structure in summary.structures:
        for i, (measure, found) in enumerate(structure.measures.items()):
            if measure == "error_ml" and not found.n:
                continue
            lines.append(
                f"{structure.structure if i == 0 else '':20}{title(measure, evaluation):28}"
                f"{mean_and_sd(measure, found):>18}{median_and_quartiles(measure, found):>30}{found.n:>5}"
            )
    mean = summary.mean_dice
    lines += [
        "",
        f"mean Dice over structures, then over cases: {mean_and_sd('dice', mean)} ({several(mean.n, 'case')})",
    ]
    if phases := by_phase(evaluation):
        lines.append(f"by phase of the heart: {'; '.join(phases)}")
    return lines


def by_phase(evaluation: Evaluation) -> list[str]:
    """Mean Dice of the judged cases of each phase, such as ``ED 0.912 ± 0.020 (10 cases)``; empty if none is known."""
    found = []
    for phase in ("ED", "ES"):
        scores = [score for case in evaluation.judged if case.phase == phase and (score := case_dice(case)) is not None]
        if scores:
            found.append(f"{phase} {mean_and_sd('dice', statistic(scores))} ({several(len(scores), 'case')})")
    return found


def warnings(evaluation: Evaluation, summary: Summary) -> Iterator[str]:
    """Return warnings about the validity of the numbers."""
    if evaluation.missing:
        yield (
            f"Without a predicted mask, and in no number here: {several(len(evaluation.missing), 'case')} with a truth "
            f"({some_of(evaluation.missing)})."
        )
    if summary.left_out:
        seen = some_of(case.case for case in evaluation.cases if not case.unseen)
        yield (
            f"Left out of the summary: {several(summary.left_out, 'case')} whose truth training has seen ({seen}), so "
            "that their scores say nothing about new patients."
        )
    elif evaluation.cases and not any(case.unseen for case in evaluation.cases):
        yield "Training has seen the truth of all these cases: the numbers say nothing about new patients."
    elif any(case.part == "" for case in evaluation.cases):
        yield "No split was given, so it is not known whether training has seen some of these cases."
    if any(case.part == "unlabelled" for case in evaluation.cases):
        yield "Training has seen the images of the unlabelled cases, though not their truth."
    if evaluation.unit == "voxel":
        yield (
            "At least one file does not state the size of its voxels, so distances are in voxels, and there are no "
            "volumes in mL. --voxel-size states it."
        )
    yield from _unfound(evaluation, summary)
    if summary.patients < summary.cases:
        yield (
            f"{several(summary.cases, 'case')} of {several(summary.patients, 'patient')}: cases of a patient are "
            "alike, so spreads and limits of agreement are narrower than those of new patients."
        )
    if 0 < summary.patients < _FEW:
        yield f"{several(summary.patients, 'patient')} only: another sample may give rather different numbers."


def _unfound(evaluation: Evaluation, summary: Summary) -> Iterator[str]:
    """Return warnings about structures that predictions miss or invent."""
    for structure in summary.structures:
        for count, what in (
            (structure.truth_only, "missed altogether (Dice 0, no distance)"),
            (structure.prediction_only, "found where there is none (Dice 0, no distance)"),
        ):
            if count:
                yield f"{structure.structure}: {what} in {count} of {summary.cases} cases; distances do not count them."
    for name in evaluation.structures:
        apart = sum(score.found == "both" and (score.dice or 0) < _APART for score in evaluation.of(name))
        if apart:
            yield f"{name}: drawn in another place (Dice below {_APART:g}) in {apart} of {summary.cases} cases."
