"""A short demo, called as a function."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from contrastive_core.errors import UserError
from ssl_vision.commands import demo as module
from ssl_vision.commands.demo import LABELS, demo
from ssl_vision.evaluation import probes


def test_demo_scores_every_kind_of_features_and_shows_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DRAWS", 2)  # for time
    monkeypatch.setattr(probes, "PENALTIES", probes.PENALTIES[4:12:3])  # most of the time is needed by small penalties
    result = demo(tmp_path / "run", epochs=2, device="cpu")
    printed = str(result)
    assert list(result.accuracies) == ["raw pixels", "untrained network", "network trained by SimCLR"]
    for name, row in result.accuracies.items():
        assert tuple(row) == LABELS
        assert f"  {name} " in printed
        for labels, accuracy in row.items():
            for found in (accuracy.linear, accuracy.neighbour):
                assert str(found) in printed
                assert 10 < found.mean <= 100
                assert (found.deviation is None) == (labels is None)
    assert result.images == 364
    assert "on 364 test images" in printed
    pixels = result.accuracies["raw pixels"]
    # Pixels of digits need no training: their neighbours are nearly always of the same class.
    assert pixels[None].neighbour.mean > 95
    assert pixels[2].neighbour.mean < pixels[10].neighbour.mean < pixels[None].neighbour.mean
    assert "over 2 random choices" in printed
    trained = result.accuracies["network trained by SimCLR"][2].best
    ahead = trained - pixels[2].best
    assert f"With 2 labels per class, learnt features are {abs(ahead):.1f} points" in printed or abs(ahead) < 1
    _check_files(result.report.parent, result.report, result.picture)


@pytest.mark.slow
def test_asked_again_it_shows_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DRAWS", 2)
    printed = str(demo(tmp_path / "run", epochs=1, device="cpu"))
    metrics = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    assert str(demo(tmp_path / "run", epochs=1, device="cpu")) == printed
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == metrics


def _check_files(run: Path, page: Path, picture: Path) -> None:
    text = page.read_text()
    for words in (
        "linear classifier, 5 labels per class",
        "nearest neighbour, all labels",
        "raw pixels",
        "after 1 of 2",
    ):
        assert words in text
    for folder in (run, run / "models" / "epoch-0000", run / "models" / "epoch-0001"):
        score = json.loads((folder / "evaluation" / "linear-5.json").read_text())
        assert f"{score['top1']:.1f} %" in text
    with Image.open(picture) as image:
        assert min(image.size) > 500


def test_a_demo_of_no_epochs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="epochs >= 1, got 0"):
        demo(tmp_path / "run", epochs=0)
