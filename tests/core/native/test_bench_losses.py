"""`tools/bench/losses.py` measures times, compares values and leaves out what it cannot run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tools import results

ROOT = Path(__file__).parents[3]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tools.bench.losses", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_table_and_file(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    sizes = (
        "--sizes",
        "2048",
        "64",
        "--dims",
        "8",
        "--threads",
        "1",
        "--rounds",
        "1",
        "--seconds",
        "0.1",
        "--limit-gb",
        "1",
    )
    done = run(*sizes, "--methods", "nt_xent", "full_matrix", "gemm2", "pml_nt_xent", "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert "| N | D | threads | nt_xent | full_matrix | gemm2 | pml_nt_xent |" in done.stdout
    result = json.loads(out.read_text())
    assert results.validate(out) == []
    small, large = result["table"]["rows"]
    assert (small[:3], large[:3]) == ([64, 8, 1], [2048, 8, 1])
    assert re.fullmatch(r"[\d.e-]+ s \[\d+ MB\]", small[3])
    assert re.fullmatch(r"[\d.]+x \[[\d.]+x\]", small[4])
    cells = {(cell["method"], cell["rows"]): cell for cell in result["cells"]}
    assert len(cells) == 8
    for rows in (64, 2048):
        assert cells["full_matrix", rows]["agrees"] is True
        assert cells["gemm2", rows]["cpu_s"] > 0
    # One matrix of similarities is 16 MB.
    assert cells["full_matrix", 2048]["extra_mb"] > 16
    assert cells["nt_xent", 2048]["extra_mb"] < cells["full_matrix", 2048]["extra_mb"]
    assert cells["pml_nt_xent", 2048]["skipped"] in {
        "a smaller size was skipped",  # because the package is not installed
        "needs more than 1.0 GB",
    }


def test_odd_size_is_refused() -> None:
    done = run("--sizes", "63")
    assert done.returncode == 2
    assert "expected even numbers" in done.stderr
