"""Check that the tag, the version and the changelog of a package agree, then build sdist and wheel.

    python -m tools.release contrastive-core-v0.1.0 --out dist

A release is a commit with the tag PACKAGE-vX.Y.Z in which packages/PACKAGE states `__version__ = "X.Y.Z"`, the top
entry of its changelog is `## X.Y.Z - YYYY-MM-DD`, and the version ranges of the other packages include X.Y.Z. The
pinned versions with which it was tested must have no known vulnerability; checking this needs a network.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

from packaging.requirements import Requirement

from tools import dependencies
from tools.results import ROOT

PACKAGES = ROOT / "packages"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tag", help="PACKAGE-vX.Y.Z")
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="folder for sdist and wheel")
    parser.add_argument("--without-audit", action="store_true", help="do not look up known vulnerabilities")
    arguments = parser.parse_args(argv)
    problems = disagreements(arguments.tag)
    if not problems and not arguments.without_audit:
        problems = dependencies.advisories()
    if problems:
        print("\n".join(f"{arguments.tag}: {problem}" for problem in problems), file=sys.stderr)
        return 1
    build(arguments.tag.rpartition("-v")[0], arguments.out, "sdist", "wheel")
    return 0


def disagreements(tag: str) -> list[str]:
    """Return all reasons why this tag cannot be released, or an empty list if it can."""
    package, _, version = tag.rpartition("-v")
    packages = sorted(path.parent.name for path in PACKAGES.glob("*/pyproject.toml"))
    if package not in packages or not re.fullmatch(r"\d+\.\d+\.\d+", version):
        return [f"expected PACKAGE-vX.Y.Z with PACKAGE one of {', '.join(packages)}"]
    entry, date = top_entry(package)
    problems = []
    if declared_version(package) != version:
        problems.append(f"__version__ is {declared_version(package)}; set it in {version_file(package)}")
    if entry != version:
        problems.append(f"the top entry of CHANGELOG.md is {entry}; write one for {version}")
    elif not re.fullmatch(r"\d{4}-\d\d-\d\d", date):
        problems.append(f"the top entry of CHANGELOG.md is {version} - {date}; replace {date!r} by the release date")
    pairs = [(sibling, requirement) for sibling in packages for requirement in requirements(sibling)]
    return problems + [
        f"{sibling} requires {requirement}, which excludes {version}; widen its range"
        for sibling, requirement in pairs
        if requirement.name == package and not requirement.specifier.contains(version)
    ]


def version_file(package: str) -> Path:
    return Path("packages", package, "src", package.replace("-", "_"), "__init__.py")


def declared_version(package: str) -> str:
    """Read `__version__` of a package without importing it."""
    match = re.search(r'^__version__ = "(.+)"$', (ROOT / version_file(package)).read_text(), re.MULTILINE)
    if not match:
        raise ValueError(f'{version_file(package)}: expected a line __version__ = "X.Y.Z"')
    return match[1]


def top_entry(package: str) -> tuple[str, str]:
    """Return version and date (or "unreleased") of the newest entry in the changelog of a package."""
    changelog = PACKAGES / package / "CHANGELOG.md"
    match = re.search(r"^## (\S+) - (\S+)$", changelog.read_text(), re.MULTILINE)
    if not match:
        raise ValueError(f"packages/{package}/CHANGELOG.md: expected an entry '## X.Y.Z - YYYY-MM-DD'")
    return match[1], match[2]


def requirements(package: str) -> list[Requirement]:
    """Return the requirements of a package, including those of its extras."""
    project = tomllib.loads((PACKAGES / package / "pyproject.toml").read_text())["project"]
    extras = project.get("optional-dependencies", {}).values()
    return [Requirement(line) for lines in (project["dependencies"], *extras) for line in lines]


def build(package: str, out: Path, *targets: str) -> list[Path]:
    """Build distributions ("wheel", "sdist") of a package into a folder and list them.

    Wheels are always pure: a wheel with a compiled library would support only this kind of machine, and users can build
    the library with one command.
    """
    flags = [argument for target in targets for argument in ("--target", target)]
    command = [sys.executable, "-m", "hatchling", "build", *flags, "--directory", str(out.resolve())]
    environment = {**os.environ, "CONTRASTIVE_CORE_EXT": "0"}
    subprocess.run(command, cwd=PACKAGES / package, env=environment, check=True)
    return sorted(out.glob(f"{package.replace('-', '_')}-{declared_version(package)}[.-]*"))


if __name__ == "__main__":
    sys.exit(main())
