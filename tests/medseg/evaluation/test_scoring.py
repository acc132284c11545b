"""Scores against SciPy, the formulas and the recorded evaluation of the paper's code; means omit missing values."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.metrics.meandice import DiceMetric
from scipy import stats
from scipy.ndimage import binary_erosion

from contrastive_core.app.report.figures import to_png
from contrastive_core.errors import UserError
from ssl_medseg.evaluation import (
    CaseScores,
    Evaluation,
    bland_altman,
    read_evaluation,
    summarise,
    write_evaluation,
)
from ssl_medseg.evaluation.metrics import measure
from ssl_medseg.evaluation.plots import bland_altman_figure
from ssl_medseg.evaluation.results import scores_csv
from ssl_medseg.evaluation.summary import Summary, dice_where_present, never_found, statistic, summary_csv
from ssl_medseg.evaluation.text import table

SPACING = (1.5, 1.2, 8.0)
AXES = np.diag(SPACING)
NAMES = ("one", "two")


def balls(shift: float = 0.0) -> np.ndarray:
    """Two nested structures; the outer one touches the first slice of the volume."""
    x, y, z = np.meshgrid(*(np.arange(n, dtype=float) for n in (24, 22, 7)), indexing="ij")
    radius = np.hypot((x - 11 - shift) * 1.5, (y - 10) * 1.2)
    return np.select([(radius < 6) & (z > 1), (radius < 11) & (z < 6)], [2, 1], 0).astype(np.uint8)


def surface(mask: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """Return positions in mm of surface voxels, by the usual definition: what an erosion removes."""
    return np.argwhere(mask & ~binary_erosion(mask)) @ axes.T


def distances(a: np.ndarray, b: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """Return the distance of every surface voxel of a to the nearest of b, by brute force."""
    return np.sqrt(((surface(a, axes)[:, None] - surface(b, axes)[None]) ** 2).sum(-1)).min(axis=1)


TILTED = AXES + np.array([[0, 0, 0], [0, 0, 8 * math.tan(math.radians(25))], [0, 0, 0]])
"""Slices of a CT whose gantry is tilted by 25 degrees."""
TURNED = np.array([[0, -1, 0], [0.6, 0, 0.8], [-0.8, 0, 0.6]]) @ AXES
"""An oblique plane with perpendicular axes."""


@pytest.mark.parametrize("axes", [AXES, TURNED, TILTED, TURNED @ np.linalg.inv(AXES) @ TILTED])
def test_measures_are_their_definitions(axes: np.ndarray) -> None:
    truth, predicted = balls(), balls(2.0)
    predicted[:, :, 5] = 0
    scores = measure(predicted, truth, structures=NAMES, axes=axes, tolerance=1.6)
    for k, score in enumerate(scores, 1):
        a, b = predicted == k, truth == k
        there, back = distances(a, b, axes), distances(b, a, axes)
        assert score.found == "both"
        assert score.dice == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()))
        assert score.hd95 == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)), rel=1e-5)
        assert score.assd == pytest.approx(np.concatenate([there, back]).mean(), rel=1e-5)
        close = (there <= 1.6).sum() + (back <= 1.6).sum()
        assert score.surface_dice == pytest.approx(close / (len(there) + len(back)), rel=1e-5)
        assert (score.truth_voxels, score.predicted_voxels) == (b.sum(), a.sum())
        assert score.truth_ml == pytest.approx(b.sum() * 1.5 * 1.2 * 8 / 1000)
        assert score.error_ml == pytest.approx((int(a.sum()) - int(b.sum())) * 1.5 * 1.2 * 8 / 1000)
        assert score.error_percent == pytest.approx(100 * (a.sum() / b.sum() - 1))
    one_hot = [
        torch.from_numpy(np.stack([v == k for k in range(3)])[None].astype(np.float32)) for v in (predicted, truth)
    ]
    monai = DiceMetric(include_background=False, reduction="none")(*one_hot)[0]
    assert [score.dice for score in scores] == pytest.approx(monai.tolist())


@pytest.mark.parametrize("flat", [0, 1, 2])
def test_distances_in_a_single_slice_are_between_outlines(flat: int) -> None:
    # In three dimensions, an erosion would remove every voxel, and the distances of the inner ones are 0.
    truth, predicted = balls()[:, :, 3] > 0, balls(2.0)[:, :, 3] > 0
    spacing = np.insert(SPACING[:2], flat, 8.0)
    pair = [np.expand_dims(mask, flat).astype(np.uint8) for mask in (predicted, truth)]
    [score] = measure(*pair, structures=("one",), axes=np.diag(spacing), tolerance=1.6)
    outlines = [np.argwhere(mask & ~binary_erosion(mask)) * np.array(SPACING[:2]) for mask in (predicted, truth)]
    apart = np.sqrt(((outlines[0][:, None] - outlines[1][None]) ** 2).sum(-1))
    there, back = apart.min(axis=1), apart.min(axis=0)
    assert score.hd95 == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)), rel=1e-5)
    assert score.assd == pytest.approx(np.concatenate([there, back]).mean(), rel=1e-5)
    close = (there <= 1.6).sum() + (back <= 1.6).sum()
    assert score.surface_dice == pytest.approx(close / (len(there) + len(back)), rel=1e-5)


def test_empty_structures_have_no_distance() -> None:
    truth, predicted = balls(), balls()
    truth[truth == 1] = 0
    predicted[predicted == 2] = 0
    names = ("one", "two", "three")
    one, two, three = measure(predicted, truth, structures=names, axes=AXES, tolerance=2)
    assert [s.found for s in (one, two, three)] == ["prediction only", "truth only", "neither"]
    assert [s.dice for s in (one, two, three)] == [0.0, 0.0, None]
    for score in (one, two, three):
        assert (score.hd95, score.assd, score.surface_dice) == (None, None, None)
    assert one.error_percent is None
    assert one.error_ml == one.predicted_ml
    assert two.error_percent == pytest.approx(-100)
    assert three.error_ml is None
    without_mm = measure(balls(), balls(), structures=NAMES, axes=None, tolerance=1)
    assert [s.truth_ml for s in without_mm] == [None, None]
    with pytest.raises(UserError, match="expected equal shapes"):
        measure(balls(), balls()[:, :, 1:], structures=NAMES, axes=AXES, tolerance=2)


def test_paper_convention_is_the_recorded_one(golden: Callable[[str], np.lib.npyio.NpzFile]) -> None:
    recorded = golden("medseg")
    truth, predicted = recorded["f1/gt"], recorded["f1/pred"]

    def lacks(volume: np.ndarray) -> np.ndarray:
        return np.where(volume == 3, 0, volume)

    for name, pair in {
        "all_classes": (predicted, truth),
        "pred_lacks_class3": (lacks(predicted), truth),
        "gt_lacks_class3": (predicted, lacks(truth)),
        "both_lack_class3": (lacks(predicted), lacks(truth)),
    }.items():
        # A structure on neither side has no Dice.
        classes = [v.astype(np.uint8) for v in pair]
        scores = measure(*classes, structures=("a", "b", "c"), axes=AXES, tolerance=1)
        there = [s.dice for s in scores if s.dice is not None]
        np.testing.assert_allclose(there, recorded[f"f1/{name}"][1:], atol=1e-6)


def test_bland_altman() -> None:
    rng = np.random.default_rng(0)
    truth = rng.uniform(50, 200, 9)
    predicted = truth + rng.normal(4, 6, 9)
    found = bland_altman(truth.tolist(), predicted.tolist())
    assert found is not None
    difference = predicted - truth
    assert (found.n, found.bias) == (9, pytest.approx(difference.mean()))
    assert found.upper - found.lower == pytest.approx(2 * 1.96 * difference.std(ddof=1))
    assert found.bias_interval == pytest.approx(stats.ttest_1samp(difference, 0).confidence_interval(0.95))
    # Limits of 2000 data sets of 9 normal differences: their intervals hold the true limit about 95 times of 100.
    inside = 0
    for _ in range(2000):
        draw = bland_altman([0.0] * 9, rng.normal(0, 1, 9).tolist())
        assert draw is not None
        inside += draw.upper_interval[0] < 1.96 < draw.upper_interval[1]
    assert 0.92 < inside / 2000 < 0.98
    assert bland_altman([1.0], [2.0]) is None


def evaluation() -> Evaluation:
    """Three cases of two patients, one seen in training; a structure on one side only, and one on neither."""
    half, whole, empty = balls(1.0), balls(), np.zeros_like(balls())
    cases = []
    for name, patient, predicted, truth, part in (
        ("a_1", "a", half, whole, "test"), ("a_2", "a", empty, whole, ""), ("b_1", "b", empty, empty, "unlabelled"),
        ("c_1", "c", whole, whole, "labelled"),
    ):  # fmt: skip
        scores = measure(predicted, truth, structures=NAMES, axes=AXES, tolerance=2)
        cases.append(CaseScores(name, patient, SPACING, part, scores))
    return Evaluation("test", "data", "test", "mm", 2.0, NAMES, tuple(cases), missing=("d_1",))


def test_summary_counts_what_it_does_not_average() -> None:
    found = evaluation()
    summary = summarise(found)
    assert (summary.cases, summary.patients, summary.left_out) == (3, 2, 1)
    one = summary.structures[0]
    assert (one.both, one.truth_only, one.prediction_only, one.neither) == (1, 1, 0, 1)
    dice = found.cases[0].structures[0].dice
    assert dice is not None
    # A structure that was missed counts as 0 for Dice, and is missing for distances; one that is nowhere has neither.
    assert (one.measures["dice"].n, one.measures["dice"].n_missing) == (2, 1)
    assert one.measures["dice"].mean == pytest.approx(dice / 2)
    assert (one.measures["hd95"].n, one.measures["hd95"].n_missing) == (1, 2)
    assert one.measures["hd95"].sd is None
    assert one.volumes is not None
    assert one.volumes.n == 2
    means = [np.mean([s.dice for s in case.structures]) for case in found.cases[:2]]
    assert summary.mean_dice.mean == pytest.approx(np.mean(means))
    assert (summary.mean_dice.n, summary.mean_dice.n_missing) == (2, 1)
    values = [1.0, 4.0, 2.0, 8.0, 7.0]
    of = statistic([*values, None])
    assert (of.mean, of.sd) == (pytest.approx(np.mean(values)), pytest.approx(np.std(values, ddof=1)))
    assert (of.q1, of.median, of.q3) == tuple(np.percentile(values, [25, 50, 75]))
    rows = list(csv.DictReader(summary_csv(summary).splitlines()))
    assert len(rows) == 12
    assert (rows[1]["measure"], rows[1]["n"], rows[1]["n_missing"], rows[1]["sd"]) == ("hd95", "1", "2", "")


def test_healthy_patients_do_not_count_against_finding_a_structure() -> None:
    """A single voxel in them has a Dice of 0."""
    whole, empty = balls(), np.zeros_like(balls())
    speck = empty.copy()
    speck[0, 0, 0], speck[1, 0, 0] = 1, 2

    def summary_of(*pairs: tuple[np.ndarray, np.ndarray]) -> Summary:
        cases = [
            CaseScores(
                f"c_{n}",
                f"c{n}",
                SPACING,
                "",
                measure(*pair, structures=NAMES, axes=AXES, tolerance=2),
            )
            for n, pair in enumerate(pairs)
        ]
        return summarise(Evaluation("test", "data", "all", "mm", 2.0, NAMES, tuple(cases)))

    found = summary_of((whole, whole), *[(speck, empty)] * 60)
    assert dice_where_present(found) == pytest.approx(dict.fromkeys(NAMES, 1.0))
    assert never_found(found) == ()
    assert never_found(summary_of((empty, whole), (speck, empty))) == NAMES
    assert dice_where_present(summary_of((speck, empty), (empty, empty))) == {}


def test_files(tmp_path: Path) -> None:
    found = evaluation()
    file = tmp_path / "deep" / "test.json"
    write_evaluation(found, file, more={"summary": {"cases": 3}})
    assert read_evaluation(file) == found
    assert json.loads(file.read_text())["summary"] == {"cases": 3}
    rows = list(csv.DictReader(file.with_suffix(".csv").read_text().splitlines()))
    assert [(r["case"], r["structure"], r["part"]) for r in rows][-2:] == [
        ("c_1", "one", "labelled"),
        ("c_1", "two", "labelled"),
    ]
    assert float(rows[0]["hd95_mm"]) == pytest.approx(found.cases[0].structures[0].hd95, rel=1e-5)
    assert rows[2]["surface_dice_2mm"] == ""
    assert not math.isnan(float(rows[2]["dice"]))
    file.write_text("{}")
    with pytest.raises(UserError, match="expected a file written by `ssl-medseg evaluate`"):
        read_evaluation(file)


def test_long_names_keep_the_columns_of_a_table() -> None:
    base, long = evaluation(), "left ventricular myocardium with papillary muscles"
    cases = tuple(
        dataclasses.replace(c, structures=tuple(dataclasses.replace(s, structure=long) for s in c.structures[:1]))
        for c in base.cases
    )
    named = dataclasses.replace(base, cases=cases, structures=(long,))
    header, *rows = table(named, summarise(named))[2:]
    column = header.index("measure")
    assert rows[0][: column - 2] == long
    assert rows[0][column:].startswith("Dice ")
    assert rows[1][column:].startswith("HD95")


def test_picture_of_volumes() -> None:
    figure = bland_altman_figure(evaluation())
    panel = figure.axes[0]
    drawn = panel.lines[1]
    score = evaluation().cases[0].structures[0]
    assert score.truth_ml is not None
    assert score.predicted_ml is not None
    assert drawn.get_ydata()[0] == pytest.approx(score.predicted_ml - score.truth_ml)
    assert len(drawn.get_xdata()) == 2
    assert to_png(figure).startswith(b"\x89PNG")


def test_names_from_data_are_not_formulas_in_tables() -> None:
    """A spreadsheet executes cells that begin like a formula."""
    [score, _] = measure(balls(), balls(), structures=("=1+1", "two"), axes=AXES, tolerance=1.6)
    base = evaluation()
    case = dataclasses.replace(base.cases[0], case="@SUM(A1)", patient="+49", structures=(score,))
    found = dataclasses.replace(base, cases=(case,), structures=("=1+1",))
    [row] = csv.DictReader(scores_csv(found).splitlines())
    assert (row["case"], row["patient"], row["structure"]) == ("'@SUM(A1)", "'+49", "'=1+1")
    assert float(row["error_ml"]) == 0
    assert {row["structure"] for row in csv.DictReader(summary_csv(summarise(found)).splitlines())} == {"'=1+1"}
