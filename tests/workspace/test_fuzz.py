"""The fuzzer finds what it looks for, and readers withstand it."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contrastive_core.errors import UserError
from tools.fuzz import __main__ as fuzz
from tools.fuzz.damage import Kind, damage
from tools.fuzz.format import Format
from tools.fuzz.server import Corpus


def _refuse(root: Path, words: str) -> str:
    raise UserError(words.format(root=root))


def _compute(_: Path) -> str:
    while True:
        time.process_time()


READERS: dict[str, Callable[[Path], Any]] = {
    "same": lambda _: "good",
    "other content": lambda _: "bad",
    "refused": lambda root: _refuse(root, "{root}/x: is damaged"),
    "error without the file": lambda root: _refuse(root, "it is damaged"),
    "traceback": lambda _: {}["x"],
    "crash (SIGKILL)": lambda _: os.kill(os.getpid(), 9),
    "crash (exit status 3)": lambda _: os._exit(3),
    "over 10 s": _compute,
    "over 2 GB": lambda _: str(np.ones(11 << 25).sum()),
}


def _example(root: Path, _: str) -> list[Path]:
    (root / "x").write_bytes(bytes(range(100)))
    return [root / "x"]


def _outcomes(read: Callable[[Path], Any], folder: Path, cases: range, **more: Any) -> dict[int, str]:
    """Return the outcomes of a reader that reads the valid example well."""
    folder.mkdir(exist_ok=True)

    def either(root: Path) -> str:
        is_valid = (root / "x").read_bytes() == bytes(range(100))
        return "good" if is_valid else str(read(root))

    return {
        n: outcome.verdict for n, outcome in Corpus(Format("x", _example, either, **more), folder).attempt(cases, 0)
    }


@pytest.mark.parametrize("word", list(READERS))
def test_outcomes(word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if word == "over 10 s":
        monkeypatch.setattr("tools.fuzz.server.isolate.__kwdefaults__", {"seconds": 1})
    assert _outcomes(READERS[word], tmp_path / "cases", range(1)) == {0: word}


def test_memory_of_the_parent_is_not_that_of_a_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tools.fuzz.server.MEMORY", 50 << 20)
    held = np.ones(100 << 20, dtype=np.uint8)  # more than a case may take
    assert _outcomes(READERS["same"], tmp_path / "a", range(2)) == {0: "same", 1: "same"}
    assert _outcomes(lambda _: str(held.repeat(2).sum()), tmp_path / "b", range(1)) == {0: "over 2 GB"}


def test_other_content_in_spite_of_a_checksum_is_a_failure(tmp_path: Path) -> None:
    assert _outcomes(READERS["other content"], tmp_path / "a", range(1), has_checksum=True) == {0: "silent difference"}


def test_a_crash_is_of_the_case_that_was_read_and_the_others_are_tried(tmp_path: Path) -> None:
    def read(root: Path) -> str:
        return "good" if root.name != "case2" else str(os.kill(os.getpid(), 11))

    expected = {number: "crash (SIGSEGV)" if number == 2 else "same" for number in range(5)}
    assert _outcomes(read, tmp_path / "cases", range(5)) == expected


@pytest.mark.parametrize("kind", ["bytes", "lines", "json", "yaml", "csv"])
def test_damage_is_a_function_of_the_seed(kind: Kind) -> None:
    content = b'{"a": [1, 2, {"b": "c"}], "d": null}'

    def made() -> list[bytes]:
        return [damage(content, kind, random.Random(seed), other=b"other content") for seed in range(300)]

    assert made() == made()
    assert len({*made()} - {content}) > 150


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    arguments = ["--package", "core", "--only", "YAML", "--log", str(log)]
    assert fuzz.main([*arguments, "--cases", "4"]) == 0
    before = log.read_text()
    assert fuzz.main([*arguments, "--cases", "6"]) == 0
    assert log.read_text().startswith(before)
    assert [line.count('"case"') for line in log.read_text().splitlines()] == [0, 1, 1, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("group", "name"), [("core", "model folder, signed"), ("medseg", "NRRD"), ("video", "stored flow")]
)
def test_readers_survive(group: str, name: str) -> None:
    assert fuzz.main(["--package", group, "--only", name, "--cases", "25"]) == 0
