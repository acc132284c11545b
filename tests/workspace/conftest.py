"""What the tests of the workspace look at: its files and packages."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tools.results import ROOT


def listed(*patterns: str) -> list[Path]:
    """Return the files that git holds, or would hold if they were added."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *patterns]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return sorted(path for name in set(done.stdout.split("\0")) if name and (path := ROOT / name).is_file())


@pytest.fixture(scope="session")
def text_files() -> dict[Path, str]:
    """Return every text file of the repository, by path relative to its root."""
    texts = {}
    for path in listed():
        data = path.read_bytes()
        if b"\0" not in data:
            texts[path.relative_to(ROOT)] = data.decode()
    return texts


@pytest.fixture(scope="session")
def shipped(text_files: dict[Path, str]) -> dict[Path, str]:
    """Return the Python files of the packages."""
    return {
        path: text
        for path, text in text_files.items()
        if path.match("*.py") and path.parts[::2][:2] == ("packages", "src")
    }


@pytest.fixture(scope="session")
def places(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Path]]:
    """`places("ssl_vision")` gives data, models and runs of a package, made on first use; no test changes them."""
    made: dict[str, dict[str, Path]] = {}

    def place(domain: str) -> dict[str, Path]:
        if domain not in made:
            import torch

            from tests.workspace.test_outputs_of_commands import PLACES

            torch.manual_seed(0)
            made[domain] = PLACES[domain](tmp_path_factory.mktemp(domain))
        return made[domain]

    return place


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run tests with an argument `package` for every package, and with `page` for every Markdown file."""
    if "package" in metafunc.fixturenames:
        packages = [path.parent.name for path in listed("packages/*/pyproject.toml")]
        metafunc.parametrize("package", packages)
    if "page" in metafunc.fixturenames:
        pages = [path.relative_to(ROOT).as_posix() for path in listed("*.md")]
        metafunc.parametrize("page", pages)
