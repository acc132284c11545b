"""Studies of ACDC and prostate: their commands, numbers of slices, and what counts as measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ssl_medseg.cli import main
from ssl_medseg.datasets import open_dataset
from ssl_medseg.datasets.splits import Split, write_split
from ssl_medseg.preprocessing import Preprocessing
from tests.medseg.small_models import random_segmenter
from tests.medseg.small_sets import decathlon
from tools.studies import acdc, prostate, strong
from tools.studies.acdc import ceiling


def test_every_command_of_the_studies_is_one_that_the_program_takes(capsys: pytest.CaptureFixture[str]) -> None:
    studies = (
        acdc.Study(Path("data"), Path("runs"), 1, tuple(acdc.METHODS)),
        prostate.Study(Path("data"), Path("runs"), 1),
        *(strong.Study(material, Path("data"), Path("runs"), 1, "minutes") for material in strong.MATERIALS.values()),
    )
    jobs = {job.name: job for study in studies for job in study.jobs() if "-8-" not in job.name}
    assert {"both-1-draw1-test", "trunk-2-draw1", "all-seed3", "kept-draw1-test"} <= jobs.keys()
    for job in jobs.values():
        assert main([*job.arguments, "--print_config"]) == 0, f"{job.line}\n{capsys.readouterr().err}"


def write_scores(path: Path, **structures: dict[str, float | None]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    entries = [
        {"structure": name, "measures": {m: {"mean": v, "n_missing": int(v is None)} for m, v in measures.items()}}
        for name, measures in structures.items()
    ]
    dice = [measures["dice"] for measures in structures.values()]
    mean = sum(value for value in dice if value is not None) / len(dice)
    path.write_text(json.dumps({"summary": {"structures": entries, "mean_dice": {"mean": mean}}}))


def test_differences_are_of_the_draws_that_both_methods_have(tmp_path: Path) -> None:
    study = acdc.Study(Path("data"), tmp_path, 5, ("supervised", "pseudo"))
    for method, draw, dice in [("supervised", 1, 0.5), ("supervised", 2, 0.9), ("pseudo", 1, 0.625)]:
        write_scores(study.out(method, 2, draw) / "evaluation" / "test.json", LV={"dice": dice})
    lines = {line[1]: line for line in acdc.rows(study)}
    assert lines["labels alone"][2:6] == [2, 12, "0.700 ± 0.283", "-0.125"]
    assert lines["plain self-training"][2:6] == [1, 18, "0.625", None]


def test_gains_of_the_strong_recipe_are_paired_with_labels_trained_as_long(tmp_path: Path) -> None:
    study = strong.Study(strong.MATERIALS["acdc"], Path("data"), tmp_path, 5, "minutes")
    for name, draw, dice in [("labels", 1, 0.5), ("labels", 2, 0.75), ("consistency", 1, 0.625), ("first", 2, 0.5)]:
        write_scores(study.out(name, 2, draw) / "evaluation" / "chosen.json", LV={"dice": dice})
    lines = {line[1]: line for line in strong.rows(strong.collect(study, {}))}
    assert lines["labels alone, 2N steps"][2:] == [2, "0.625 ± 0.177", "0.500", None, None, None]
    assert lines["consistency"][2:] == [1, "0.625", "0.625", "+0.125 (1 of 1)", None, None]
    assert lines["labels alone, N steps: where the methods begin"][5] == "-0.250 (0 of 1)"


def test_claims_have_standard_errors_and_counts() -> None:
    scores = {"both": {1: 0.60, 2: 0.70, 3: 0.50}, "pseudo": {1: 0.56, 2: 0.62, 3: 0.54, 4: 0.1}}
    # Differences 0.04, 0.08, -0.04: mean 0.0267, standard deviation 0.0611, over the root of 3 0.0353.
    assert acdc.claims(scores, 2) == (
        "Mean differences and their standard errors, 2 labelled: both, weight 0.03 minus plain self-training "
        "+0.027 ± 0.035 (2 of 3 draws better)."
    )


def test_the_ceiling_is_one_at_full_resolution_and_lower_below(tmp_path: Path) -> None:
    data = decathlon(tmp_path / "data", ["a", "b"], unlabelled=["c"])
    dataset, split = open_dataset(data), tmp_path / "split.json"
    write_split(split, Split(("a",), test=("b",), unlabelled=("c",)), dataset)
    full, half = (Preprocessing(size=(64, 64), spacing=spacing) for spacing in ((1.5, 1.5), (4.0, 4.0)))
    models = [
        random_segmenter(tmp_path / name, p, labels=dataset.labels) for name, p in (("full", full), ("half", half))
    ]
    found = [ceiling(model, data, split) for model in models]
    assert found[0] == 1
    assert 0.5 < found[1] < 0.97


def test_both_controls_see_as_many_slices_as_both() -> None:
    slices = {name: method.slices for name, method in acdc.METHODS.items()}
    assert slices["first"] == 20 * acdc.FIRST
    assert slices["supervised-long"] == slices["pseudo-long"] == slices["both"]


def test_a_measure_that_a_test_volume_lacks_is_not_averaged(tmp_path: Path) -> None:
    path = tmp_path / "test.json"
    write_scores(path, one={"dice": 0.5, "hd95": 4.0, "assd": 1.0}, two={"dice": 0.7, "hd95": None, "assd": 2.0})
    found = prostate.measured(path)
    assert found == {"dice": pytest.approx(0.6), "hd95": None, "assd": pytest.approx(1.5)}
