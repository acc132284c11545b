"""Versions, changelogs, ranges and pins agree, and a release that does not is refused."""

from __future__ import annotations

import hashlib
import importlib
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tools import dependencies, release
from tools.results import ROOT


def pins() -> dict[str, str]:
    lines = (ROOT / "tools" / "constraints.txt").read_text().split()
    return {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}


def declared() -> Iterator[Requirement]:
    """Return all requirements of the packages, their extras in the development environment, and the tools."""
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
    """A workspace with two packages, ready for the release of core-v1.2.0."""
    for name, version, needed in (("core", "1.2.0", []), ("vision", "0.3.0", ["core>=1.1,<1.3"])):
        folder = tmp_path / "packages" / name
        (folder / "src" / name).mkdir(parents=True)
        (folder / "src" / name / "__init__.py").write_text(f'__version__ = "{version}"\n')
        (folder / "CHANGELOG.md").write_text(f"# Changelog\n\n## {version} - 2026-01-31\n\n- News.\n")
        (folder / "pyproject.toml").write_text(
            '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
            f'[project]\nname = "{name}"\ndynamic = ["version"]\ndependencies = {needed}\n'
            f'[tool.hatch.version]\npath = "src/{name}/__init__.py"\n'
        )
    monkeypatch.setattr(release.dependencies, "advisories", list)
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
        ("core-v1.2.0", "core/CHANGELOG.md", "2026-01-31", "unreleased", "replace 'unreleased' by the release date"),
        ("core-v1.2.0", "vision/pyproject.toml", "<1.3", "<1.2", "vision requires core<1.2,>=1.1"),
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


def test_release_is_refused_for_known_vulnerabilities(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dependencies, "advisories", lambda: ["pillow 9.0.0: PYSEC-2022-42979, fixed in 9.3.0"])
    line = ["core-v1.2.0", "--out", str(repository / "dist")]
    assert release.main(line) == 1
    assert "core-v1.2.0: pillow 9.0.0: PYSEC-2022-42979, fixed in 9.3.0" in capsys.readouterr().err
    assert not (repository / "dist").exists()


def test_advisories_that_cannot_be_looked_up_are_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dependencies, "AUDIT", "no-such-tool @ file:///nowhere.whl")
    (problem,) = dependencies.advisories()
    assert problem.startswith("advisories could not be looked up (")
    assert "expected a network" in problem


def test_what_an_audit_says(monkeypatch: pytest.MonkeyPatch) -> None:
    audited = [
        {"name": "numpy", "version": "2.0", "vulns": []},
        {"name": "pillow", "version": "9.0", "vulns": [{"id": "A", "fix_versions": ["9.3"]}]},
        {"name": "idna", "version": "3.0", "vulns": [{"id": "B", "fix_versions": []}, {"id": "C", "fix_versions": []}]},
        {"name": "local", "skip_reason": "not on the index"},
    ]
    monkeypatch.setattr(dependencies, "ACCEPTED", {"C": "its code is not called"})
    assert dependencies.of_audit(audited) == [
        "the index has no advisories for 1 distributions (local)",
        "pillow 9.0: A, fixed in 9.3",
        "idna 3.0: B, fixed in no version yet",
    ]


def test_every_pinned_version_has_a_hash() -> None:
    lines = dependencies.HASHES.read_text().splitlines()
    found = {}
    for line in lines:
        if not line.startswith("#"):
            match = re.fullmatch(r"(\S+)==(\S+) --hash=sha256:[0-9a-f]{64}", line)
            assert match, line
            found[canonicalize_name(match[1])] = match[2]
    assert found == pins()


def test_a_file_with_another_hash_is_not_installed(tmp_path: Path) -> None:
    """pip, called as tools/run calls it, refuses it."""
    wheel = build_wheel(tmp_path)
    listed = tmp_path / "listed.txt"
    line = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-index", "--find-links", str(tmp_path)]
    line += ["--no-deps", "--require-hashes", "--requirement", str(listed)]
    for digest in (hashlib.sha256(wheel.read_bytes()).hexdigest(), "0" * 64):
        listed.write_text(f"tiny==1.0 --hash=sha256:{digest}\n")
        done = subprocess.run(line, capture_output=True, text=True, check=False, env=without_pins())
        assert (done.returncode == 0) == (digest != "0" * 64), done.stderr
        assert ("DO NOT MATCH THE HASHES" in done.stderr) == (digest == "0" * 64)


def build_wheel(folder: Path) -> Path:
    wheel = folder / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny.py", "")
        archive.writestr("tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        archive.writestr("tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("tiny-1.0.dist-info/RECORD", "")
    return wheel


def without_pins() -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    return {**own, "PIP_CONFIG_FILE": os.devnull}


def test_the_licences_are_those_of_what_is_installed() -> None:
    text = dependencies.LICENCES.read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:4]] for line in text.splitlines() if line.startswith("| ")]
    rows = [row for row in rows if row[0] not in ("distribution", "---")]
    found = {(name, version) for name, version, _ in rows}
    assert {(name, pins()[name]) for name, _ in found if name != "setuptools"} == {
        each
        for each in found
        if each[0] != "setuptools"  # which comes with the environment
    }
    assert {"torch", "numpy", "av", "monai", "scikit-learn", "pydicom"} <= {name for name, _ in found}
    assert all(licence for _, _, licence in rows)
    assert "GPL" in text
