"""The training benchmark runs every program and prints the ratio."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tools.bench.medseg_train import main
from tools.results import validate


def test_it_measures_with_and_without_loading(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "speed.json"
    main(["--size", "32", "--width", "2", "--batch-size", "2", "--rounds", "2", "--threads", "1", "--out", str(out)])
    assert validate(out) == []
    said = capsys.readouterr().out
    assert len(re.findall(r"[\d.]+ slices/s", said)) == 4
    ratios = [float(ratio) for ratio in re.findall(r"without ([\d.]+)", said)]
    assert len(ratios) == 2
    assert all(0 < ratio < 3 for ratio in ratios)
