"""Sound as a view: clips without sound count nowhere, from the file to the score."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from contrastive_core.errors import UserError
from contrastive_core.training import RunOptions
from ssl_video.commands.evaluate import evaluate
from ssl_video.commands.make_splits import LabelDrawOptions, make_splits
from ssl_video.commands.predict import predict
from ssl_video.commands.report import report
from ssl_video.commands.train import _accuracy, train
from ssl_video.data import ClipSpec, Video, VideoSet
from ssl_video.data.splits import read_split
from ssl_video.evaluation import SamplingOptions
from ssl_video.models import NetworkOptions
from ssl_video.models.model_folder import load_recognizer
from ssl_video.training.options import InputOptions, PseudoOptions, TrainingOptions

pytest.importorskip("torchaudio")


def test_silent_videos_train_and_test_without_their_sound(
    write_video: Callable[..., Path], numbered: Callable[..., np.ndarray], tmp_path: Path
) -> None:
    for label, tone in (("high", 3000.0), ("low", 300.0)):
        for number in range(6):
            write_video(f"set/{label}/{number}.mkv", numbered(12, seed=number), tone=None if number % 3 == 2 else tone)
    data = str(tmp_path / "set")
    make_splits(
        data,
        tmp_path,
        draw=LabelDrawOptions(fractions=(), per_class=(2,), draws=1, validation_fraction=0.0),
        blocks=6,
        test_fraction=0.34,
    )
    split = tmp_path / "2each-draw0.json"
    train(
        data,
        tmp_path / "run",
        split=split,
        inputs=InputOptions(("rgb", "audio"), image_size=16),
        training=TrainingOptions(steps=4, batch_size=4, mu=1, recalibrate=8),
        clip=ClipSpec(frames=2, stride=4),
        network=NetworkOptions("small_slow", width=4),
        pseudo=PseudoOptions(threshold=1.0, warmup=0.25),
        run=RunOptions(device="cpu", threads=1, progress=False),
    )
    found = evaluate(str(tmp_path / "run"), data, split=split, sampling=SamplingOptions(clips=1, crops=1), device="cpu")
    with np.load(tmp_path / "run/evaluation/test-predictions.npz") as arrays:
        probabilities, keys = torch.from_numpy(arrays["probabilities"]), [str(key) for key in arrays["keys"]]
    silent = torch.tensor([int(key[-5]) % 3 == 2 for key in keys])
    assert 0 < silent.sum() < len(silent)
    assert torch.equal(probabilities[:, 1].isnan().all(dim=1), silent)
    assert found.views["audio"].videos == int((~silent).sum())
    assert found.views["fused"].videos == len(keys)
    listed = read_split(split)
    named = VideoSet("test", [Video(key, tmp_path / "set" / key, label) for key, label in listed.test])
    recognizer = load_recognizer(tmp_path / "run", device="cpu")
    recognizer = replace(recognizer, recipe=replace(recognizer.recipe, views=("audio", "rgb")))
    accuracy = _accuracy(recognizer, named, max_bad=0, unreadable=set(), say=print)
    assert accuracy == pytest.approx(found.views["audio"].top1 / 100)
    alone = SamplingOptions(views=("audio",), clips=1, crops=1)
    found = evaluate(
        str(tmp_path / "run"), data, split=split, sampling=alone, device="cpu", out=tmp_path / "alone", part="test"
    )
    assert sum(map(sum, found.confusion)) == int((~silent).sum())
    assert predict(str(tmp_path / "run"), data, tmp_path / "alone.csv", sampling=alone, sheet=0).unreadable == 4
    for row in csv.DictReader((tmp_path / "alone.csv").open(encoding="utf-8")):
        assert ("has no sound" in row["error"]) == (not row["class"]) == (int(row["path"][-5]) % 3 == 2)
    write_video("quiet/high/0.mkv", numbered(12, seed=50))
    seen = evaluate(str(tmp_path / "run"), str(tmp_path / "quiet"), device="cpu", out=tmp_path / "run/evaluation")
    assert seen.views["audio"].videos == 0
    assert "audio  no video has this view" in str(seen)
    score = json.loads((tmp_path / "run/evaluation/all.json").read_text(), parse_constant=pytest.fail)["views"]["audio"]
    assert score == {"videos": 0, "top1": None, "top5": None, "mean_per_class": None}
    assert "no videos</td>" in report(tmp_path / "run").read_text(encoding="utf-8")
    with pytest.raises(UserError, match="none of the 1 test videos has the view audio"):
        evaluate(str(tmp_path / "run"), str(tmp_path / "quiet"), sampling=alone, device="cpu", out=tmp_path / "quiet2")
