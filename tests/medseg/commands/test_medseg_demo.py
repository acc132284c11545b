"""The demo runs from nothing to a report, and continues where it stopped."""

from __future__ import annotations

from pathlib import Path

import pytest

from ssl_medseg.cli import main
from ssl_medseg.commands.demo import demo
from ssl_medseg.evaluation import read_evaluation
from tests.pages import assert_stands_alone, read


@pytest.mark.slow
def test_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["demo", "--out", str(tmp_path / "demo"), "--steps", "12"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "Dice on 6 volumes of 3 generated patients not used for training" in said
    # So few steps do not find every structure, and the demo does not hide it.
    assert "Failed: the baseline never finds " in said
    assert "`ssl-medseg run` would have stopped before self-training." in said
    found = read_evaluation(tmp_path / "demo" / "evaluation" / "Phantom-test.json")
    assert {case.patient for case in found.cases} == {"patient009", "patient010", "patient011"}
    assert len(list((tmp_path / "demo" / "masks").glob("*.png"))) == 6
    page = read(tmp_path / "demo" / "report.html")
    assert_stands_alone(page, (tmp_path / "demo" / "report.html").read_text())
    for part in (
        "Improvement by stage",
        "The segmentation has failed",
        "Trained on 4 volumes of 2 patients with labels",
    ):
        assert part in page.text
    assert main(words) == 0
    assert capsys.readouterr().out.split("masks:")[0] == said.split("masks:")[0]


@pytest.mark.slow
def test_the_default_demo_finds_every_structure(tmp_path: Path) -> None:
    result = demo(tmp_path / "demo", device="cpu")
    for done in (result.baseline, result.selftrained):
        dice = {each.structure: each.measures["dice"].mean for each in done.summary.structures}
        assert min(value or 0.0 for value in dice.values()) > 0.5, dice
    assert "Failed" not in str(result)
    assert "The segmentation has failed" not in result.report.read_text()
