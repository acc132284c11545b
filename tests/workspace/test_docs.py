"""The pages are true: examples run, commands and flags exist, links lead somewhere, every public name is shown."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import os
import pkgutil
import re
import shlex
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

from tools.release import PACKAGES
from tools.results import ROOT

FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MODULES = sorted(
    found.name
    for package in sorted(path.name for path in PACKAGES.glob("*/src/*") if (path / "__init__.py").is_file())
    for found in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}.")
    if not found.name.endswith("__main__")
)


def blocks(page: str, language: str) -> list[tuple[int, str]]:
    """Return the fenced blocks of a page in one language, with the line at which each begins."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [(text.count("\n", 0, found.start(2)), found[2]) for found in FENCE.finditer(text) if found[1] == language]


def program(page: str) -> str:
    """Join all Python blocks of a page to a program whose line numbers are the page's."""
    lines: list[str] = []
    for start, code in blocks(page, "python"):
        lines += [""] * (start - len(lines)) + code.splitlines()
    return "\n".join(lines)


def commands(page: str) -> list[list[str]]:
    """Return the command lines of a page's sh blocks, without comments."""
    joined = "".join(code for _, code in blocks(page, "sh")).replace("\\\n", " ")
    return [words for line in joined.splitlines() if (words := shlex.split(line, comments=True))]


def test_python_examples_run(page: str, tmp_path: Path) -> None:
    if not blocks(page, "python"):
        return
    script = tmp_path / Path(page).name.replace(".md", ".py")
    script.write_text(program(page))
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{page}, at the line of the same number:\n{done.stderr}"


def test_commands_are_understood(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["envs"]["default"]["scripts"]
    wrong = []
    for words in commands(page):
        line = " ".join(words)
        if words[0] == "tools/run" and words[1] not in scripts:
            wrong.append(f"{line}: no such script")
        if words[:2] == ["python", "-m"] and importlib.util.find_spec(words[2]) is None:
            wrong.append(f"{line}: no such module")
        if words[:2] == ["pip", "install"]:
            places = [word.partition("[")[0] for word in words[2:] if word.startswith("./")]
            wrong += [f"{line}: no {place}" for place in places if not (ROOT / place / "pyproject.toml").is_file()]
        if (package := words[0].replace("-", "_")) in MODULES_OF_COMMANDS:
            monkeypatch.chdir(tmp_path)
            wrong += understood(importlib.import_module(f"{package}.cli"), words)
    assert wrong == []


MODULES_OF_COMMANDS = [name.removesuffix(".cli") for name in MODULES if re.fullmatch(r"ssl_\w+\.cli", name)]


def understood(cli: ModuleType, words: list[str]) -> list[str]:
    """Parse a command line with its program, without running it."""
    ask = [] if {"--help", "--version"} & set(words) else ["--print_config"]
    return [] if cli.main([*words[1:], *ask]) == 0 else [f"{' '.join(words)}: not understood"]


def test_links_lead_somewhere(page: str) -> None:
    text = FENCE.sub("", (ROOT / page).read_text(encoding="utf-8"))
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text)]
    local = [target for target in targets if target and "://" not in target and not target.startswith("mailto:")]
    assert [target for target in local if not ((ROOT / page).parent / target).exists()] == []


def test_readme_shows_every_public_name(package: str) -> None:
    text = (PACKAGES / package / "README.md").read_text(encoding="utf-8")
    names = importlib.import_module(package.replace("-", "_")).__all__
    assert [name for name in names if not re.search(rf"\b{name}\b", text)] == []


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_line_numbers_are_the_page_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        textwrap.dedent("""\
        # Title
        ```python
        x = 1
        ```
        ```sh
        tools/run test  # comment
        ```
        ```python
        raise ValueError(x)  # line 9
        ```
        """)
    )
    relative = os.path.relpath(page, ROOT)
    assert program(relative).splitlines().index("raise ValueError(x)  # line 9") + 1 == 9
    assert commands(relative) == [["tools/run", "test"]]
    with pytest.raises(AssertionError, match="line 9"):
        test_python_examples_run(relative, tmp_path)
