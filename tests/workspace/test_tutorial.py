"""The tutorial's commands, run one after the other in an empty folder, as a reader runs them."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from tests.page_commands import commands_of, run_all
from tools.results import ROOT

TUTORIAL = ROOT / "docs" / "ssl-vision" / "tutorial.md"


@pytest.mark.slow
@pytest.mark.timeout(1800)  # a few minutes where nothing else runs
def test_the_tutorial_runs(tmp_path: Path) -> None:
    run_all(commands_of(TUTORIAL.read_text(encoding="utf-8"), "ssl-vision"), tmp_path)
    rows = (tmp_path / "classes.csv").read_text().splitlines()
    assert len(rows) == 1 + len(list((tmp_path / "photos").iterdir()))
    # Pictures and labels have met: far better than one in ten.
    right = sum(shlex.split(row.replace(",", " "))[1] == digit(row) for row in rows[1:])
    assert right > 0.5 * len(rows)
    assert (tmp_path / "runs" / "student" / "report.html").stat().st_size > 10_000
    if importlib.util.find_spec("onnx") is not None:
        assert (tmp_path / "student.onnx").stat().st_size > 10_000


def digit(row: str) -> str:
    """Return the class of the image in a row, from the number in its name."""
    from ssl_vision.data import open_images

    images = open_images("digits")
    found = re.search(r"train-(\d+)\.png", row)
    assert found is not None
    label = images.label(int(found[1]))
    assert label is not None
    return images.classes[label]
