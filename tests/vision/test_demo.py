"""The demo: short, through its function."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from ssl_vision.commands.demo import FEW, demo, few_labels


def test_demo_scores_every_kind_of_features_and_shows_the_run(tmp_path: Path) -> None:
    result = demo(tmp_path / "run", epochs=1, device="cpu")
    printed = str(result)
    assert list(result.few) == ["raw pixels", "untrained", "trained"]
    for name, (neighbour, linear) in result.everything.items():
        assert name in printed
        assert 10 < neighbour <= 100
        assert 10 < linear <= 100
    # Pixels of digits need no training: their neighbours are nearly always of the same class.
    assert result.everything["raw pixels"][0] > 95
    assert result.few["raw pixels"][0] < result.everything["raw pixels"][0]
    assert "<html" in result.report.read_text()
    with Image.open(result.picture) as picture:
        assert min(picture.size) > 500


def test_few_labels_are_as_many_of_every_class() -> None:
    labels = torch.arange(10).repeat_interleave(30)
    choices = few_labels(labels, seed=0)
    for chosen in choices:
        assert torch.equal(labels[chosen].bincount(), torch.full((10,), FEW))
        assert len(chosen.unique()) == len(chosen)
    assert not torch.equal(choices[0], choices[1])
