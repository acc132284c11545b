"""The demos of all packages, stopped in their training."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("domain", ["ssl_vision", "ssl_medseg", "ssl_video"])
def test_a_demo_that_was_stopped_names_the_command_that_goes_on(domain: str, tmp_path: Path) -> None:
    words = [sys.executable, "-m", domain, "demo", "--out", "a demo", "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        words, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as running:
        assert running.stdout is not None
        said = ""
        while "step 1/" not in said:
            line = running.stdout.readline()
            assert line, said
            said += line
        running.send_signal(signal.SIGTERM)
        said += running.stdout.read()
    program = domain.replace("_", "-")
    resume = next(line.strip() for line in said.splitlines() if line.startswith(f"  {program} "))
    assert shlex.split(resume)[:4] == [program, "demo", "--out", "a demo"]
