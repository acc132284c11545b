"""The demo runs from nothing to a report, and continues where it stopped."""

from __future__ import annotations

from pathlib import Path

import pytest

from ssl_medseg.cli import main
from ssl_medseg.evaluation import read_evaluation
from tests.pages import assert_stands_alone, read


@pytest.mark.slow
def test_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["demo", "--out", str(tmp_path / "demo"), "--steps", "12"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "Dice on 8 volumes of 4 generated patients not used for training" in said
    found = read_evaluation(tmp_path / "demo" / "evaluation" / "Phantom-test.json")
    assert {case.patient for case in found.cases} == {"patient008", "patient009", "patient010", "patient011"}
    assert len(list((tmp_path / "demo" / "masks").glob("*.png"))) == 8
    page = read(tmp_path / "demo" / "report.html")
    assert_stands_alone(page, (tmp_path / "demo" / "report.html").read_text())
    for part in (
        "Improvement by stage",
        "Pseudo-labels",
        "Trained on 2 volumes of 1 patient with labels",
    ):
        assert part in page.text
    assert main(words) == 0
    assert capsys.readouterr().out.split("masks:")[0] == said.split("masks:")[0]
