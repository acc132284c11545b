"""Command lines built from functions: flags and files become arguments."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from contrastive_core.app.cli import run
from contrastive_core.training import RunOptions
from contrastive_core.training import config as run_config
from tests.core.app.toy_program import VERBS, Head, Net, Optimizer, Rate, fit, fit_noting


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
        (["d", "o", "--splits", "a,b"], {"splits": ["a", "b"]}),
        (["d", "o", "--splits", "a"], {"splits": ["a"]}),
        (["d", "o", "--splits", "001, 1e3,true"], {"splits": ["001", "1e3", "true"]}),
        (["d", "o", "--splits", "[001, null]"], {"splits": ["001", "null"]}),
        (["d", "o", "--splits", "['a,b', c]"], {"splits": ["a,b", "c"]}),
        (["d", "o", "--splits", "[]"], {"splits": []}),
        (["d", "o", "--splits", "null"], {}),
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
        (["d", "--tta", "o"], {"tta": True}),
        (["d", "o", "--tta", "false"], {"tta": False}),
        (["d", "o", "--no-tta"], {"tta": False}),
        (["d", "o", "--tta", "null"], {}),
        (["d", "o", "--optimizer.fused"], {"optimizer": Optimizer(fused=True)}),
        (["d", "o", "--fused"], {"optimizer": Optimizer(fused=True)}),
        (["d", "o", "--optimizer.name", "lars"], {"optimizer": Optimizer(name="lars")}),
        (["d", "o", "--peak", "3"], {"optimizer": Optimizer(rate=Rate(peak=3.0))}),
        (["d", "o", "--rate.warmup", "3"], {"optimizer": Optimizer(rate=Rate(warmup=3))}),
        (["d", "o", "--betas", "[0.1, 0.2]"], {"optimizer": Optimizer(betas=(0.1, 0.2))}),
        (["d", "o", "--betas", "0.1,1e-3"], {"optimizer": Optimizer(betas=(0.1, 1e-3))}),
        (["d", "o", "--widths", "[3]"], {"net": Net(widths=[3])}),
        (["d", "o", "--widths", "3"], {"net": Net(widths=[3])}),
        (["d", "o", "--widths", "3,4,"], {"net": Net(widths=[3, 4])}),
        (["d", "o", "--resume", "--seed", "4"], {"run": RunOptions(resume=True, seed=4)}),
        (["d", "o", "--run.resume", "true", "--log-every", "4"], {"run": RunOptions(resume=True, log_every=4)}),
        (["d", "o", "--no-run.progress"], {"run": RunOptions(progress=False)}),
        (["d", "o", "--head.kind", "mlp", "--head.sizes", "8,4"], {"head": Head(kind="mlp", sizes=(8, 4))}),
        (["d", "o", "--head.bias"], {"head": Head(bias=True)}),
        (["d", "o", "--no-head.bias"], {"head": Head()}),
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
        "--config smal-net: there is no such file, expected a YAML file or one of the included configurations: bad, "
        "small-net; did you mean small-net?"
    )
    assert "unknown key 'stesp'; did you mean steps?" in refused("--config", "bad", configs="ready_configs")
    (package / "bad.yaml").write_text("head:\n  size: [3]\n")
    assert "unknown key 'head.size'; did you mean head.sizes?" in refused("--config", "bad", configs="ready_configs")
