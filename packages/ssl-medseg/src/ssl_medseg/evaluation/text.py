"""Format an evaluation as text: the printed table, and warnings that limit its validity."""

from __future__ import annotations

from collections.abc import Iterator

from contrastive_core.text import several, some_of
from ssl_medseg.evaluation.results import Evaluation
from ssl_medseg.evaluation.summary import Statistic, Summary, case_dice, never_found, statistic

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


def mean_and_sd(measure: str, distribution: Statistic) -> str:
    """Format mean and standard deviation, ``0.872 ± 0.031``; the mean alone for a single value."""
    if distribution.sd is None:
        return number(measure, distribution.mean)
    return f"{number(measure, distribution.mean)} ± {number(measure, distribution.sd).lstrip('+')}"


def median_and_quartiles(measure: str, distribution: Statistic) -> str:
    """Format median and quartiles, ``0.880 (0.851 to 0.893)``."""
    if distribution.n == 0:
        return "–"
    low, high = number(measure, distribution.q1), number(measure, distribution.q3)
    return f"{number(measure, distribution.median)} ({low} to {high})"


def table(evaluation: Evaluation, summary: Summary) -> list[str]:
    """Return a line per structure and measure, with the number of cases."""
    first = max([20, *(len(structure.structure) + 2 for structure in summary.structures)])
    lines = [
        f"{evaluation.name}: {several(summary.cases, 'case')} of {several(summary.patients, 'patient')}",
        "",
        f"{'structure':{first}}{'measure':28}{'mean ± sd':>18}{'median (quartiles)':>30}{'n':>5}",
    ]
    for structure in summary.structures:
        for i, (measure, distribution) in enumerate(structure.measures.items()):
            if measure == "error_ml" and not distribution.n:
                continue
            lines.append(
                f"{structure.structure if i == 0 else '':{first}}{title(measure, evaluation):28}"
                f"{mean_and_sd(measure, distribution):>18}"
                f"{median_and_quartiles(measure, distribution):>30}{distribution.n:>5}"
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
    """Return the mean Dice per cardiac phase, such as ``ED 0.912 ± 0.020 (10 cases)``; empty if phases are unknown."""
    texts = []
    for phase in ("ED", "ES"):
        scores = [score for case in evaluation.judged if case.phase == phase and (score := case_dice(case)) is not None]
        if scores:
            texts.append(f"{phase} {mean_and_sd('dice', statistic(scores))} ({several(len(scores), 'case')})")
    return texts


def warnings(evaluation: Evaluation, summary: Summary) -> Iterator[str]:
    """Return warnings about failures and about the validity of the numbers."""
    yield from failures(summary)
    if evaluation.missing:
        yield (
            f"{several(len(evaluation.missing), 'case')} with a reference label but without a predicted mask "
            f"{'is' if len(evaluation.missing) == 1 else 'are'} not included in any number "
            f"({some_of(evaluation.missing)})."
        )
    yield from _used_in_training(evaluation, summary)
    if evaluation.unit == "voxel":
        yield (
            "At least one file does not state its voxel size, so distances are in voxels and there are no volumes in "
            "mL. State the size with --voxel-size."
        )
    yield from _misplaced(evaluation, summary)
    if summary.patients < summary.cases:
        yield (
            f"The {several(summary.cases, 'case')} come from {several(summary.patients, 'patient')}. Cases of the same "
            "patient are similar, so standard deviations and limits of agreement are too small for new patients."
        )
    if 0 < summary.patients < _FEW:
        yield (
            f"The evaluation includes only {several(summary.patients, 'patient')}: scores on other patients may differ "
            "considerably."
        )


def failures(summary: Summary) -> Iterator[str]:
    """Return a sentence about the structures that are never found, if any."""
    if structures := never_found(summary):
        dice = {each.structure: number("dice", each.measures["dice"].mean) for each in summary.structures}
        yield (
            f"The segmentation has failed: {some_of(structures)} {'is' if len(structures) == 1 else 'are'} never found "
            f"in {several(summary.cases, 'case')} (Dice {', '.join(dice[name] for name in structures)})."
        )


def _used_in_training(evaluation: Evaluation, summary: Summary) -> Iterator[str]:
    """Return warnings about cases whose images or labels training used."""
    used = [case for case in evaluation.cases if not case.unseen]
    parts = {case.part for case in used}
    if summary.left_out:
        purpose = " or ".join(
            [
                *(["training"] if "labelled" in parts else []),
                *(["choosing its settings (validation)"] if "validation" in parts else []),
            ]
        )
        yield (
            f"{several(summary.left_out, 'case')} {'is' if summary.left_out == 1 else 'are'} left out of the summary, "
            f"because {'its label was' if summary.left_out == 1 else 'their labels were'} used for {purpose} "
            f"({some_of(case.case for case in used)})."
        )
    elif parts == {"validation"}:
        yield (
            "These are validation cases: training did not learn from their labels, but chose its best step or its "
            "test-time settings with them. The scores are therefore somewhat optimistic for new patients."
        )
    elif used:
        yield (
            "Training used the labels of these cases, so the scores do not tell how well new patients are segmented."
        )
    elif any(case.part == "" for case in evaluation.cases):
        yield "No split was given, so it is unknown whether training used some of these cases."
    if any(case.part == "unlabelled" for case in evaluation.cases):
        yield "Training used the images of the unlabelled cases, but not their labels."


def _misplaced(evaluation: Evaluation, summary: Summary) -> Iterator[str]:
    """Return warnings about structures that predictions miss, add or misplace."""
    for structure in summary.structures:
        for count, problem in (
            (structure.truth_only, "missed completely"),
            (structure.prediction_only, "predicted although it is absent"),
        ):
            if count:
                yield (
                    f"{structure.structure} is {problem} in {count} of {several(summary.cases, 'case')}. There the "
                    "Dice is 0, and the mean distances do not include them."
                )
    for name in evaluation.structures:
        apart = sum(score.found == "both" and (score.dice or 0) < _APART for score in evaluation.of(name))
        if apart:
            yield (
                f"{name} is predicted in the wrong place (Dice below {_APART:g}) in {apart} of "
                f"{several(summary.cases, 'case')}."
            )
