"""The same command on one process and on two."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

Records = list[dict[str, float]]


def alone_and_together(arguments: Sequence[str], folder: Path) -> tuple[Records, Records]:
    """Return the records of a command line without `--out`, on one process and by torchrun on two."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    found = []
    for name, start in (("one", [sys.executable]), ("two", torchrun)):
        command = [*start, "-m", "ssl_medseg", *arguments, "--out", str(folder / name)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, done.stderr
        lines = (folder / name / "metrics.jsonl").read_text().splitlines()
        found.append([json.loads(line) for line in lines])
    return found[0], found[1]
