"""Numbers in the pages are those of docs/results/*.json, each of which states its origin."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tools import results
from tools.results import provenance


def example() -> dict[str, Any]:
    return {
        "name": "speed",
        "commit": "0123456789abcdef0123456789abcdef01234567",
        "date": "2026-01-31",
        "hardware": {"cpu": "Some CPU", "cores": 2, "gpu": None},
        "versions": {"python": "3.11.7", "torch": "2.14.1"},
        "seeds": [0, 1],
        "config": {"epochs": 2},
        "table": {"columns": ["method", "accuracy %", "images/s"], "rows": [["a", 91.25, 100], ["b", 9.5, None]]},
        "notes": ["Mean of two seeds."],
        "free": {"anything": 1},
    }


TABLE = """| method | accuracy % | images/s |
| --- | ---: | ---: |
| a | 91.25 | 100 |
| b | 9.50 | - |

Mean of two seeds.

[speed.json](results/speed.json): commit 0123456789ab, 2026-01-31, Some CPU, 2 cores, torch 2.14.1, seeds 0, 1.
"""


def test_pages_show_what_the_files_say(capsys: pytest.CaptureFixture[str]) -> None:
    assert results.main(["--check"]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("path", results.files(), ids=lambda path: path.stem)
def test_results_file(path: Path) -> None:
    assert results.validate(path) == []


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "docs" / "results").mkdir(parents=True)
    (tmp_path / "docs" / "results" / "speed.json").write_text(json.dumps(example()))
    (tmp_path / "docs" / "page.md").write_text("before\n<!-- results:speed -->\nold\n<!-- /results -->\nafter\n")
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    subprocess.run(["git", "add", "."], cwd=tmp_path, check=True)
    author = ("-c", "user.name=Name", "-c", "user.email=name@example.org")
    subprocess.run(["git", *author, "commit", "-qm", "First"], cwd=tmp_path, check=True)
    monkeypatch.setattr(results, "ROOT", tmp_path)
    return tmp_path


def test_table_is_written_and_checked(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = repository / "docs" / "page.md"
    old = page.read_text()
    assert results.main(["--check"]) == 1
    assert "docs/page.md: a table differs" in capsys.readouterr().err
    assert page.read_text() == old
    assert results.main([]) == 0
    assert page.read_text() == f"before\n<!-- results:speed -->\n{TABLE}<!-- /results -->\nafter\n"
    assert results.main(["--check"]) == 0


def test_long_notes_are_folded(repository: Path) -> None:
    notes = ["Accuracy on the test images.", "First." + " word" * 100, "Last."]
    (repository / "docs" / "results" / "speed.json").write_text(json.dumps(example() | {"notes": notes}))
    assert results.main([]) == 0
    text = (repository / "docs" / "page.md").read_text()
    before, hidden, after = re.split(r"\n\n<details>\n<summary>.*</summary>\n\n|\n\n</details>\n\n", text)
    assert before.endswith(notes[0])
    assert hidden == f"{notes[1]}\n\n{notes[2]}"
    assert after.startswith("[speed.json]")


def test_part_of_a_table(repository: Path) -> None:
    page = repository / "docs" / "page.md"
    page.write_text(
        '<!-- results:speed {"rows": [["b"]], "columns": ["images/s", "method"]} -->\n<!-- /results -->\n'
        '<!-- results:speed {"columns": ["accuracy %"]} -->\n<!-- /results -->\n'
    )
    assert results.main([]) == 0
    text = page.read_text()
    assert "| images/s | method |\n| ---: | --- |\n| - | b |\n\n[speed.json]" in text
    assert "| accuracy % |\n| ---: |\n| 91.25 |\n| 9.50 |\n\n[speed.json]" in text
    assert "Mean of two seeds" not in text
    assert results.main(["--check"]) == 0


def test_headline(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cell = {"file": "speed", "row": ["a"], "column": "accuracy %", "format": "{} %"}
    table = {"columns": ["task", "ours"], "rows": [["seeing", cell]]}
    headlines = repository / "docs" / "results" / "headline.json"
    headlines.write_text(json.dumps({"all": table}))
    page = repository / "docs" / "page.md"
    page.write_text("<!-- headline:all -->\n<!-- /headline -->\n")
    assert results.main([]) == 0
    assert page.read_text() == (
        "<!-- headline:all -->\n| task | ours |\n| --- | --- |\n| seeing | 91.25 % |\n<!-- /headline -->\n"
    )
    headlines.write_text(json.dumps({"all": {**table, "rows": [["seeing", {**cell, "row": ["c"]}]]}}))
    assert results.main([]) == 1
    assert "0 rows of speed begin with ['c']" in capsys.readouterr().err


def test_missing_file_is_named(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (repository / "docs" / "results" / "speed.json").unlink()
    assert results.main([]) == 1
    assert "speed.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"name": "other"}, "name: expected 'speed', got 'other'"),
        ({"commit": "HEAD"}, "commit: expected 12 or 40"),
        ({"commit": "0123456789abc"}, "commit: expected 12 or 40"),
        ({"date": "31.1.2026"}, "date: expected YYYY-MM-DD"),
        ({"hardware": {"cpu": "x"}}, "hardware: expected a cpu and a positive number of cores"),
        ({"hardware": {"cpu": "", "cores": 2}}, "hardware: expected a cpu"),
        ({"seeds": 0}, "seeds: expected list, got int"),
        ({"seeds": []}, "seeds: expected integers, at least one"),
        ({"versions": {"python": "3.11"}}, "versions: expected at least python and torch"),
        ({"config": None}, "config: expected dict, got NoneType"),
        ({"notes": [1]}, "notes: expected sentences"),
        ({"table": {"columns": ["a"], "rows": []}}, "table: expected columns and rows"),
        ({"table": {"columns": ["a"], "rows": [[1, 2]]}}, "table: expected as many cells"),
    ],
)
def test_bad_results_file(repository: Path, change: dict[str, Any], problem: str) -> None:
    path = repository / "docs" / "results" / "speed.json"
    path.write_text(json.dumps({**example(), **change}))
    assert any(found.startswith(f"speed.json: {problem}") for found in results.validate(path))


def test_key_left_out(repository: Path) -> None:
    path = repository / "docs" / "results" / "speed.json"
    for key in results.KINDS:
        path.write_text(json.dumps({name: value for name, value in example().items() if name != key}))
        assert len(results.validate(path)) == 1
    path.write_text("{")
    assert "not JSON" in results.validate(path)[0]


def test_provenance_is_valid(repository: Path) -> None:
    path = repository / "docs" / "results" / "speed.json"
    path.write_text(json.dumps({**example(), **provenance()}))
    assert results.validate(path) == []


def test_a_table_that_needs_a_gpu_may_be_missing(repository: Path) -> None:
    page = repository / "docs" / "page.md"
    page.write_text('<!-- results:speed_gpu {"gpu_stage": "speed"} -->\n<!-- /results -->\n')
    assert results.main([]) == 0
    assert "Not run on a GPU yet; `python -m tools.gpu.run --stages speed` measures it." in page.read_text()
    found = example() | {"name": "speed_gpu"}
    (repository / "docs" / "results" / "speed_gpu.json").write_text(json.dumps(found))
    assert results.main([]) == 0
    assert "| a | 91.25 | 100 |" in page.read_text()
    assert "Not run" not in page.read_text()
