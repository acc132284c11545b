"""The commands of the video tutorial, run as a reader runs them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from tests.page_commands import commands_of, run_all
from tools.results import ROOT

TUTORIAL = ROOT / "docs" / "ssl-video" / "tutorial.md"


@pytest.mark.slow
@pytest.mark.timeout(1800)  # a few minutes where nothing else runs
def test_the_tutorial_runs(tmp_path: Path) -> None:
    run_all(commands_of(TUTORIAL.read_text(encoding="utf-8"), "ssl-video"), tmp_path)
    with (tmp_path / "classes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    assert sum(row["class"] == row["path"].split("/")[0] for row in rows) >= 9  # chance: 3
    views = json.loads((tmp_path / "runs/mvpl/evaluation/test.json").read_text())["views"]
    assert views["fused"]["top1"] > max(views["rgb"]["top1"], views["tg"]["top1"])
    assert (tmp_path / "runs/mvpl/report.html").stat().st_size > 10_000
    assert (tmp_path / "actions.onnx").stat().st_size > 10_000
