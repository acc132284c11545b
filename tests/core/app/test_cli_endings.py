"""What a command line prints and returns, its help and its overview."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
import types
from typing import Any, Literal

import pytest
import torch
from safetensors import SafetensorError

from contrastive_core.app.cli import Verb, run
from contrastive_core.errors import UserError
from contrastive_core.training import Interrupted, RunOptions
from tests.core.app.toy_program import VERBS, fit


def test_results(module: types.ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    def check(data: str = "x") -> Any:
        return {"none": None, "three": 3, "text": "found 3 images"}[data]

    module.check = check  # type: ignore[attr-defined]
    for data, status, out in (("none", 0, ""), ("three", 3, ""), ("text", 0, "found 3 images\n")):
        assert run("toy", VERBS, ["check", "--data", data], version="1") == status
        assert capsys.readouterr().out == out


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (UserError("x.png is empty; expected an image. Remove it"), 1, "x.png is empty; expected an image. Remove it"),
        (Interrupted("stopped after step 3", signum=15), 143, "stopped after step 3"),
        (Interrupted("stopped after step 3", signum=2), 130, "stopped after step 3"),
        (KeyboardInterrupt(), 130, "stopped by SIGINT"),
    ],
)
def test_endings(
    module: types.ModuleType, capsys: pytest.CaptureFixture[str], error: BaseException, status: int, said: str
) -> None:
    def check() -> None:
        raise error

    module.check = check  # type: ignore[attr-defined]
    assert run("toy", VERBS, ["check"], version="1") == status
    assert capsys.readouterr().err == f"toy check: {said}\n"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "o/x"), "o/x: No space left on device. The disk is full"),
        (PermissionError(errno.EACCES, "Permission denied", "o"), "o: Permission denied. Permission is missing"),
        (OSError(errno.EROFS, "Read-only file system", "o"), "file system is read-only"),
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), "disk is full"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), "a data loading process ended"),
        (RuntimeError("unable to write to file </torch_1_2>: No space left on device (28)"), "df -h /dev/shm"),
        (MemoryError(), "too little memory"),
        (torch.OutOfMemoryError("CUDA out of memory."), "too little memory (CUDA out of memory.)"),
    ],
)
def test_failures_of_the_machine_are_one_line_with_the_way_on(
    module: types.ModuleType, capsys: pytest.CaptureFixture[str], error: Exception, said: str
) -> None:
    def failing(data: str, run: RunOptions = RunOptions()) -> None:  # noqa: B008
        raise error

    module.check = module.fit = failing  # type: ignore[attr-defined]
    assert run("toy", VERBS, ["fit", "my data", "--seed", "3"], version="1") == 1
    err = capsys.readouterr().err
    assert said in err
    assert err.endswith(", then resume the run with\n  toy fit 'my data' --seed 3 --resume\n")
    assert run("toy", VERBS, ["fit", "d", "--resume"], version="1") == 1
    assert capsys.readouterr().err.endswith("\n  toy fit d --resume\n")


def test_a_bug_keeps_its_traceback(module: types.ModuleType) -> None:
    def check() -> None:
        raise ZeroDivisionError

    module.check = check  # type: ignore[attr-defined]
    with pytest.raises(ZeroDivisionError):
        run("toy", VERBS, ["check"], version="1")


def test_overview(capsys: pytest.CaptureFixture[str]) -> None:
    for words, status in ((["--help"], 0), (["-h"], 0), ([], 2)):
        assert run("toy", VERBS, words, version="1") == status
        text = "".join(capsys.readouterr())
        assert "  fit    fit a network\n  check  look at the data\n" in text
    assert run("toy", VERBS, ["--version"], version="1.2.3") == 0
    assert capsys.readouterr().out == "toy 1.2.3\n"
    assert run("toy", VERBS, ["chekc"], version="1") == 2
    said = capsys.readouterr().err
    assert said == "toy: unknown command 'chekc', expected one of fit, check; did you mean check?\nSee `toy --help`.\n"


def test_help_writes_values_and_defaults_as_they_are_typed(
    module: types.ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    def fit(
        *, effort: str = "auto", stem: Literal["small", "large"] | Literal["auto"] = "auto", steps: int | None = None
    ) -> None:
        """Fit.

        Args:
            effort: ``minutes`` or ``hour``. More follows.
            stem: First layer (He et al. 2016). More follows.
            steps: Length; by default set by the effort.
        """

    module.fit = fit  # type: ignore[attr-defined]
    assert run("toy", VERBS, ["fit", "--help"], version="1") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "--effort TEXT minutes or hour. [auto]" in text
    assert "--stem {small,large,auto} First layer (He et al. 2016). [auto]" in text
    assert "--steps N Length; by default set by the effort." in text
    assert "[none]" not in text


def test_help_of_a_verb(module: types.ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    module.fit = fit  # type: ignore[attr-defined]
    assert run("toy", VERBS, ["fit", "--help"], version="1") == 0
    text = " ".join(capsys.readouterr().out.split())
    for piece in (
        "usage: toy fit DATA OUT [options] Fit a network. arguments: DATA What to learn from. OUT Where to write.",
        "--steps N How long. [10]",
        "--splits TEXT,... [none]",
        "--[no-]shuffle [on]",
        "--help-all shows 20 more flags.",
    ):
        assert piece in text
    assert "--seed" not in text
    assert "It takes a while" not in text


def test_help_keeps_lists(module: types.ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    def fit() -> None:
        """Fit.

        There are two methods:

        - ``a``: the first method, whose description does not fit into a line of the terminal, so that it continues in
          the next one.
        - ``b``: the second one.

        The end.
        """

    module.fit = fit  # type: ignore[attr-defined]
    assert run("toy", VERBS, ["fit", "--help-all"], version="1") == 0
    lines = capsys.readouterr().out.splitlines()
    start = lines.index("There are two methods:")
    assert lines[start + 1] == ""
    assert lines[start + 2].startswith("- a: the first method, ")
    assert lines[start + 3].startswith("  ")
    assert lines[lines.index("- b: the second one.") + 1 :][:2] == ["", "The end."]


def test_help_shows_the_flags_that_the_verb_names(module: types.ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    module.fit = fit  # type: ignore[attr-defined]
    verbs = {"fit": Verb("toy_verbs:fit", "fit a network", common=("lr", "seed", "optimizer.rate.peak"))}
    assert run("toy", verbs, ["fit", "-h"], version="1") == 0
    flags = re.findall(r"^  (\S+)", capsys.readouterr().out, re.MULTILINE)
    assert flags == ["DATA", "OUT", "--lr", "--peak", "--seed"]


def test_help_of_everything(module: types.ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    module.fit = fit  # type: ignore[attr-defined]
    assert run("toy", VERBS, ["fit", "--help-all"], version="1") == 0
    text = " ".join(capsys.readouterr().out.split())
    for piece in (
        "Fit a network. It takes a while.",
        "optimizer: The optimiser --optimizer.name {sgd,lars} Which one. [sgd]",
        "--peak X Its largest value. [0.1]",
        "--betas X,X Two numbers. [0.9,0.999]",
        "--seed N Seed of all random draws. [0]",
        "--[no-]resume",
    ):
        assert piece in text
    assert "type:" not in text


LIGHT = """
import sys
from contrastive_core.app.cli import Verb, run
verbs = {"fit": Verb("toy_verbs:fit", "fit a network")}
for words in (["--help"], ["--version"], ["fti"], []):
    run("toy", verbs, words, version="1")
from contrastive_core.training import RunOptions
RunOptions()
heavy = {"torch", "numpy", "jsonargparse", "lightning_fabric", "yaml", "rich", "safetensors", "docstring_parser"}
print("heavy:", sorted(heavy & {*sys.modules}))
"""


def test_help_imports_nothing_heavy() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    found = subprocess.run(
        [sys.executable, "-c", LIGHT], capture_output=True, text=True, check=True, env=environment
    ).stdout.splitlines()
    assert found[-1] == "heavy: []"
