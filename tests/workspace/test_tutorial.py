"""The tutorial's commands, run as a reader runs them: one after the other, in an empty folder."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tools.results import ROOT

TUTORIAL = ROOT / "docs" / "ssl-vision" / "tutorial.md"
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    """What the page says to run, in its order; the environment is there already."""
    found = []
    for language, code in BLOCK.findall(TUTORIAL.read_text(encoding="utf-8")):
        if language == "python":
            found.append([sys.executable, "-c", code])
            continue
        for line in code.replace("\\\n", " ").splitlines():
            program, *words = shlex.split(line, comments=True)
            if program != "pip":
                assert program == "ssl-vision", line
                found.append([sys.executable, "-m", "ssl_vision", *words])
    return found


@pytest.mark.slow
@pytest.mark.timeout(1800)  # a few minutes where nothing else runs
def test_the_tutorial_runs(tmp_path: Path) -> None:
    # One thread: so small a network gains little from a second, and loses much where something else runs.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for words in commands():
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"
    rows = (tmp_path / "classes.csv").read_text().splitlines()
    assert len(rows) == 1 + len(list((tmp_path / "photos").iterdir()))
    # Pictures and labels have met: far better than one in ten.
    right = sum(shlex.split(row.replace(",", " "))[1] == digit(row) for row in rows[1:])
    assert right > 0.5 * len(rows)
    assert (tmp_path / "runs" / "student" / "report.html").stat().st_size > 10_000
    if importlib.util.find_spec("onnx") is not None:
        assert (tmp_path / "student.onnx").stat().st_size > 10_000


def digit(row: str) -> str:
    """The class that the image of a row is of, by its number in its name."""
    from ssl_vision.data import open_images

    images = open_images("digits")
    found = re.search(r"train-(\d+)\.png", row)
    assert found is not None
    label = images.label(int(found[1]))
    assert label is not None
    return images.classes[label]
