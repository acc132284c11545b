"""How the compiled library is built or missing: the build hook, `python -m contrastive_core build`, fallbacks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from contrastive_core.native import library
from contrastive_core.native.build import BuildError, build_cpu, find_torch, source_hash
from tools.results import ROOT

PACKAGE = ROOT / "packages" / "contrastive-core"
USE = """
import torch, contrastive_core
z = torch.randn(64, 8, requires_grad=True)
contrastive_core.nt_xent(z[:32], z[32:]).backward()
assert z.grad.isfinite().all()
print(contrastive_core.info())
"""


def run(*words: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **environment}
    return subprocess.run([sys.executable, *words], cwd=cwd, env=env, capture_output=True, text=True, check=False)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the package in which a build may leave files."""
    ignore = shutil.ignore_patterns("__pycache__", "_lib", ".*")
    return Path(shutil.copytree(PACKAGE, tmp_path / "package", ignore=ignore))


def wheel(checkout: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    words = ["-m", "hatchling", "build", "--target", "wheel", "--directory", "dist"]
    return run(*words, cwd=checkout, **environment)


@pytest.mark.parametrize(
    ("environment", "warning"),
    [
        ({"CONTRASTIVE_CORE_EXT": "0"}, ""),
        ({"CXX": "no-such-compiler"}, "no C++ compiler found (looked for CXX=no-such-compiler)"),
    ],
)
def test_wheel_is_pure_where_nothing_can_be_compiled(checkout: Path, environment: dict[str, str], warning: str) -> None:
    stale = checkout / "src/contrastive_core/native/_lib/old/cpu.so"
    stale.parent.mkdir(parents=True)
    stale.touch()
    done = wheel(checkout, **environment)
    assert done.returncode == 0, done.stderr
    assert warning in done.stdout + done.stderr
    (built,) = (checkout / "dist").iterdir()
    assert built.name.endswith("-py3-none-any.whl")
    names = zipfile.ZipFile(built).namelist()
    # The sources come along, for those who build it later.
    assert "contrastive_core/native/csrc/cpu.cpp" in names
    assert not [name for name in names if name.endswith(".so")]


def test_a_forced_build_fails_aloud(checkout: Path) -> None:
    done = wheel(checkout, CONTRASTIVE_CORE_EXT="cpu", CXX="no-such-compiler")
    assert done.returncode != 0
    assert "no C++ compiler found" in done.stderr
    done = wheel(checkout, CONTRASTIVE_CORE_EXT="yes")
    assert "CONTRASTIVE_CORE_EXT is 'yes', expected auto, 0" in done.stderr


@pytest.mark.slow
def test_wheel_with_the_library(checkout: Path, native: None) -> None:
    done = wheel(checkout, CONTRASTIVE_CORE_EXT="cpu")
    assert done.returncode == 0, done.stderr
    (built,) = (checkout / "dist").iterdir()
    assert built.name.endswith("-py3-none-linux_x86_64.whl")
    zipfile.ZipFile(built).extractall(checkout / "installed")
    done = run("-c", USE, cwd=checkout, PYTHONPATH=str(checkout / "installed"), CONTRASTIVE_CORE_CACHE=str(checkout))
    assert done.returncode == 0, done.stderr
    assert "backend   native" in done.stdout
    assert f"{checkout}/installed/contrastive_core/native/_lib/{source_hash()}/cpu.so" in done.stdout


def test_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BuildError, match="torch is not installed here; use pip install"):
        find_torch()


def test_with_an_old_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda name: "2.9.1+cpu")
    with pytest.raises(BuildError, match=r"found torch 2\.9\.1\+cpu, expected 2\.10 or newer"):
        find_torch()


def test_on_another_processor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(BuildError, match=r"not Linux on aarch64; the PyTorch backend is used"):
        build_cpu(tmp_path)


def test_build_command_without_a_compiler(tmp_path: Path) -> None:
    cache = str(tmp_path)
    done = run("-m", "contrastive_core", "build", CXX="no-such-compiler", CONTRASTIVE_CORE_CACHE=cache)
    assert done.returncode == 1
    assert done.stderr.startswith("python -m contrastive_core build: no C++ compiler found")
    assert list(tmp_path.iterdir()) == []


def test_a_failing_compiler_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken-c++"
    broken.write_text("#!/bin/sh\necho 'file.h:3: fatal error: all is lost' >&2\nexit 7\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    with pytest.raises(BuildError, match=r"ended with status 7:\n.*all is lost"):
        build_cpu(tmp_path)
    assert list(tmp_path.iterdir()) == [broken]


def test_what_the_build_command_made_is_used_and_a_broken_one_is_reported(native: None, tmp_path: Path) -> None:
    made = tmp_path / source_hash() / "cpu.so"
    made.parent.mkdir()
    shutil.copy(library.load().path, made)
    done = run("-c", USE, CONTRASTIVE_CORE_CACHE=str(tmp_path))
    assert "backend   native" in done.stdout, done.stderr
    assert str(made) in done.stdout
    made.write_bytes(b"no library")
    done = run("-c", USE, CONTRASTIVE_CORE_CACHE=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "backend   torch" in done.stdout
    assert f"native: {made} cannot be loaded" in done.stdout
    assert "run `python -m contrastive_core build` to build it again" in done.stdout
