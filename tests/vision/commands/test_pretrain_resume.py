"""A run killed repeatedly ends in the same bytes as an undisturbed one, through the real command."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.vision.killed_runs import kill_after, outcome, run_killed

COMMAND = [
    *(sys.executable, "-m", "ssl_vision", "pretrain", "digits"),
    *("--epochs", "6", "--batch_size", "128", "--image_size", "16", "--encoder.width_multiplier", "0.125"),
    *("--optimizer.warmup_epochs", "1", "--save_every", "3", "--log_every", "3", "--checkpoint_every", "5"),
    *("--device", "cpu", "--threads", "1", "--seed", "3"),
]
EVERYTHING = [
    *("--classes_per_batch", "4", "--images_per_class", "5", "--suncet.until-epoch", "4.5"),
    *("--memory.projections", "500", "--memory.decay", "0.9"),
]


def command(out: Path, *more: str) -> list[str]:
    return [*COMMAND, "--out", str(out), *more]


def with_everything(out: Path, *more: str) -> list[str]:
    return command(out, *EVERYTHING, *more)


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("untouched") / "run"
    subprocess.run(command(run), check=True, capture_output=True)
    return run


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_runs_end_in_the_same_bytes(untouched: Path, tmp_path: Path, seed: int) -> None:
    run = tmp_path / "run"
    run_killed(command, run, seed=seed)
    assert outcome(run) == outcome(untouched)


@pytest.mark.slow
def test_killed_runs_with_labels_and_memory_end_in_the_same_bytes(tmp_path: Path) -> None:
    """Labelled images until the middle of the run; moving average and memory bank in the checkpoint."""
    subprocess.run(with_everything(tmp_path / "untouched"), check=True, capture_output=True)
    run_killed(with_everything, tmp_path / "run", seed=2)
    assert outcome(tmp_path / "run") == outcome(tmp_path / "untouched")


def test_terminated_run_says_how_to_go_on(untouched: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = subprocess.Popen(command(run), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert kill_after(process, run, 20, signal.SIGTERM)
    assert process.stdout is not None
    said = process.stdout.read().decode()
    assert process.returncode == 128 + signal.SIGTERM, said
    assert "--resume" in said
    subprocess.run(command(run, "--resume", "true"), check=True, capture_output=True)
    assert outcome(run) == outcome(untouched)


def test_other_settings_are_refused_on_resume(untouched: Path) -> None:
    changed = subprocess.run(
        command(untouched, "--resume", "true", "--temperature", "0.2"), capture_output=True, text=True, check=False
    )
    assert changed.returncode == 1
    assert "temperature" in changed.stderr
    assert "0.5 -> 0.2" in changed.stderr
    assert "Traceback" not in changed.stderr
