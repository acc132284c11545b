"""The fuzzer finds what it looks for, and the readers of text survive it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from contrastive_core.errors import UserError
from tools.fuzz import __main__ as fuzz
from tools.fuzz.formats import Format


def _refuse(_: Path) -> str:
    raise UserError("x")


@pytest.mark.parametrize(
    ("read", "has_checksum", "word"),
    [
        (lambda _: "good", True, "same"),
        (lambda _: "bad", False, "other content"),
        (lambda _: "bad", True, "silent difference"),
        (_refuse, True, "refused"),
        (lambda _: {}["x"], True, "traceback"),
        (lambda _: os.kill(os.getpid(), 9), True, "signal 9"),
        (lambda _: time.sleep(30), True, "over 10 s"),
    ],
)
def test_outcomes(
    read: Callable[[Path], Any], has_checksum: bool, word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fuzz, "_SECONDS", 1)
    kind = Format(lambda folder: folder, read, has_checksum)
    assert fuzz.outcome(kind, tmp_path, "good")[0] == word


@pytest.mark.parametrize("name", ["yaml", "model.json", "nrrd"])
def test_readers_survive(name: str) -> None:
    assert fuzz.main(["--only", name, "--cases", "12"]) == 0
