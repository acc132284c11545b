"""`tools/bench/grad_cache.py` measures, and finds that a chunk takes less memory than the batch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tools import results

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_table_and_file(tmp_path: Path) -> None:
    out = tmp_path / "grad_cache.json"
    arguments = ["--batches", "96", "--chunks", "16", "--repeats", "1", "--out", str(out)]
    subprocess.run([sys.executable, "-m", "tools.bench.grad_cache", *arguments], cwd=ROOT, check=True)
    assert results.validate(out) == []
    whole, chunks = json.loads(out.read_text())["table"]["rows"]
    assert (whole[:2], chunks[:2]) == ([96, 96], [96, 16])
    assert 2 * chunks[2] < whole[2]
    assert whole[4] == 1.0
