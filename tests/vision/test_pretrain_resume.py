"""A run that is killed again and again ends in the same bytes as one that is left alone: through the real command."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

COMMAND = [
    *(sys.executable, "-m", "ssl_vision", "pretrain", "digits"),
    *("--epochs", "6", "--batch_size", "128", "--image_size", "16", "--encoder.width", "0.125"),
    *("--optimizer.warmup_epochs", "1", "--save_every", "3", "--log_every", "3", "--checkpoint_every", "5"),
    *("--device", "cpu", "--threads", "1", "--seed", "3"),
]
STEPS = 6 * (1433 // 128)


def command(out: Path, *more: str) -> list[str]:
    return [*COMMAND, "--out", str(out), *more]


def outcome(run: Path) -> dict[str, str]:
    """Hash of everything a run promises to repeat: metrics, models and the last checkpoint's tensors and state."""
    last = max((run / "checkpoints").glob("step-*"))
    files = [run / "metrics.jsonl", run / "metrics.csv", *run.glob("model/*"), *run.glob("models/*/*"), *last.glob("*")]
    return {str(file.relative_to(run)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def kill_after(process: subprocess.Popen[bytes], run: Path, steps: int, how: signal.Signals) -> bool:
    """Send the signal when the metrics show that many steps; False if the run ended before."""
    metrics = run / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while process.poll() is None:
        assert time.monotonic() < deadline, "the run made no progress"
        lines = metrics.read_text().count("\n") if metrics.is_file() else 0
        if lines * 3 > steps:
            process.send_signal(how)
            process.wait()
            return True
        time.sleep(0.002)
    return False


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("untouched") / "run"
    subprocess.run(command(run), check=True, capture_output=True)
    return run


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_runs_end_in_the_same_bytes(untouched: Path, tmp_path: Path, seed: int) -> None:
    run = tmp_path / "run"
    rng = random.Random(seed)
    kills = 0
    for attempt in range(4):
        resume = ["--resume", "true"] if attempt else []
        # Another number of workers each time, images from memory or from files: neither may matter.
        loading = ["--load", "files", "--workers", str(attempt % 3)] if attempt else []
        with (tmp_path / "log").open("ab") as log:
            process = subprocess.Popen(command(run, *resume, *loading), stdout=log, stderr=log, start_new_session=True)
            try:
                kills += kill_after(process, run, rng.randrange(attempt * 15, attempt * 15 + 15), signal.SIGKILL)
            finally:
                # Loader workers outlive a killed parent for a moment.
                if process.poll() is None or attempt:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
    assert kills >= 3
    subprocess.run(command(run, "--resume", "true"), check=True, capture_output=True)
    assert outcome(run) == outcome(untouched)


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
