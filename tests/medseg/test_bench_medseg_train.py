"""The training benchmark runs every program and prints its speed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tools.bench.medseg_train import main
from tools.results import validate


def test_it_measures_with_and_without_loading_and_beside_monai(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out, small = tmp_path / "speed.json", ["--size", "32", "--width", "2", "--batch-size", "2"]
    main([*small, "--rounds", "1", "--steps", "1", "--threads", "1", "--out", str(out)])
    assert validate(out) == []
    said = capsys.readouterr().out
    assert len(re.findall(r"[\d.]+ slices/s", said)) == 6
    assert re.search(r"^ssl-medseg .* 1\.00 times", said, re.MULTILINE)
