"""Settings out of range: one clear error on the command line, never a traceback."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ssl_vision.cli import main


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--image_size 0", "augmentation: size must be a number of pixels per side, at least 1, got 0"),
        ("--augment.strength 9", r"augmentation: strength must be in \[0, 2.5\]"),
        ("--augment.gray 1.5", r"augmentation: gray must be a probability in \[0, 1\], got 1.5"),
        ("--head.layers 0", "head.layers is 0 and head.out_features is 128; expected both at least 1"),
        ("--head.out_features -1", "head.out_features is -1; expected both at least 1"),
        ("--optimizer.lr 0", "optimizer.lr is 0.0; expected a finite number above 0"),
        ("--optimizer.lr .inf", "optimizer.lr is inf; expected a finite number above 0"),
        ("--optimizer.momentum 1", r"optimizer.momentum is 1.0; expected in \[0, 1\), for sgd above 0"),
        ("--optimizer.name sgd --optimizer.momentum 0", "optimizer.momentum is 0.0; expected in"),
        ("--optimizer.weight_decay -1e-6", "optimizer.weight_decay is -1e-06; expected a finite number, at least 0"),
        ("--optimizer.warmup_epochs 1", "optimizer.warmup_epochs is 1 in a run of 1 epochs"),
        ("--encoder.width_multiplier 0", "encoder: .*width"),
        ("--encoder.sk_ratio -1", "encoder: .*sk_ratio"),
        ("--encoder.name resnet19", "no encoder named 'resnet19'"),
        ("--temperature 0", "temperature > 0"),
        ("--batch_size -4", "batch_size is -4"),
    ],
)
def test_pretrain(words: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["pretrain", "digits", "--out", str(tmp_path / "run"), "--epochs", "1", "--image_size", "16"]
    assert main([*line, "--no-progress", *words.split()]) == 1
    assert_one_error(capsys, f"ssl-vision pretrain: .*{said}")


@pytest.mark.parametrize(
    "words", ["knn pixels digits", "linear pixels digits --augment none", "embed pixels digits a.npz"]
)
def test_batches_of_nothing(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words.split(), "--batch_size", "0"]) == 1
    assert_one_error(capsys, "batch_size is 0; expected a whole number of at least 1")


def assert_one_error(capsys: pytest.CaptureFixture[str], said: str) -> None:
    *_, last = capsys.readouterr().err.splitlines()
    assert re.search(said, last)
