"""Summarise an evaluation over its cases: mean, standard deviation, quartiles, and Bland-Altman agreement of volumes.

Bland and Altman, "Measuring agreement in method comparison studies", Statistical Methods in Medical Research, 1999.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from contrastive_core.training.tables import safe_cell
from ssl_medseg.evaluation.results import CaseScores, Evaluation, StructureScore

_NORMAL_95 = 1.96
LEAST_PAIRS = 10
"""Smallest number of cases for which limits of agreement are shown; with fewer they are too uncertain."""
_LEAST_DICE = 0.02
"""Mean Dice below which a structure counts as never found."""


@dataclass(frozen=True)
class BlandAltman:
    """Bland-Altman statistics of predicted and true volumes, in the unit of the volumes.

    Attributes:
        n: Number of pairs.
        bias: Mean difference, predicted minus true.
        sd: Standard deviation of the differences (n - 1).
        lower: Lower limit of agreement, bias - 1.96 sd.
        upper: Upper limit of agreement, bias + 1.96 sd; about 95 % of the differences are expected between the limits.
        bias_interval: 95 % confidence interval of the bias.
        lower_interval: 95 % confidence interval of the lower limit.
        upper_interval: 95 % confidence interval of the upper limit.
    """

    n: int
    bias: float
    sd: float
    lower: float
    upper: float
    bias_interval: tuple[float, float]
    lower_interval: tuple[float, float]
    upper_interval: tuple[float, float]


def bland_altman(truth: Sequence[float], predicted: Sequence[float]) -> BlandAltman | None:
    """Compute the bias and the limits of agreement with their 95 % confidence intervals.

    The standard error of the bias is ``sd / sqrt(n)``, that of a limit ``sd sqrt(1/n + 1.96^2 / (2 (n - 1)))``. The
    intervals use Student's t distribution with n - 1 degrees of freedom and assume independent pairs, which two volumes
    of the same patient are not.

    Args:
        truth: True volumes.
        predicted: Predicted volumes of the same cases, in the same order and unit.

    Returns:
        Statistics; None for fewer than two pairs.
    """
    difference = np.asarray(predicted, dtype=np.float64) - np.asarray(truth, dtype=np.float64)
    n = len(difference)
    if n < 2:
        return None
    bias, sd = float(difference.mean()), float(difference.std(ddof=1))
    t = float(stats.t.ppf(0.975, n - 1))
    wide, wider = t * sd / n**0.5, t * sd * (1 / n + _NORMAL_95**2 / (2 * (n - 1))) ** 0.5
    lower, upper = bias - _NORMAL_95 * sd, bias + _NORMAL_95 * sd
    return BlandAltman(
        n, bias, sd, lower, upper, (bias - wide, bias + wide), (lower - wider, lower + wider),
        (upper - wider, upper + wider),
    )  # fmt: skip


MEASURES = ("dice", "hd95", "assd", "surface_dice", "error_ml", "error_percent")


@dataclass(frozen=True)
class Statistic:
    """Descriptive statistics of a measure over the cases that have a value.

    Attributes:
        n: Number of cases with a value.
        n_missing: Number of cases without a value.
        mean: Mean; None, like all the following, if there are no values.
        sd: Standard deviation (with n - 1); None for fewer than two values.
        median: Median.
        q1: First quartile.
        q3: Third quartile; q3 - q1 is the interquartile range.
        low: Smallest value.
        high: Largest value.
    """

    n: int
    n_missing: int
    mean: float | None = None
    sd: float | None = None
    median: float | None = None
    q1: float | None = None
    q3: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class StructureSummary:
    """Summary of one structure over the cases.

    Attributes:
        structure: Name of the structure.
        both: Number of cases with the structure in truth and prediction.
        truth_only: Number of cases in which the prediction misses the structure completely: Dice 0, no distance.
        prediction_only: Number of cases in which it is predicted but absent: Dice 0, no distance.
        neither: Number of cases in which it is neither present nor predicted: no Dice, no distance.
        measures: Name of the measure -> statistic.
        volumes: Agreement of volumes in mL over the cases that have the structure; None if the voxel size is unknown or
            there are fewer than two such cases.
    """

    structure: str
    both: int
    truth_only: int
    prediction_only: int
    neither: int
    measures: dict[str, Statistic]
    volumes: BlandAltman | None


@dataclass(frozen=True)
class Summary:
    """Summary of an evaluation.

    Attributes:
        cases: Number of summarised cases: those whose labels training did not use, or all cases if there are none.
        patients: Number of patients of these cases.
        structures: Summaries of the structures.
        mean_dice: Mean Dice as in the paper: averaged over the structures of each case, then over cases. A structure
            that only one mask contains counts as 0; a structure that neither contains is left out.
        left_out: Number of scored cases that are left out because training used their labels.
    """

    cases: int
    patients: int
    structures: tuple[StructureSummary, ...]
    mean_dice: Statistic
    left_out: int


def summarise(evaluation: Evaluation) -> Summary:
    """Summarise an evaluation over the cases whose labels training did not use, or over all if there are none."""
    cases = evaluation.judged
    return Summary(
        cases=len(cases),
        patients=len({case.patient for case in cases}),
        structures=tuple(_structure(name, evaluation.of(name)) for name in evaluation.structures),
        mean_dice=statistic([case_dice(case) for case in cases]),
        left_out=len(evaluation.cases) - len(cases),
    )


def statistic(values: Iterable[float | None]) -> Statistic:
    """Compute descriptive statistics of the values that are not None."""
    entries = list(values)
    present = [value for value in entries if value is not None]
    missing = len(entries) - len(present)
    if not present:
        return Statistic(0, missing)
    q1, median, q3 = (float(q) for q in np.percentile(present, [25, 50, 75]))
    return Statistic(
        n=len(present),
        n_missing=missing,
        mean=statistics.fmean(present),
        sd=statistics.stdev(present) if len(present) > 1 else None,
        median=median,
        q1=q1,
        q3=q3,
        low=min(present),
        high=max(present),
    )


def dice_where_present(summary: Summary) -> dict[str, float]:
    """Return the mean Dice of each structure over the cases whose truth contains it.

    Cases without the structure in which it is predicted, whose Dice is 0, do not count: in healthy patients, a single
    voxel is enough for that. Structures that no truth contains are left out.
    """
    means = {}
    for each in summary.structures:
        dice, present = each.measures["dice"], each.both + each.truth_only
        if present:
            means[each.structure] = (dice.mean or 0.0) * dice.n / present  # the other cases add 0
    return means


def never_found(summary: Summary) -> tuple[str, ...]:
    """Return the structures that occur in the evaluated cases and that the predictions practically never contain."""
    return tuple(name for name, dice in dice_where_present(summary).items() if dice < _LEAST_DICE)


def case_dice(case: CaseScores) -> float | None:
    """Compute the mean Dice over the structures of a case, as in the paper; None if neither mask has a structure."""
    present = [score.dice for score in case.structures if score.dice is not None]
    return statistics.fmean(present) if present else None


def summary_csv(summary: Summary) -> str:
    """Return a CSV table with one row per structure and measure."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [field.name for field in dataclasses.fields(Statistic)]
    counts = ("both", "truth_only", "prediction_only", "neither")
    writer.writerow(["structure", "measure", *names, *counts])
    for structure in summary.structures:
        for measure, distribution in structure.measures.items():
            values = [getattr(distribution, name) for name in names]
            cells = ["" if v is None else f"{v:.6g}" for v in values]
            counters = [getattr(structure, name) for name in counts]
            writer.writerow([safe_cell(structure.structure), measure, *cells, *counters])
    return text.getvalue()


def _structure(name: str, scores: Sequence[StructureScore]) -> StructureSummary:
    count = {
        kind: sum(s.found == kind for s in scores) for kind in ("both", "truth only", "prediction only", "neither")
    }
    with_truth = [s for s in scores if s.truth_voxels]
    pairs = [(s.truth_ml, s.predicted_ml) for s in with_truth if s.truth_ml is not None and s.predicted_ml is not None]
    return StructureSummary(
        structure=name,
        both=count["both"],
        truth_only=count["truth only"],
        prediction_only=count["prediction only"],
        neither=count["neither"],
        measures={measure: statistic([getattr(s, measure) for s in scores]) for measure in MEASURES},
        volumes=bland_altman([t for t, _ in pairs], [p for _, p in pairs]),
    )
