"""The prediction benchmark runs both contestants, whose masks agree."""

from __future__ import annotations

import re

import pytest

from tools import bench_medseg_predict


def test_it_measures_both_and_their_masks_agree(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_medseg_predict, "seconds_to_import", lambda code: 1.0)
    bench_medseg_predict.main(
        ["--shape", "50", "40", "3", "--size", "32", "--width", "2", "--rounds", "1", "--threads", "1"]
    )
    said = capsys.readouterr().out
    assert len(re.findall(r"[\d.]+ s per volume", said)) == 4
    assert float(said.split()[-1]) > 0.99
