"""The study of ucf101_10: commands that the command line accepts, compute that is counted, differences by draw."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from ssl_video.cli import main
from tools.studies.common import signed
from tools.studies.ucf101 import METHODS, STEPS, Study, paired, write
from tools.studies.ucf101_linear import flow_histogram, predict


def test_the_commands_are_taken(capsys: pytest.CaptureFixture[str]) -> None:
    jobs = {job.name: job for job in Study(Path("data"), Path("runs"), draws=(0,)).jobs()}
    for method, expected in METHODS.items():
        assert main([*jobs[f"10percent-{method}-draw0"].arguments, "--print_config"]) == 0
        settings = yaml.safe_load(capsys.readouterr().out)
        clips = settings["training"]["batch_size"] * (1 if expected.supervised else 1 + settings["training"]["mu"])
        assert settings["optimizer"]["lr"] * clips / 40 == pytest.approx(0.3, rel=1e-3), method
        assert (settings["method"] == "supervised") == expected.supervised
        if settings["recipe"] == "strong":
            views = settings["inputs"]["views"][: 1 if settings["method"] == "fixmatch" else None]
            assert tuple(views) == expected.views, method


def test_equal_compute_by_hand() -> None:
    """With 8 labelled clips and a view: 3 passes each. Pseudo-labels: also 3 x 16 for strong clips and 16 for weak."""
    budget = 2 * (0.4 * 24 + 0.6 * (24 + 48 + 16)) * STEPS
    expected = {
        "mvpl": STEPS,
        "labels": budget / (2 * 24),
        "labels-rgb": budget / 24,
        "fixmatch": budget / (0.4 * 24 + 0.6 * 88),
        "late": budget / (2 * (0.8 * 24 + 0.2 * 88)),
        "paper": budget / (3 * (0.125 * 24 + 0.875 * 88)),
    }
    for method, steps in expected.items():
        assert METHODS[method].steps(STEPS) == round(steps), method


def test_scores_are_paired_by_draw(tmp_path: Path) -> None:
    study = Study(Path("data"), tmp_path, draws=(0, 1, 2))
    for method, draw, top1 in (("labels", 0, 40.0), ("labels", 2, 50.0), ("mvpl", 1, 90.0), ("mvpl", 2, 53.0)):
        path = study.out(10, method, draw) / "evaluation" / "test.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"views": {"rgb": {"top1": top1}}}))
    scores = study.scores(10, METHODS)
    assert paired(scores, "mvpl", "labels", "rgb") == [3.0]
    assert paired(scores, "mvpl", "labels", "fused") == []
    assert signed([3.0]) == "+3.0"
    assert signed([-1.0, -3.0]) == "-2.0 ± 1.0"


def test_steps_without_pseudo_labels_have_no_accuracy(tmp_path: Path) -> None:
    study = Study(Path("data"), tmp_path, draws=(0,))
    path = study.out(10, "mvpl", 0) / "metrics.jsonl"
    path.parent.mkdir(parents=True)
    lines = [
        {"step": 400, "coverage": 1.0, "pseudo_accuracy": 0.1},  # before the last quarter
        {"step": 1600, "coverage": 0.0, "pseudo_accuracy": "NaN"},
        {"step": 1900, "coverage": 0.5, "pseudo_accuracy": 0.75},
    ]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert study.pseudo_labels(10, "mvpl", 0) == {"coverage": 0.25, "pseudo_accuracy": 0.75}


def test_flow_histograms_count_place_speed_and_direction() -> None:
    flow = torch.zeros(1, 2, 8, 8)
    flow[0, 0, :4, :4] = 3.0  # the upper left quarter moves right, fast; the rest is still
    histogram = flow_histogram(flow).view(4, 4, 4, 8)
    for row in range(4):
        for column in range(4):
            expected = torch.zeros(4, 8)
            expected[3 if row < 2 and column < 2 else 0, 0] = 1 / 16
            assert torch.equal(histogram[row, column], expected)


def test_a_linear_classifier_finds_what_is_linear() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 5, generator=generator)
    labels = (x @ torch.randn(5, 3, generator=generator)).argmax(dim=1)
    (predictions,) = predict(x, labels, [x], classes=3, decay=1e-6)
    assert (predictions == labels).float().mean() > 0.95


def test_earlier_results_are_kept_and_repeated_runs_replace_them(tmp_path: Path) -> None:
    study, out = Study(Path("data"), tmp_path / "runs"), tmp_path / "found.json"
    before = {
        "top1": {"10": {"labels": {"0": {"rgb": 40.0}}, "mvpl": {"0": {"rgb": 44.0}, "2": {"rgb": 50.0}}}},
        "pseudo_labels": {"10": {"mvpl": [{"draws": [0, 2], "coverage": 0.9, "pseudo_accuracy": 0.5}]}},
        "config": {"commands": ["old"]},
        "notes": ["written by hand"],
    }
    out.write_text(json.dumps(before))
    for method, draw, top1 in (("mvpl", 1, 56.0), ("labels", 0, 41.0)):
        path = study.out(10, method, draw)
        (path / "evaluation").mkdir(parents=True)
        (path / "evaluation" / "test.json").write_text(json.dumps({"views": {"rgb": {"top1": top1}}}))
        (path / "metrics.jsonl").write_text(json.dumps({"step": STEPS, "coverage": 0.6, "pseudo_accuracy": 0.8}))
    write(study, study.jobs(), out, None)
    results = json.loads(out.read_text())
    assert results["top1"]["10"]["labels"] == {"0": {"rgb": 41.0}}
    rows = {row[1]: row for row in results["table"]["rows"]}
    assert rows["MvPL, fixed threshold"] == [
        10, "MvPL, fixed threshold", 3, "50.0 ± 6.0", "+3.0", None, None, "80", "60",
    ]  # fmt: skip
    assert results["seeds"] == [0, 1, 2]
    assert results["notes"] == ["written by hand"]
    assert results["config"]["commands"][0] == "old"
