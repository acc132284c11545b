"""The notebooks run from top to bottom and print sensible results."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tools.results import ROOT

NOTEBOOKS = sorted((ROOT / "docs").glob("*/notebook.ipynb"))


def printed(notebook: nbformat.NotebookNode) -> str:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output["text"] for output in outputs if output["output_type"] == "stream")


@pytest.mark.slow
@pytest.mark.timeout(1800)  # minutes where nothing else runs
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.parent.name)
def test_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=1500, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    scores = [float(score) for score in re.findall(r"(?:top-1|mean Dice) ([\d.]+)", printed(notebook))]
    chance = {"ssl-vision": 20.0, "ssl-medseg": 0.1}[path.parent.name]
    assert len(scores) >= 2
    assert min(scores) > chance


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.parent.name)
def test_notebook_is_stored_as_it_ran(path: Path) -> None:
    """With its outputs, in order, small, and without a trace of the machine."""
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not any(output["output_type"] == "error" for cell in cells for output in cell.outputs)
    assert path.stat().st_size < 400_000
    assert not re.search(r"/(?:tmp|root|home|work)/", printed(notebook))


def test_there_are_two() -> None:
    assert [path.parent.name for path in NOTEBOOKS] == ["ssl-medseg", "ssl-vision"]
