"""Command lines made of functions."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from contrastive_core.cli import Verb, run
from contrastive_core.errors import UserError
from contrastive_core.train import Interrupted, RunOptions
from contrastive_core.train import config as run_config


@dataclass(frozen=True)
class Rate:
    """The learning rate.

    Args:
        peak: Its largest value.
        warmup: Steps to get there.
    """

    peak: float = 0.1
    warmup: int | None = None


@dataclass(frozen=True)
class Optimizer:
    """The optimiser.

    Attributes:
        name: Which one.
        rate: Its learning rate.
        betas: Two numbers.
        fused: In one kernel.
    """

    name: Literal["sgd", "lars"] = "sgd"
    rate: Rate = Rate()
    betas: tuple[float, float] = (0.9, 0.999)
    fused: bool = False

    def __post_init__(self) -> None:
        if self.rate.peak < 0:
            raise UserError(f"optimizer.rate.peak is {self.rate.peak}; expected at least 0")


@dataclass(frozen=True)
class Net:
    """The network."""

    name: str = "resnet18"
    widths: list[int] = field(default_factory=lambda: [1, 2])


def fit(
    data: str,
    out: Path,
    *,
    steps: int = 10,
    lr: float = 1e-6,
    splits: list[str] | None = None,
    table: dict[str, int] | None = None,
    teacher: Path | None = None,
    shuffle: bool = True,
    optimizer: Optimizer = Optimizer(),
    net: Net = Net(),
    run: RunOptions = RunOptions(),  # noqa: B008
) -> dict[str, Any]:
    """Fit a network.

    It takes a while.

    Args:
        data: What to learn from.
        out: Where to write.
        steps: How long.
    """
    return dict(locals())


VERBS = {"fit": Verb("toy_verbs:fit", "fit a network"), "check": Verb("toy_verbs:check", "look at the data")}
DEFAULTS = fit("d", Path("o"))


@pytest.fixture(autouse=True)
def module(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module = types.ModuleType("toy_verbs")
    monkeypatch.setitem(sys.modules, "toy_verbs", module)
    return module


@pytest.fixture
def call(module: types.ModuleType, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """`fit` with these words: the arguments that differ from d, o and the defaults."""

    def call(*words: str) -> dict[str, Any]:
        got: dict[str, Any] = {}
        module.fit = fit_noting(got)  # type: ignore[attr-defined]
        status = run("toy", VERBS, ["fit", *words], version="1")
        assert status == 0, capsys.readouterr().err
        return {name: value for name, value in got.items() if value != DEFAULTS[name]}

    return call


def fit_noting(got: dict[str, Any]) -> Callable[..., None]:
    import functools

    @functools.wraps(fit)
    def noting(*args: Any, **keywords: Any) -> None:
        got.update(fit(*args, **keywords))

    return noting


@pytest.fixture
def refused(module: types.ModuleType, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What is said about these words, all of which are wrong."""

    def refused(*words: str, configs: str | None = None) -> str:
        module.fit = fit  # type: ignore[attr-defined]
        assert run("toy", VERBS, ["fit", *words], version="1", configs=configs) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("toy fit: ")
        assert err.endswith("See `toy fit --help`.\n")
        return err.removeprefix("toy fit: ").removesuffix("\nSee `toy fit --help`.\n")

    return refused


# ---- what works


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["d", "o"], {}),
        (["--data", "d", "--out=o"], {}),
        (["d", "--out", "o"], {}),
        (["--out", "o", "d"], {}),
        (["--steps", "3", "d", "o"], {"steps": 3}),
        (["d", "o", "--steps=3", "--steps=4"], {"steps": 4}),
        (["d", "o", "--lr", "1e-3"], {"lr": 1e-3}),
        (["d", "o", "--lr", "-1"], {"lr": -1.0}),
        (["--steps", "3", "--", "d", "--odd"], {"steps": 3, "out": Path("--odd")}),
        (["d", "o", "--splits", "[a, b]"], {"splits": ["a", "b"]}),
        (["d", "o", "--splits+", "a", "--splits+=b"], {"splits": ["a", "b"]}),
        (["d", "o", "--table", '{"a": 1}'], {"table": {"a": 1}}),
        (["d", "o", "--table.a", "1", "--table.b=2"], {"table": {"a": 1, "b": 2}}),
        (["d", "o", "--table.a-b", "1"], {"table": {"a-b": 1}}),
        (["d", "-"], {"out": Path("-")}),
        (["d", "o", "--teacher", "x/y"], {"teacher": Path("x/y")}),
        (["d", "o", "--teacher", "null"], {}),
        (["d", "o", "--no-shuffle"], {"shuffle": False}),
        (["d", "o", "--shuffle", "false"], {"shuffle": False}),
        (["d", "--shuffle", "o"], {}),
        (["d", "o", "--optimizer.fused"], {"optimizer": Optimizer(fused=True)}),
        (["d", "o", "--fused"], {"optimizer": Optimizer(fused=True)}),
        (["d", "o", "--optimizer.name", "lars"], {"optimizer": Optimizer(name="lars")}),
        (["d", "o", "--peak", "3"], {"optimizer": Optimizer(rate=Rate(peak=3.0))}),
        (["d", "o", "--rate.warmup", "3"], {"optimizer": Optimizer(rate=Rate(warmup=3))}),
        (["d", "o", "--betas", "[0.1, 0.2]"], {"optimizer": Optimizer(betas=(0.1, 0.2))}),
        (["d", "o", "--widths", "[3]"], {"net": Net(widths=[3])}),
        (["d", "o", "--resume", "--seed", "4"], {"run": RunOptions(resume=True, seed=4)}),
        (["d", "o", "--run.resume", "true", "--log-every", "4"], {"run": RunOptions(resume=True, log_every=4)}),
        (["d", "o", "--no-run.progress"], {"run": RunOptions(progress=False)}),
    ],
)
def test_flags(call: Callable[..., dict[str, Any]], words: list[str], expected: dict[str, Any]) -> None:
    assert call(*words) == expected


def test_config_then_flags(call: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text(
        "data: d\nout: o\nsteps: 3\nlr: 1e-3\noptimizer:\n  name: lars\n  rate: {peak: 0.5}\ntable: {x: 1}\n"
    )
    second.write_text("steps: 4\n")
    lars = Optimizer(name="lars", rate=Rate(peak=0.5))
    assert call("--config", str(first)) == {"steps": 3, "lr": 1e-3, "optimizer": lars, "table": {"x": 1}}
    assert call("--steps", "5", "--warmup=2", f"--config={first}") == {
        "steps": 5,
        "lr": 1e-3,
        "optimizer": Optimizer(name="lars", rate=Rate(peak=0.5, warmup=2)),
        "table": {"x": 1},
    }
    assert call("--config", str(first), "--config", str(second))["steps"] == 4
    second.write_text("# nothing\n")
    assert call("--config", str(second), "d", "o") == {}


def test_print_config_is_a_config(
    call: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["d", "o", "--peak", "1e-7", "--splits", "[a]", "--resume"]
    expected = call(*words)
    capsys.readouterr()
    assert run("toy", VERBS, ["fit", *words, "--print_config"], version="1") == 0
    text = capsys.readouterr().out
    assert yaml.safe_load(text)["splits"] == ["a"]
    (tmp_path / "c.yaml").write_text(text)
    assert call("--config", str(tmp_path / "c.yaml")) == expected


def test_the_config_of_a_run_is_a_config(call: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    given = fit("d", Path("o"), lr=3e-9, optimizer=Optimizer(rate=Rate(peak=2e-5)), run=RunOptions(seed=3, resume=True))
    run_config.resolve(given, given["run"]).write(tmp_path / "config.yaml")
    assert call("--config", str(tmp_path / "config.yaml")) == {
        "lr": 3e-9,
        "optimizer": Optimizer(rate=Rate(peak=2e-5)),
        "run": RunOptions(seed=3),
    }


def test_ready_configs_by_name(
    call: Callable[..., dict[str, Any]], refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "ready_configs"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "small-net.yaml").write_text("steps: 77\n")
    (package / "bad.yaml").write_text("stesp: 77\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    got: dict[str, Any] = {}
    sys.modules["toy_verbs"].fit = fit_noting(got)  # type: ignore[attr-defined]
    words = ["fit", "d", "o", "--config", "small-net"]
    assert run("toy", VERBS, words, version="1", configs="ready_configs") == 0
    assert got["steps"] == 77
    said = refused("d", "o", "--config", "smal-net", configs="ready_configs")
    assert said == (
        "--config smal-net: no such file; expected a YAML file, or one of the ready ones: bad, small-net; "
        "did you mean small-net?"
    )
    assert "unknown key 'stesp'; did you mean steps?" in refused("--config", "bad", configs="ready_configs")


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
        (KeyboardInterrupt(), 130, "stopped"),
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


def test_a_bug_keeps_its_traceback(module: types.ModuleType) -> None:
    def check() -> None:
        raise ZeroDivisionError

    module.check = check  # type: ignore[attr-defined]
    with pytest.raises(ZeroDivisionError):
        run("toy", VERBS, ["check"], version="1")


# ---- what is refused


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "missing: data, out"),
        (["d"], "missing: out"),
        (["d", "o", "x"], "unexpected argument 'x'; expected 2 without a flag (data, out)"),
        (["--data", "d", "o", "x"], "unexpected argument 'x'; expected 1 without a flag (out)"),
        (["--data", "d", "--out", "o", "x"], "unexpected argument 'x'; expected flags only"),
        (["d", "o", "--stesp", "3"], "unknown flag --stesp; did you mean --steps?"),
        (["d", "o", "--stesp=3"], "unknown flag --stesp; did you mean --steps?"),
        (["d", "o", "--optimizer.nmae", "x"], "unknown flag --optimizer.nmae; did you mean --optimizer.name?"),
        (["d", "o", "--resmue"], "unknown flag --resmue; did you mean --resume?"),
        (["d", "o", "--cnofig", "x"], "unknown flag --cnofig; did you mean --config?"),
        (["d", "o", "--no-steps"], "unknown flag --no-steps; did you mean --steps?"),
        (["d", "o", "--qqqqqqqq"], "unknown flag --qqqqqqqq"),
        (["d", "o", "-s", "3"], "unknown flag -s"),
        (["d", "o", "--name", "x"], "--name is ambiguous; expected one of --optimizer.name, --net.name"),
        (["d", "o", "--steps"], "--steps expects a value"),
        (["d", "o", "--steps", "--lr", "3"], "--steps expects a value"),
        (["d", "o", "--steps", "many"], "--steps: expected a whole number, got many"),
        (["d", "o", "--lr", "fast"], "--lr: expected a number, got fast"),
        (["d", "o", "--optimizer.name", "adam"], "--optimizer.name: expected one of sgd, lars, got adam"),
        (["d", "o", "--shuffle=maybe"], "--shuffle: expected true or false, got maybe"),
        (["d", "o", "--warmup", "x"], "--optimizer.rate.warmup: expected a whole number or null, got x"),
        (["d", "o", "--splits", "3"], "--splits: expected a list (each text) or null, got 3"),
        (["d", "o", "--widths", "[a]"], "--net.widths: expected a list (each a whole number), got a"),
        (
            ["d", "o", "--betas", "[1, 2, 3]"],
            "--optimizer.betas: expected a list of 2 (a number, a number), got [1, 2, 3]",
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
        ("[1, 2]", "holds a list; expected lines `argument: value`"),
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


def test_missing_file(refused: Callable[..., str]) -> None:
    assert refused("d", "o", "--config", "nowhere") == "--config nowhere: no such file; expected a YAML file"
    assert refused("d", "o", "--config") == "--config expects a value"


def test_a_dataclass_that_refuses_its_values(module: types.ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    module.fit = fit  # type: ignore[attr-defined]
    assert run("toy", VERBS, ["fit", "d", "o", "--peak", "-1"], version="1") == 1
    assert capsys.readouterr().err == "toy fit: optimizer.rate.peak is -1.0; expected at least 0\n"
    assert run("toy", VERBS, ["fit", "d", "o", "--log_every", "0"], version="1") == 1
    assert "log_every is 0; expected a whole number of at least 1" in capsys.readouterr().err


# ---- the overview


def test_overview(capsys: pytest.CaptureFixture[str]) -> None:
    for words, status in ((["--help"], 0), (["-h"], 0), ([], 2)):
        assert run("toy", VERBS, words, version="1") == status
        text = "".join(capsys.readouterr())
        assert "  fit    fit a network\n  check  look at the data\n" in text
    assert run("toy", VERBS, ["--version"], version="1.2.3") == 0
    assert capsys.readouterr().out == "toy 1.2.3\n"
    assert run("toy", VERBS, ["chekc"], version="1") == 2
    said = capsys.readouterr().err
    assert said == "toy: unknown command 'chekc'; expected one of fit, check; did you mean check?\nSee `toy --help`.\n"


def test_help_of_a_verb(module: types.ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    module.fit = fit  # type: ignore[attr-defined]
    assert run("toy", VERBS, ["fit", "--help"], version="1") == 0
    text = " ".join(capsys.readouterr().out.split())
    for piece in (
        "usage: toy fit DATA OUT [options]",
        "Fit a network. It takes a while.",
        "What to learn from. (required, type: str)",
        "How long. (type: int, default: 10)",
        "The optimiser: ",
        "--optimizer.name {sgd,lars} Which one.",
        "Its largest value.",
        "Every random draw of the run is a function of this number.",
        "--resume, --no-resume",
    ):
        assert piece in text


LIGHT = """
import sys
from contrastive_core.cli import Verb, run
verbs = {"fit": Verb("toy_verbs:fit", "fit a network")}
for words in (["--help"], ["--version"], ["fti"], []):
    run("toy", verbs, words, version="1")
from contrastive_core.train import RunOptions
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
