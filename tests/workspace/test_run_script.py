"""`tools/run` and `.ci/run`: scripts, messages, and when the environment is rebuilt; nothing is installed here."""

from __future__ import annotations

import ast
import os
import re
import subprocess
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

import pytest

from tools import isolation
from tools.results import ROOT

PYPROJECT = """
[tool.hatch.envs.default]
dependencies = ["pytest"]
[tool.hatch.envs.default.scripts]
test = "pytest"
lint = "ruff check"
[tool.ruff]
line-length = 120
"""


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """tools/run as a module, for a workspace in a temporary folder."""
    loader = SourceFileLoader("tools_run", str(ROOT / "tools" / "run"))
    module = module_from_spec(spec_from_loader("tools_run", loader))
    loader.exec_module(module)
    (tmp_path / "pyproject.toml").write_text(PYPROJECT)
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "constraints.txt").write_text("pytest==9.0\n")
    (tmp_path / "packages" / "one").mkdir(parents=True)
    (tmp_path / "packages" / "one" / "pyproject.toml").write_text('[project]\nname = "one"\n[tool.x]\ny = 1\n')
    for name, path in {
        "ROOT": tmp_path,
        "HOME": tmp_path / ".hatch",
        "STAMP": tmp_path / ".hatch" / "stamp",
        "CONSTRAINTS": tmp_path / "tools" / "constraints.txt",
    }.items():
        monkeypatch.setattr(module, name, path)
    return module


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("pyproject.toml", '"pytest"]', '"pytest", "ruff"]'),
        ("tools/constraints.txt", "9.0", "9.1"),
        ("packages/one/pyproject.toml", 'name = "one"', 'name = "one"\ndependencies = ["torch"]'),
    ],
)
def test_rebuilds_for_other_contents(script: ModuleType, file: str, old: str, new: str) -> None:
    before = script.wish()
    edit(script.ROOT / file, old, new)
    assert script.wish() != before


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("pyproject.toml", "line-length = 120", "line-length = 100"),
        ("pyproject.toml", 'test = "pytest"', 'test = "pytest -x"'),
        ("packages/one/pyproject.toml", "y = 1", "y = 2"),
    ],
)
def test_does_not_rebuild_for_settings(script: ModuleType, file: str, old: str, new: str) -> None:
    before = script.wish()
    edit(script.ROOT / file, old, new)
    assert script.wish() == before


def test_builds_once(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    built, ran = [], []

    def build() -> None:
        built.append(1)
        script.HOME.mkdir()
        script.STAMP.write_text(script.wish())

    def run(command: list[object], **_: object) -> subprocess.CompletedProcess[str]:
        ran.append([*map(str, command)])
        return subprocess.CompletedProcess([], 3)

    monkeypatch.setattr(script, "build", build)
    monkeypatch.setattr(script.subprocess, "run", run)
    assert [script.main(["test", "-k", "a b"]), script.main(["lint"])] == [3, 3]
    assert built == [1]
    assert [command[1:] for command in ran] == [
        ["-m", "hatch", "run", "test", "-k", "a b"],
        ["-m", "hatch", "run", "lint"],
    ]


def test_says_what_to_do_when_building_fails(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*command: str) -> None:
        raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(script, "run", fail)
    assert script.main(["test"]) == 1
    said = capsys.readouterr().err
    assert "-m venv" in said
    assert "missing network or package index" in said
    assert "python3-venv" in said
    assert not script.STAMP.exists()


def test_unknown_script(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main(["tset"]) == 2
    assert capsys.readouterr().err == "unknown script 'tset'; usage: tools/run test|lint [arguments]\n"
    assert script.main([]) == 2
    assert script.main(["--help"]) == 0


def test_old_python_is_told(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ast.parse((ROOT / "tools" / "run").read_text(), feature_version=(3, 8))
    monkeypatch.setattr(script.sys, "version_info", (3, 10))
    assert script.main(["test"]) == 1
    assert "expected 3.11 or newer" in capsys.readouterr().err


def test_is_executable() -> None:
    assert os.access(ROOT / "tools" / "run", os.X_OK)
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_ci_runs_every_gate_and_the_tests_last() -> None:
    calls = re.findall(r"^stage \S+ tools/run (\S+)", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert {"lint", "demo", "docs", "isolation", "test"} <= set(calls)
    assert calls.index("lint") <= 1
    assert calls[-1] == "test"


def test_no_install_has_the_libraries_of_another() -> None:
    assert {"torchvision", "lightning-fabric", "safetensors", "jsonargparse"} <= isolation.absent("contrastive-core")
    assert {"torchvision", "monai", "av"} <= isolation.absent("contrastive-core[train]")
    assert {"monai", "nibabel", "pytorchvideo", "av", "wandb"} <= isolation.absent("ssl-vision")
    assert {"torchvision", "scikit-learn", "pytorchvideo", "av"} <= isolation.absent("ssl-medseg")
    assert {"monai", "nibabel", "scikit-learn", "opencv-python", "torchaudio"} <= isolation.absent("ssl-video")
    for name, install in isolation.INSTALLS.items():
        assert not install.libraries & isolation.absent(name)
