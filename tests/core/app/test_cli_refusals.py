"""Messages about wrong command lines."""

from __future__ import annotations

import types
from collections.abc import Callable
from pathlib import Path

import pytest

from contrastive_core.app.cli import run
from contrastive_core.training import RunOptions
from tests.core.app.toy_program import VERBS, fit


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "missing: DATA (what to learn from), OUT (where to write)"),
        (["d"], "missing: OUT (where to write)"),
        (["d", "o", "x"], "unexpected argument 'x', expected 2 without a flag (data, out)"),
        (["--data", "d", "o", "x"], "unexpected argument 'x', expected 1 without a flag (out)"),
        (["--data", "d", "--out", "o", "x"], "unexpected argument 'x', expected only flags"),
        (["d", ""], "OUT is empty, expected a path"),
        (["d", "--out= "], "OUT is empty, expected a path"),
        (["d", "o", "--stesp", "3"], "unknown flag --stesp; did you mean --steps?"),
        (["d", "o", "--stesp=3"], "unknown flag --stesp; did you mean --steps?"),
        (["d", "o", "--optimizer.nmae", "x"], "unknown flag --optimizer.nmae; did you mean --optimizer.name?"),
        (["d", "o", "--resmue"], "unknown flag --resmue; did you mean --resume?"),
        (["d", "o", "--cnofig", "x"], "unknown flag --cnofig; did you mean --config?"),
        (["d", "o", "--no-steps"], "unknown flag --no-steps; did you mean --steps?"),
        (["d", "o", "--qqqqqqqq"], "unknown flag --qqqqqqqq"),
        (["d", "o", "--stop"], "unknown flag --stop"),
        (["d", "o", "--log"], "unknown flag --log; did you mean --log-every?"),
        (["d", "o", "--num-workers", "3"], "unknown flag --num-workers; did you mean --workers?"),
        (["d", "o", "--learning-rate=3"], "unknown flag --learning-rate; did you mean --lr?"),
        (["d", "o", "-o", "x"], "unknown flag -o; did you mean --out?"),
        (["d", "o", "--epochs", "3"], "unknown flag --epochs; did you mean --steps?"),
        (
            ["d", "o", "--gpus", "2"],
            "unknown flag --gpus; did you mean --device? Start the command with `torchrun --nproc-per-node N "
            "--no-python` to use several GPUs.",
        ),
        (["d", "o", "-s", "3"], "unknown flag -s"),
        (["d", "o", "--name", "x"], "--name is ambiguous, expected one of --optimizer.name, --net.name"),
        (["d", "o", "--head.knid", "mlp"], "unknown flag --head.knid; did you mean --head.kind?"),
        (["d", "o", "--head.size", "3"], "unknown flag --head.size; did you mean --head.sizes?"),
        (["d", "o", "--head.kind", "cnn"], "--head.kind: expected one of linear, mlp, got cnn"),
        (["d", "o", "--head.sizes", "8,x"], "--head.sizes: expected a list (each a whole number), got x"),
        (["d", "o", "--steps"], "--steps expects a value"),
        (["d", "o", "--steps", "--lr", "3"], "--steps expects a value"),
        (["d", "o", "--steps", "many"], "--steps: expected a whole number, got many"),
        (["d", "o", "--lr", "fast"], "--lr: expected a number, got fast"),
        (["d", "o", "--optimizer.name", "adam"], "--optimizer.name: expected one of sgd, lars, got adam"),
        (["d", "o", "--shuffle=maybe"], "--shuffle: expected true or false, got maybe"),
        (["d", "o", "--warmup", "x"], "--warmup: expected a whole number or null, got x"),
        (
            ["d", "o", "--splits", "a,,b"],
            "--splits: 'a,,b' has an empty item, expected values separated by commas",
        ),
        (["d", "o", "--widths", "1,a"], "--widths: expected a list (each a whole number), got a"),
        (["d", "o", "--widths", "[a]"], "--widths: expected a list (each a whole number), got a"),
        (
            ["d", "o", "--betas", "[1, 2, 3]"],
            "--betas: expected a list of 2 (a number, a number), got [1, 2, 3]",
        ),
        (["d", "o", "--table", "3"], "--table: expected a mapping (each a whole number) or null, got 3"),
    ],
)
def test_wrong_words(refused: Callable[..., str], words: list[str], said: str) -> None:
    assert refused(*words) == said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("stesp: 3", "unknown key 'stesp'; did you mean steps?"),
        ("optimizer: {nmae: sgd}", "unknown key 'optimizer.nmae'; did you mean optimizer.name?"),
        ("optimizer:\n  rate:\n    pek: 3", "unknown key 'optimizer.rate.pek'; did you mean optimizer.rate.peak?"),
        ("resume: true", "unknown key 'resume'; did you mean run.resume?"),
        ("[1, 2]", "contains a list, expected lines `argument: value`"),
        ("a: [", "cannot be read"),
        ("steps: many", "steps: expected a whole number, got many"),
        ("optimizer: {name: adam}", "optimizer.name: expected one of sgd, lars, got adam"),
    ],
)
def test_wrong_files(refused: Callable[..., str], tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    found = refused("d", "o", "--config", str(tmp_path / "c.yaml"))
    assert said in found
    assert "\n\n" not in found


def test_a_required_flag(module: types.ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    def check(data: str, *, split_file: Path) -> None:
        """Look at the data.

        Args:
            data: Folder of images.
            split_file: Split file, as written by `toy split`. It lists the parts.
        """
        print(data, split_file)

    module.check = check  # type: ignore[attr-defined]
    assert run("toy", VERBS, ["check", "images"], version="1") == 2
    said = "toy check: missing: --split-file (split file, as written by toy split)\n"
    assert capsys.readouterr().err.startswith(said)
    assert run("toy", VERBS, ["check", "images", "s.json"], version="1") == 2
    said = "toy check: unexpected argument 's.json', expected 1 without a flag (data), and --split-file\n"
    assert capsys.readouterr().err.startswith(said)
    assert run("toy", VERBS, ["check", "--help"], version="1") == 0
    shown = capsys.readouterr().out
    assert shown.startswith("usage: toy check DATA --split-file PATH [options]\n")
    assert "\n  --split-file PATH       Split file, as written by toy split.\n" in shown
    assert run("toy", VERBS, ["check", "images", "--split-file", "s.json"], version="1") == 0
    assert capsys.readouterr().out == "images s.json\n"


def test_dashes_in_an_optional_dataclass(module: types.ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    def check(data: str, *, run: RunOptions | None = None, table: dict[str, int] | None = None) -> None:
        """Look at the data."""
        print(data, None if run is None else run.log_every, table)

    module.check = check  # type: ignore[attr-defined]
    words = ["check", "images", "--run.log-every", "5", "--table.a-b", "3"]
    assert run("toy", VERBS, words, version="1") == 0
    assert capsys.readouterr().out == "images 5 {'a-b': 3}\n"


def test_missing_file(refused: Callable[..., str]) -> None:
    assert refused("d", "o", "--config", "nowhere") == "--config nowhere: there is no such file, expected a YAML file"
    assert refused("d", "o", "--config") == "--config expects a value"


def test_a_dataclass_that_refuses_its_values(module: types.ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    module.fit = fit  # type: ignore[attr-defined]
    assert run("toy", VERBS, ["fit", "d", "o", "--peak", "-1"], version="1") == 1
    assert capsys.readouterr().err == "toy fit: optimizer.rate.peak is -1.0; expected at least 0\n"
    assert run("toy", VERBS, ["fit", "d", "o", "--log_every", "0"], version="1") == 1
    assert "log_every is 0; expected a whole number of at least 1" in capsys.readouterr().err
