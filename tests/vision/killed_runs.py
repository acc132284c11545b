"""Runs killed repeatedly through the real command, and the result they must have."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path


def outcome(run: Path) -> dict[str, str]:
    """Return a hash of what a run promises to repeat: metrics, models, and tensors and state of the last checkpoint."""
    last = max((run / "checkpoints").glob("step-*"))
    files = [run / "metrics.jsonl", run / "metrics.csv", *run.glob("model/*"), *run.glob("models/*/*"), *last.glob("*")]
    return {str(file.relative_to(run)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def kill_after(process: subprocess.Popen[bytes], run: Path, steps: int, how: signal.Signals) -> bool:
    """Send the signal at this many lines of metrics, one every third step; False if the run ended before."""
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


def run_killed(command: Callable[..., list[str]], run: Path, *, seed: int) -> None:
    """Start the run, kill it three times at random steps, and let it finish."""
    rng = random.Random(seed)
    kills = 0
    for attempt in range(4):
        resume = ["--resume", "true"] if attempt else []
        # Another number of workers each time, images from memory or from files: neither may matter.
        loading = ["--load", "files", "--workers", str(attempt % 3)] if attempt else []
        with (run.parent / "log").open("ab") as log:
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
