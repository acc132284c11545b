"""Versions, changelogs, ranges and pins agree, and a release that does not is refused."""

from __future__ import annotations

import importlib
import re
import tarfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tools import release
from tools.results import ROOT


def pins() -> dict[str, str]:
    lines = (ROOT / "tools" / "constraints.txt").read_text().split()
    return {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}


def declared() -> Iterator[Requirement]:
    """Everything the packages, their extras in the development environment, and its tools ask for."""
    environment = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["envs"]["default"]
    yield from map(Requirement, environment["dependencies"])
    for member in environment["workspace"]["members"]:
        project = tomllib.loads((ROOT / member["path"] / "pyproject.toml").read_text())["project"]
        yield from map(Requirement, project["dependencies"])
        for extra in member.get("features", []):
            yield from map(Requirement, project["optional-dependencies"][extra])


def test_version_changelog_and_siblings_agree(package: str) -> None:
    version, date = release.top_entry(package)
    assert (
        importlib.import_module(package.replace("-", "_")).__version__ == release.declared_version(package) == version
    )
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    assert date == "unreleased" or re.fullmatch(r"\d{4}-\d\d-\d\d", date)
    for requirement in release.requirements(package):
        if (ROOT / "packages" / requirement.name).is_dir() and requirement.name != package:
            assert requirement.specifier.contains(release.declared_version(requirement.name)), requirement
            # An extra repeats the sibling without a range; the dependency itself has one, with an upper end.
            operators = {clause.operator for clause in requirement.specifier}
            assert not operators or {"<", "~="} & operators, requirement


def test_tested_versions_are_in_the_declared_ranges() -> None:
    pinned = pins()
    outside = []
    for requirement in declared():
        name = canonicalize_name(requirement.name)
        if not (ROOT / "packages" / name).is_dir() and not requirement.specifier.contains(pinned.get(name, "0")):
            outside.append(f"{requirement}, constraints.txt: {pinned.get(name, 'nothing')}")
    assert outside == []


def test_withdrawn_versions_are_excluded() -> None:
    for requirement in release.requirements("contrastive-core"):
        if requirement.name == "lightning-fabric":
            assert not requirement.specifier.contains("2.6.2")
            assert not requirement.specifier.contains("2.6.3")


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace of two packages, ready for the release of core-v1.2.0."""
    for name, version, dependencies in (("core", "1.2.0", []), ("vision", "0.3.0", ["core>=1.1,<1.3"])):
        folder = tmp_path / "packages" / name
        (folder / "src" / name).mkdir(parents=True)
        (folder / "src" / name / "__init__.py").write_text(f'__version__ = "{version}"\n')
        (folder / "CHANGELOG.md").write_text(f"# Changelog\n\n## {version} - 2026-01-31\n\n- News.\n")
        (folder / "pyproject.toml").write_text(
            '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
            f'[project]\nname = "{name}"\ndynamic = ["version"]\ndependencies = {dependencies}\n'
            f'[tool.hatch.version]\npath = "src/{name}/__init__.py"\n'
        )
    monkeypatch.setattr(release, "ROOT", tmp_path)
    monkeypatch.setattr(release, "PACKAGES", tmp_path / "packages")
    return tmp_path


def test_release_builds_sdist_and_wheel(repository: Path) -> None:
    assert release.main(["core-v1.2.0", "--out", str(repository / "dist")]) == 0
    wheel, sdist = sorted(path.name for path in (repository / "dist").iterdir())
    assert wheel.startswith("core-1.2.0-py")
    assert wheel.endswith("-none-any.whl")
    assert sdist == "core-1.2.0.tar.gz"
    with tarfile.open(repository / "dist" / "core-1.2.0.tar.gz") as archive:
        assert "core-1.2.0/CHANGELOG.md" in archive.getnames()


@pytest.mark.parametrize(
    ("tag", "file", "old", "new", "problem"),
    [
        ("core-1.2.0", "", "", "", "expected PACKAGE-vX.Y.Z"),
        ("stranger-v1.2.0", "", "", "", "expected PACKAGE-vX.Y.Z with PACKAGE one of core, vision"),
        ("core-v1.2", "", "", "", "expected PACKAGE-vX.Y.Z"),
        ("core-v1.2.1", "", "", "", "__version__ is 1.2.0"),
        ("core-v1.2.0", "core/CHANGELOG.md", "1.2.0", "1.1.9", "the top entry of CHANGELOG.md is 1.1.9"),
        ("core-v1.2.0", "core/CHANGELOG.md", "2026-01-31", "unreleased", "put the date there"),
        ("core-v1.2.0", "vision/pyproject.toml", "<1.3", "<1.2", "vision asks for core<1.2,>=1.1"),
    ],
)
def test_release_is_refused(
    repository: Path, capsys: pytest.CaptureFixture[str], tag: str, file: str, old: str, new: str, problem: str
) -> None:
    if file:
        path = repository / "packages" / file
        path.write_text(path.read_text().replace(old, new))
    assert release.main([tag, "--out", str(repository / "dist")]) == 1
    assert problem in capsys.readouterr().err
    assert not (repository / "dist").exists()
