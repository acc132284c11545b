"""Experiments made of commands: finished steps stay, dependents of a failure wait, accuracies become claims."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tools.studies.common import Job, mean_and_spread, run_all
from tools.studies.simclrv2 import ROWS, claims
from tools.studies.suncet import compute_to_reach


def check_digits(name: str, out: Path, after: tuple[str, ...] = ()) -> Job:
    return Job(name, ("check", "digits", "--out", str(out)), out, after)


def test_jobs_run_once_and_in_the_order_of_need(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    jobs = [check_digits("second", second, ("first",)), check_digits("first", first)]
    assert run_all(jobs, logs=tmp_path / "logs", workers=2) == []
    assert second.stat().st_mtime_ns >= first.stat().st_mtime_ns
    assert capfd.readouterr().out.splitlines()[0].startswith("first: ssl-vision check digits")
    written = first.stat().st_mtime_ns
    assert run_all(jobs, logs=tmp_path / "logs", workers=2) == []
    assert first.stat().st_mtime_ns == written
    assert capfd.readouterr().out == ""


def test_what_needs_a_failed_job_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    wrong = Job("wrong", ("check", str(tmp_path / "nowhere")), tmp_path / "never.json")
    waiting = check_digits("waiting", tmp_path / "waiting.json", ("wrong",))
    assert run_all([wrong, waiting], logs=tmp_path / "logs", workers=1) == ["waiting", "wrong"]
    assert not waiting.result.exists()
    assert "wrong: FAILED" in capfd.readouterr().err
    assert "nowhere" in (tmp_path / "logs" / "wrong.log").read_text()


def test_a_training_that_was_killed_goes_on(tmp_path: Path) -> None:
    """Started again, with the command that the results state."""
    words = (
        "pretrain",
        "digits",
        str(tmp_path / "run"),
        "--epochs",
        "2",
        "--encoder.width_multiplier",
        "0.05",
        "--device",
        "cpu",
    )
    job = Job(
        "run", (*words, "--batch_size", "256", "--checkpoint_every", "1"), tmp_path / "run" / "model" / "model.json"
    )

    def killed(job: Job, log: Path) -> int:
        with subprocess.Popen(
            [sys.executable, "-m", "ssl_vision", *job.resuming], stderr=subprocess.DEVNULL
        ) as process:
            while not list((tmp_path / "run").glob("checkpoints/step-*")) and process.poll() is None:
                time.sleep(0.01)
            process.kill()
        return process.wait()

    assert run_all([job], logs=tmp_path / "logs", workers=1, call=killed) == ["run"]
    assert run_all([job], logs=tmp_path / "logs", workers=1) == []
    assert "resumed from" in (tmp_path / "logs" / "run.log").read_text()
    assert "--resume" not in job.line


def test_mean_and_spread_over_seeds() -> None:
    assert mean_and_spread([61.0, 62.0, 63.0]) == "62.0 ± 1.0"
    assert mean_and_spread([61.0]) == "61.0"


def test_compute_to_reach_an_accuracy() -> None:
    curve = {25: [40.0, 42.0], 50: [50.0, 50.0], 75: [49.0, 49.0], 100: [60.0, 60.0]}
    assert compute_to_reach(curve, 41.0) == 25
    assert compute_to_reach(curve, 45.5) == pytest.approx(37.5)
    assert compute_to_reach(curve, 54.5) == pytest.approx(87.5)
    assert compute_to_reach(curve, 61.0) is None


def test_claims_are_paired_by_seed() -> None:
    accuracies = {
        row.format(encoder=encoder, percent=percent): [10.0, 20.0, 30.0]
        for row in ROWS
        for encoder in ("simclr", "small")
        for percent in (1, 10)
    }
    accuracies["simclr-1-layer1"] = [12.0, 22.0, 32.0]
    del accuracies["simclr-1-distilled16"]
    sentences = claims(accuracies)
    assert (
        "Difference in points, fine-tuned from the head's first layer minus from the encoder, wide: 2.0 ± 0.0 at 1 %, "
        "0.0 ± 0.0 at 10 %." in sentences
    )
    assert (
        "Difference in points, distilled from itself for 16 epochs minus fine-tuned, wide: 0.0 ± 0.0 at 10 %."
        in sentences
    )
    assert len(sentences) == 8
