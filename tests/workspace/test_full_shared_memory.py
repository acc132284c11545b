"""A shared memory too small for the batches of data loading processes, as in a container."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def test_training_ends_with_one_line_and_does_not_wait(tmp_path: Path) -> None:
    if subprocess.run(["unshare", "-m", "true"], check=False, capture_output=True).returncode:
        pytest.skip("a file system of its own is not allowed here")
    draw = np.random.default_rng(0)
    for name in ("a/0.png", "a/1.png", "b/0.png", "b/1.png"):
        file = tmp_path / "photos" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(file)
    training = [
        sys.executable, "-m", "ssl_vision", "pretrain", str(tmp_path / "photos"), str(tmp_path / "run"),
        "--epochs", "2", "--batch-size", "4", "--image-size", "128", "--encoder.width_multiplier", "0.125",
        "--workers", "1", "--load", "files", "--device", "cpu", "--no-progress",
    ]  # fmt: skip
    line = f"mount -t tmpfs -o size=64k none /dev/shm && exec {shlex.join(training)}"
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", line], check=False, capture_output=True, text=True, timeout=400, cwd=tmp_path
    )
    if "mount:" in done.stderr:
        pytest.skip("mounting is not allowed here")
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "shared memory was full (df -h /dev/shm" in done.stderr
    assert done.stderr.rstrip().endswith("--resume")
