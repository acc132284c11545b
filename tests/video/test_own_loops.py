"""The loops of docs/ssl-video/own-loop.md on two processes; on one they run, and are compared, with the page."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs/ssl-video/own-loop.md"
WATCH = """
import hashlib, json, os
seen, get = [], Steps.__getitem__
Steps.__getitem__ = lambda self, step: (seen.append(step), get(self, step))[1]
"""
TELL = """
# Not the buffers: each process has seen clips of its own, and batch norm is not synchronised here.
end = b"".join(value.detach().numpy().tobytes() for value in {method}.parameters())
rank = os.environ["RANK"]
open(f"rank{{rank}}.json", "w").write(json.dumps({{"seen": seen, "end": hashlib.sha256(end).hexdigest()}}))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("title", "method"), [("Fabric", "fabric_method"), ("Lightning", "learner.method")])
def test_two_processes_share_the_steps_and_stay_alike(title: str, method: str, tmp_path: Path) -> None:
    pytest.importorskip("lightning_fabric" if title == "Fabric" else "pytorch_lightning")
    parts = dict(re.findall(r"^## (.+?)\n.*?^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL))
    one = 'accelerator="cpu", devices=1'
    assert one in parts[title]
    loop = parts[title].replace(one, 'accelerator="cpu", devices=2, strategy="ddp"')
    data = parts["What every loop needs"]
    (tmp_path / "loop.py").write_text(data + WATCH + loop + TELL.format(method=method))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "loop.py"]
    subprocess.run([sys.executable, "-c", data], cwd=tmp_path, check=True)  # writes the videos
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    assert sorted(told[0]["seen"] + told[1]["seen"]) == [0, 1, 2, 3]
    assert told[0]["end"] == told[1]["end"]
