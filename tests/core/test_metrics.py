"""metrics.jsonl, metrics.csv and timing.jsonl."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contrastive_core.training.recorder import MetricsFile, TimingFile, read

NUMBERS = st.one_of(st.floats(allow_nan=False, width=64), st.integers(-(2**60), 2**60))
RECORDS = st.lists(st.dictionaries(st.sampled_from(["loss", "lr", 'odd, "name"', "µ"]), NUMBERS), max_size=12)


def bytes_of(folder: Path) -> tuple[bytes, bytes]:
    return (folder / "metrics.jsonl").read_bytes(), (folder / "metrics.csv").read_bytes()


@settings(max_examples=25, deadline=None)
@given(records=RECORDS, cut=st.integers(0, 12), lost=st.integers(0, 12))
def test_cut_and_go_on_gives_the_bytes_of_never_cut(
    tmp_path_factory: pytest.TempPathFactory, records: list[dict[str, float]], cut: int, lost: int
) -> None:
    folder = tmp_path_factory.mktemp("metrics")
    whole, again = folder / "whole", folder / "again"
    whole.mkdir()
    again.mkdir()
    records = [{"step": i, **record} for i, record in enumerate(records)]
    covered = 0
    first = MetricsFile(whole)
    for i, record in enumerate(records):
        if i == cut:
            covered = first.sync()
        first.append(record)
    if cut >= len(records):
        covered = first.sync()
    second = MetricsFile(again)
    for record in records[: cut + lost]:
        second.append(record)
    if (again / "metrics.jsonl").exists():
        with (again / "metrics.jsonl").open("ab") as file:
            file.write(b'{"step": 99, "lo')  # killed while writing
        with (again / "metrics.csv").open("ab") as file:
            file.write(b"99,")
    third = MetricsFile(again)
    assert third.cut(covered) == 0
    for record in records[cut:]:
        third.append(record)
    assert read(again / "metrics.jsonl") == records
    if records:
        assert bytes_of(again) == bytes_of(whole)
        with (whole / "metrics.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        for row, record in zip(rows, records, strict=True):
            assert {name: type(record[name])(value) for name, value in row.items() if value} == record


def test_numbers_that_json_does_not_know(tmp_path: Path) -> None:
    MetricsFile(tmp_path).append({"step": 0, "a": math.nan, "b": math.inf, "c": -math.inf})
    line = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(line, parse_constant=pytest.fail) == {"step": 0, "a": "NaN", "b": "Infinity", "c": "-Infinity"}
    (record,) = read(tmp_path / "metrics.jsonl")
    assert math.isnan(record["a"])
    assert record["b"] == math.inf
    assert (tmp_path / "metrics.csv").read_text() == "step,a,b,c\n0,NaN,Infinity,-Infinity\n"


def test_missing_bytes_are_counted(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path)
    assert metrics.cut(0) == 0
    assert metrics.cut(10) == 10
    metrics.append({"step": 0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"st')
    assert metrics.cut(1000) == 1000 - len(b'{"step": 0}\n')
    metrics.append({"step": 1})
    assert [record["step"] for record in read(tmp_path / "metrics.jsonl")] == [0, 1]


def test_timing_drops_a_line_that_was_cut_short(tmp_path: Path) -> None:
    timing = TimingFile(tmp_path)
    timing.begin({"session": 0})
    timing.append({"step": 0})
    with (tmp_path / "timing.jsonl").open("a") as file:
        file.write('{"step": 1, "sec')
    timing.begin({"session": 1})
    lines = (tmp_path / "timing.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"session": 0}, {"step": 0}, {"session": 1}]
