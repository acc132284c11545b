"""`pretrain --grad_cache`: the same run in chunks, alone and over processes; killed and resumed to the same bytes."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from contrastive_core.errors import UserError
from contrastive_core.training import RunOptions
from ssl_vision.commands.pretrain import pretrain
from ssl_vision.methods import SimCLR
from ssl_vision.models import EncoderOptions, resnet
from ssl_vision.training.options import MemoryOptions, OptimizerOptions, PretrainingOptions
from tests.vision.killed_runs import kill_after, outcome
from tests.vision.two_processes import metrics, run_alone_and_together

PLAIN = "tests.vision.plain_encoder:build"
QUIET = RunOptions(threads=1, log_every=1, device="cpu", progress=False)


def records(out: Path, **settings: Any) -> list[dict[str, float]]:
    pretrain(
        "digits",
        out,
        training=PretrainingOptions(epochs=1, batch_size=128, image_size=8),
        encoder=EncoderOptions(name=PLAIN),
        memory=MemoryOptions(projections=200),
        optimizer=OptimizerOptions(lr=0.1, warmup_epochs=0),
        run=QUIET,
        **settings,
    )
    return metrics(out)


def test_chunks_train_as_the_whole_batch(tmp_path: Path) -> None:
    whole, chunks = records(tmp_path / "whole"), records(tmp_path / "chunks", grad_cache=50)
    assert len(whole) == len(chunks) == 1433 // 128
    for ours, theirs in zip(chunks, whole, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3)
    assert chunks[1]["loss"] == pytest.approx(whole[1]["loss"], rel=1e-5)  # after one update
    assert abs(whole[-1]["loss"] - whole[1]["loss"]) > 0.01


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    arguments = [
        *("pretrain", "digits", "--epochs", "1", "--batch_size", "128", "--image_size", "8", "--log_every", "1"),
        *("--encoder.name", PLAIN, "--device", "cpu", "--threads", "1", "--no-progress", "--grad-cache", "50"),
        *("--optimizer.warmup_epochs", "0", "--optimizer.lr", "0.1"),
    ]
    alone, together = run_alone_and_together(arguments, tmp_path)
    assert len(alone) == len(together) == 1433 // 128
    for ours, theirs in zip(together, alone, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3)
    assert together[1]["loss"] == pytest.approx(alone[1]["loss"], rel=1e-5)


@pytest.mark.slow
def test_a_killed_run_with_chunks_of_batch_norm_ends_in_the_same_bytes(tmp_path: Path) -> None:
    def command(out: Path, *more: str) -> list[str]:
        return [
            *(sys.executable, "-m", "ssl_vision", "pretrain", "digits", "--out", str(out), "--epochs", "3"),
            *("--batch_size", "128", "--image_size", "8", "--encoder.width_multiplier", "0.125", "--log_every", "3"),
            *(
                "--checkpoint_every",
                "4",
                "--memory.projections",
                "300",
                "--grad_cache",
                "60",
                "--grad_cache_norm",
                "chunk",
            ),
            *("--device", "cpu", "--threads", "1", *more),
        ]

    subprocess.run(command(tmp_path / "untouched"), check=True, capture_output=True)
    process = subprocess.Popen(command(tmp_path / "run"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert kill_after(process, tmp_path / "run", 12, signal.SIGKILL)
    subprocess.run(command(tmp_path / "run", "--resume", "true"), check=True, capture_output=True)
    assert outcome(tmp_path / "run") == outcome(tmp_path / "untouched")


def test_the_head_sees_the_whole_batch() -> None:
    """Batch norm of the head is updated once, that of the encoder once per chunk."""
    torch.manual_seed(0)
    model = SimCLR(resnet(18, width=0.125, stem="cifar"), projection_dim=16)
    z = model(torch.rand(6, 3, 8, 8), torch.rand(6, 3, 8, 8), chunk_size=5, batch_norm="chunk")
    assert [len(part) for part in z] == [6, 6]
    updates = {name: int(n) for name, n in model.named_buffers() if name.endswith("num_batches_tracked")}
    assert {n for name, n in updates.items() if name.startswith("head")} == {1}
    assert {n for name, n in updates.items() if name.startswith("encoder")} == {3}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"grad_cache": -1}, "grad_cache is -1; expected at least 1 view"),
        ({"grad_cache": 50}, r"the encoder has batch norm \(bn1 and \d+ more\).*--grad-cache-norm chunk"),
        (
            {"grad_cache": 50, "grad_cache_norm": "chunk", "run": RunOptions(device="cpu", compile=True)},
            "leave out --compile or --grad-cache",
        ),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        pretrain(
            "digits",
            tmp_path / "run",
            training=PretrainingOptions(epochs=1),
            encoder=EncoderOptions(width_multiplier=0.125),
            **settings,
        )
