"""The prediction benchmark runs both programs, whose masks agree."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tools.bench import medseg_predict
from tools.results import validate


def test_it_measures_both_and_their_masks_agree(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(medseg_predict, "seconds_to_import", lambda code: 1.0)
    out = tmp_path / "speed.json"
    medseg_predict.main(
        [
            "--shape",
            "50",
            "40",
            "3",
            "--size",
            "32",
            "--width",
            "2",
            "--rounds",
            "1",
            "--threads",
            "1",
            "--out",
            str(out),
        ]
    )
    said = capsys.readouterr().out.removesuffix(f"wrote {out}\n")
    assert validate(out) == []
    assert len(re.findall(r"[\d.]+ s per volume", said)) == 6
    assert float(said.split()[-1]) > 0.99
