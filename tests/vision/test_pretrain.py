"""Pre-training end to end: on real images, as a function, on several processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch

from contrastive_core.errors import UserError
from contrastive_core.train import RunOptions
from ssl_vision.commands.knn import knn
from ssl_vision.commands.pretrain import pretrain
from ssl_vision.model_folder import load_encoder
from ssl_vision.models import EncoderOptions
from ssl_vision.options import OptimizerOptions

TINY = EncoderOptions(width=0.125)


def metrics(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_training_learns_and_leaves_a_model(tmp_path: Path) -> None:
    run = tmp_path / "run"
    model = pretrain(
        "digits", run, epochs=8, batch_size=128, image_size=16, encoder=TINY, temperature=0.2, save_every=4,
        optimizer=OptimizerOptions(lr=1.0, warmup_epochs=1), run=RunOptions(threads=1, log_every=4, device="cpu"),
    )  # fmt: skip
    assert model == run / "model"
    records = metrics(run)
    assert records[0]["lr"] == 0.0
    assert records[-1]["loss"] < records[0]["loss"] - 0.5
    assert records[-1]["contrastive_accuracy"] > records[0]["contrastive_accuracy"]
    assert records[-1]["epoch"] == 8
    assert sorted(folder.name for folder in (run / "models").iterdir()) == ["epoch-0000", "epoch-0004"]
    untrained, trained = (load_encoder(str(folder)).encoder for folder in (run / "models" / "epoch-0000", run))
    assert not torch.equal(untrained.conv1.weight, trained.conv1.weight)
    assert knn(str(run), "digits", k=20).images == 364
    assert (run / "evaluation" / "knn.json").is_file()


@pytest.mark.slow
def test_features_of_real_images_get_better(tmp_path: Path, shared_data: Path) -> None:
    photos = tmp_path / "photos"
    with tarfile.open(shared_data / "cifar10.tar.xz") as archive:
        for member in archive:
            number = Path(member.name).stem
            if member.isfile() and number.isdigit() and int(number) < (256 if member.name.startswith("train") else 64):
                archive.extract(member, photos, filter="data")
    run = tmp_path / "run"
    pretrain(
        str(photos), run, epochs=12, batch_size=128, encoder=EncoderOptions(width=0.25), temperature=0.2, save_every=12,
        optimizer=OptimizerOptions(lr=1.0, warmup_epochs=2), run=RunOptions(precision="bf16-mixed", device="cpu"),
    )  # fmt: skip
    before, after = (knn(str(folder), str(photos), k=20).top1 for folder in (run / "models" / "epoch-0000", run))
    assert after > before + 3


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """Same images, global batch and seed: the loss curve of two processes is that of one."""
    arguments = [
        *("pretrain", "digits", "--epochs", "2", "--batch_size", "64", "--image_size", "16"),
        # SGD: LARS divides by the size of the gradient and so blows rounding up where that is nearly zero.
        *("--encoder.width", "0.125", "--optimizer.name", "sgd", "--optimizer.lr", "0.1", "--log_every", "1"),
        *("--device", "cpu", "--threads", "1", "--out"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    one = [sys.executable, "-m", "ssl_vision", *arguments, str(tmp_path / "one")]
    two = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        *("-m", "ssl_vision", *arguments, str(tmp_path / "two")),
    ]
    for command in (one, two):
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, done.stderr
    alone, together = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    assert len(alone) == len(together) == 2 * (1433 // 64)
    # The first steps agree to rounding; training then amplifies it.
    for ours, theirs in zip(together[:20], alone[:20], strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert ours["lr"] == theirs["lr"]
        assert ours["contrastive_accuracy"] == pytest.approx(theirs["contrastive_accuracy"], abs=0.02)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epochs": 0}, "epochs >= 1"),
        ({"temperature": 0.0}, "temperature > 0"),
        ({"batch_size": 5000}, "1433"),
        ({"data": "no-such-folder"}, "no such folder"),
        ({"split": "valid"}, "split 'valid'"),
        ({"optimizer": OptimizerOptions(warmup_epochs=10)}, "warmup_epochs is 10 in a run of 1 epochs"),
    ],
)
def test_bad_arguments_are_refused(tmp_path: Path, arguments: dict[str, object], message: str) -> None:
    settings: dict[str, object] = {"data": "digits", "encoder": TINY, "epochs": 1, **arguments}
    with pytest.raises(UserError, match=message):
        pretrain(out=tmp_path / "run", **settings)  # type: ignore[arg-type]
