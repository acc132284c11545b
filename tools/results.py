"""Write the tables of the pages from docs/results/*.json, or check that the pages match these files.

    python -m tools.results            # rewrites every table
    python -m tools.results --check    # changes nothing; exits with status 1 if a table or a file is wrong

The text between `<!-- results:NAME -->` and `<!-- /results -->` is generated from docs/results/NAME.json: a table with
its notes and origin; long notes are folded. `<!-- results:NAME {"rows": [["a", 1], ["b"]], "columns": ["method",
"Dice"]} -->` selects the rows that begin with these cells and the columns with these names, and omits the notes.

For `<!-- results:NAME {"gpu_stage": "STAGE"} -->` the file may be missing; the page then names the stage of
tools.gpu.run that measures it.

The table between `<!-- headline:NAME -->` and `<!-- /headline -->` is generated from docs/results/headline.json, which
contains "columns" and "rows" for NAME. A cell is text, or an object that refers to a cell of a results file:
`{"file": "acdc", "row": [2, "labels alone"], "column": "Dice"}`.

A results file contains

    name      NAME
    commit    git hash of the code that ran, 12 or 40 hexadecimal digits
    date      YYYY-MM-DD
    hardware  {"cpu": model, "cores": count, ...}
    versions  {"python": ..., "torch": ..., ...}
    seeds     [integers]
    config    {everything needed to repeat the run}
    table     {"columns": [names], "rows": [[name, numbers ...], ...]}
    notes     [sentences shown below the table]

Other keys are optional. `provenance` returns commit, date, hardware and versions.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = "docs/results"
"""Folder of the results files."""
PACKAGES = ("torch", "torchvision", "numpy", "lightning-fabric", "lightly", "pytorch-metric-learning")


def provenance() -> dict[str, object]:
    """Return commit, date, hardware and versions of this process."""
    return {
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "hardware": {"cpu": _cpu(), "cores": os.cpu_count(), "gpu": _gpu()},
        "versions": {"python": platform.python_version(), **_versions()},
    }


def write_result(path: Path, result: Mapping[str, object]) -> None:
    """Write a results file, from which the tables of the pages are generated."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2, default=str) + "\n")
    print(f"wrote {path}")


def _commit() -> str:
    commit_file = ROOT / "COMMIT"  # in a copy without history, as written by tools.gpu.pack
    if commit_file.is_file():
        return commit_file.read_text().strip()
    process = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    return process.stdout.strip()


def _cpu() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _gpu() -> str | None:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def _versions() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


MARKED = re.compile(r"(<!-- results:([\w-]+)(?: (\{.*?\}))? -->\n)(.*?)(<!-- /results -->)", re.DOTALL)
HEADLINE = re.compile(r"(<!-- headline:([\w-]+) -->\n)(.*?)(<!-- /headline -->)", re.DOTALL)
HEADLINES = "headline.json"
FOLD = 500
"""Number of characters of notes, without the first, that a page shows without folding them."""
KINDS: dict[str, type] = {
    "name": str,
    "commit": str,
    "date": str,
    "hardware": dict,
    "versions": dict,
    "seeds": list,
    "config": dict,
    "table": dict,
    "notes": list,
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="report what differs instead of writing")
    arguments = parser.parse_args(argv)
    problems = [problem for path in files() for problem in validate(path)]
    for page in pages():
        text = page.read_text(encoding="utf-8")
        try:
            new_text = filled(text, page)
        except (OSError, KeyError, TypeError, ValueError) as error:
            problems.append(f"{page.relative_to(ROOT)}: {type(error).__name__}: {error}")
            continue
        if new_text != text and arguments.check:
            problems.append(f"{page.relative_to(ROOT)}: a table differs from its file; run `tools/run results-table`")
        elif new_text != text:
            page.write_text(new_text, encoding="utf-8")
            print(f"wrote {page.relative_to(ROOT)}")
    print("\n".join(problems), end="\n" if problems else "", file=sys.stderr)
    return int(bool(problems))


def pages() -> list[Path]:
    """Return the Markdown files of the repository that git lists."""
    process = subprocess.run(["git", "ls-files", "-z", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [path for name in process.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def files() -> list[Path]:
    """Return the paths of the results files."""
    return [path for path in sorted((ROOT / RESULTS).glob("*.json")) if path.name != HEADLINES]


def filled(text: str, page: Path) -> str:
    """Return the text of a page with every marked table regenerated."""

    def fill(match: re.Match[str]) -> str:
        path = ROOT / RESULTS / f"{match[2]}.json"
        options = json.loads(match[3]) if match[3] else {}
        stage = options.pop("gpu_stage", None)
        if stage and not path.is_file():
            return (
                f"{match[1]}Not run on a GPU yet; `python -m tools.gpu.run --stages {stage}` measures it.\n{match[5]}"
            )
        result = read(path)
        selection = selected(result, **options) if options else result
        return f"{match[1]}{render(selection, link(path, page))}{match[5]}"

    def fill_headline(match: re.Match[str]) -> str:
        return f"{match[1]}{headline(match[2])}{match[4]}"

    return HEADLINE.sub(fill_headline, MARKED.sub(fill, text))


def read(path: Path) -> dict[str, Any]:
    """Read the contents of a results file."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def selected(
    result: Mapping[str, Any], *, rows: Sequence[Sequence[object]] | None = None, columns: Sequence[str] | None = None
) -> dict[str, Any]:
    """Return a result without notes whose table has only selected rows and columns, in the given order.

    Args:
        result: Contents of a results file.
        rows: First cells of the selected rows; all rows if None.
        columns: Names of the selected columns; all columns if None.
    """
    table = result["table"]
    selection = table["rows"] if rows is None else [row_of(result, cells) for cells in rows]
    places = range(len(table["columns"])) if columns is None else [table["columns"].index(name) for name in columns]
    names = [table["columns"][place] for place in places]
    new_table = {"columns": names, "rows": [[row[place] for place in places] for row in selection]}
    return {**result, "table": new_table, "notes": []}


def row_of(result: Mapping[str, Any], cells: Sequence[object]) -> list[Any]:
    """Return the only row that begins with these cells."""
    matches = [row for row in result["table"]["rows"] if row[: len(cells)] == list(cells)]
    if len(matches) != 1:
        raise ValueError(f"{len(matches)} rows of {result['name']} begin with {list(cells)}, expected one")
    row: list[Any] = matches[0]
    return row


def headline(name: str) -> str:
    """Return a table of headline numbers, each of which is a cell of a results file."""

    def text(cell: object) -> str:
        if not isinstance(cell, dict):
            return str(cell)
        result = read(ROOT / RESULTS / f"{cell['file']}.json")
        value = row_of(result, cell["row"])[result["table"]["columns"].index(cell["column"])]
        return str(cell.get("format", "{}")).format(value)

    table = read(ROOT / RESULTS / HEADLINES)[name]
    lines = [
        table["columns"],
        ["---"] * len(table["columns"]),
        *([text(cell) for cell in row] for row in table["rows"]),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def link(path: Path, page: Path) -> str:
    return Path(os.path.relpath(path, page.parent)).as_posix()


def render(result: Mapping[str, Any], source: str) -> str:
    """Return the table in Markdown with right-aligned numbers, followed by the notes and the origin.

    Args:
        result: Contents of a results file.
        source: Link from the page to the file.
    """
    columns, rows = result["table"]["columns"], result["table"]["rows"]
    cells = list(zip(*(aligned(column) for column in zip(*rows, strict=True)), strict=True))
    numeric = [all(isinstance(value, int | float | None) for value in column) for column in zip(*rows, strict=True)]
    lines = [columns, ["---:" if number else "---" for number in numeric], *cells]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    hardware, seeds = result["hardware"], ", ".join(map(str, result["seeds"]))
    device = ", ".join([f"{hardware['cpu']}, {hardware['cores']} cores", *filter(None, [hardware.get("gpu")])])
    origin = (
        f"[{Path(source).name}]({source}): commit {result['commit'][:12]}, {result['date']}, {device}, "
        f"torch {result['versions'].get('torch', '-')}, seed{'s' * (len(result['seeds']) > 1)} {seeds}."
    )
    return "\n\n".join([table, *folded(result["notes"]), origin]) + "\n"


def folded(notes: Sequence[str]) -> list[str]:
    """Return the notes as paragraphs; long ones, except for the first, in a part of the page that the reader opens."""
    first, remainder = notes[:1], notes[1:]
    if sum(map(len, remainder)) <= FOLD:
        return [*notes]
    return [*first, "<details>\n<summary>Conditions, runs and choice of settings</summary>", *remainder, "</details>"]


def aligned(column: Sequence[object]) -> list[str]:
    """Format the cells of a column as text with equally many decimals; None becomes a dash."""
    exponents = [Decimal(repr(value)).as_tuple().exponent for value in column if isinstance(value, float)]
    decimals = -min((exponent for exponent in exponents if isinstance(exponent, int)), default=0)
    return [
        f"{value:.{decimals}f}" if isinstance(value, float) else "-" if value is None else str(value)
        for value in column
    ]


def validate(path: Path) -> list[str]:
    """Return the problems of a results file, each of which names the file, or an empty list."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        return [f"{path.name}: not JSON: {error}"]
    if not isinstance(result, dict):
        return [f"{path.name}: expected an object, got {type(result).__name__}"]
    problems = [
        f"{key}: expected {kind.__name__}, got {type(result[key]).__name__ if key in result else 'nothing'}"
        for key, kind in KINDS.items()
        if not isinstance(result.get(key), kind)
    ]
    return [f"{path.name}: {problem}" for problem in problems or contents(result, path.stem)]


def contents(result: Mapping[str, Any], stem: str) -> list[str]:
    hardware, table = result["hardware"], result["table"]
    columns, rows = table.get("columns"), table.get("rows")
    rectangular = isinstance(columns, list) and isinstance(rows, list) and rows and columns
    checks = {
        f"name: expected {stem!r}, got {result['name']!r}": result["name"] == stem,
        f"commit: expected 12 or 40 hexadecimal digits, got {result['commit']!r}": re.fullmatch(
            r"[0-9a-f]{12}|[0-9a-f]{40}", result["commit"]
        ),
        f"date: expected YYYY-MM-DD, got {result['date']!r}": re.fullmatch(r"\d{4}-\d\d-\d\d", result["date"]),
        "hardware: expected a cpu and a positive number of cores": isinstance(hardware.get("cpu"), str)
        and hardware["cpu"]
        and isinstance(hardware.get("cores"), int)
        and hardware["cores"] > 0,
        f"seeds: expected integers, at least one, got {result['seeds']}": result["seeds"]
        and all(isinstance(seed, int) for seed in result["seeds"]),
        "versions: expected at least python and torch": {"python", "torch"} <= set(result["versions"]),
        "notes: expected sentences": all(isinstance(note, str) for note in result["notes"]),
        "table: expected columns and rows, none of them empty": rectangular,
        "table: expected as many cells in every row as there are columns": rectangular
        and all(isinstance(row, list) and len(row) == len(columns) for row in rows),
    }
    return [problem for problem, right in checks.items() if not right]


if __name__ == "__main__":
    sys.exit(main())
