"""The files of .github agree with the repository: packages, scripts, Python versions."""

from __future__ import annotations

import re
import shlex
import tomllib
from typing import Any

import pytest
import yaml

from tools.results import ROOT

WORKFLOWS = {path.name: yaml.safe_load(path.read_text()) for path in (ROOT / ".github/workflows").glob("*.yml")}
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["envs"]["default"]["scripts"]


def steps() -> list[dict[str, Any]]:
    return [step for workflow in WORKFLOWS.values() for job in workflow["jobs"].values() for step in job["steps"]]


def test_every_package_gets_a_wheel_and_an_issue_form() -> None:
    packages = sorted(path.parent.name for path in ROOT.glob("packages/*/pyproject.toml"))
    assert sorted(WORKFLOWS["ci.yml"]["jobs"]["wheels"]["strategy"]["matrix"]["package"]) == packages
    form = yaml.safe_load((ROOT / ".github/ISSUE_TEMPLATE/bug.yml").read_text())
    options = next(item for item in form["body"] if item.get("id") == "package")["attributes"]["options"]
    assert sorted(options) == packages


def test_scripts_of_the_workflows_exist() -> None:
    lines = [line for step in steps() for line in step.get("run", "").splitlines()]
    called = [shlex.split(line)[1] for line in lines if line.startswith("tools/run ")]
    assert {"lint", "docs", "isolation", "release"} == set(called) <= set(SCRIPTS)


def test_every_supported_python_is_tested_on_linux_and_macos() -> None:
    matrix = WORKFLOWS["ci.yml"]["jobs"]["test"]["strategy"]["matrix"]
    assert [system.partition("-")[0] for system in matrix["os"]] == ["ubuntu", "macos"]
    oldest = tomllib.loads((ROOT / "packages/contrastive-core/pyproject.toml").read_text())["project"][
        "requires-python"
    ]
    assert oldest == f">={matrix['python'][0]}"
    assert {entry["resolution"] for entry in matrix["include"]} == {"lowest-direct"}


def test_actions_are_pinned() -> None:
    """A tag can be moved to other code; a commit cannot."""
    used = [step["uses"] for step in steps() if "uses" in step]
    assert used
    assert [action for action in used if not re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40}", action)] == []


def test_the_tests_requirements_are_those_of_the_environment() -> None:
    """The workflow installs by hand what hatch installs here: no tool that the tests import may be missing."""
    run = next(step["run"] for step in steps() if "pytest-xdist" in step.get("run", ""))
    installed = {re.split(r"[<>=]", word)[0] for word in shlex.split(run.replace("\\\n", " "))}
    environment = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["envs"]["default"]
    wanted = {re.split(r"[\[<>=]", line)[0] for line in environment["dependencies"]}
    assert wanted - installed <= {"coverage", "mypy", "ruff", "types-PyYAML"}, "not needed by the tests"


@pytest.mark.parametrize("name", ["SECURITY.md", "CODE_OF_CONDUCT.md", "CONTRIBUTING.md", "PULL_REQUEST_TEMPLATE.md"])
def test_what_github_looks_for_is_there(name: str) -> None:
    assert (ROOT / ".github" / name).read_text().strip()


def test_the_citation_names_every_package() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["license"] == "Apache-2.0"
    missing = [path.name for path in ROOT.glob("packages/*") if path.name not in citation["abstract"]]
    assert missing == []
