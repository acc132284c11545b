"""Maintain the dependencies: hashes, licences, advisories, and tests with the oldest versions.

    python -m tools.dependencies hashes               # writes tools/hashes.txt: SHA-256 of every pinned distribution
    python -m tools.dependencies licences             # writes docs/licences.md: licences of all dependencies
    python -m tools.dependencies audit                # lists known vulnerabilities of the pinned versions
    python -m tools.dependencies oldest ENV           # runs tests with the oldest versions that the packages accept

`hashes` and `licences` describe the environment of `tools/run`, whose versions are in tools/constraints.txt.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tools.results import ROOT

CONSTRAINTS = ROOT / "tools" / "constraints.txt"
HASHES = ROOT / "tools" / "hashes.txt"
LICENCES = ROOT / "docs" / "licences.md"
PROJECTS = sorted(ROOT.glob("packages/*/pyproject.toml"))

#: Tools of this script, which are installed in temporary environments.
AUDIT, RESOLVER = "pip-audit==2.10.1", "uv==0.13.9"
#: Identifiers of known vulnerabilities that do not affect the packages, with the reason.
ACCEPTED: dict[str, str] = {}

#: Tests that the oldest versions must pass, in which every package reads, trains, predicts and exports.
OLDEST_TESTS = (
    "tests/core/optim",
    "tests/core/training/test_run.py",
    "tests/core/training/test_model_file.py",
    "tests/core/app/test_cli_flags.py",
    "tests/vision/models",
    "tests/vision/commands/test_predict.py",
    "tests/medseg/models",
    "tests/medseg/commands/test_predict_volumes.py",
    "tests/video/models",
    "tests/video/commands/test_video_predict_and_export.py",
)
#: Dependencies of these tests in addition to the packages.
TEST_TOOLS = ("pytest", "pytest-timeout", "hypothesis", "beartype")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("hashes", "licences"):
        verbs.add_parser(verb).add_argument(
            "--check", action="store_true", help="only compare; exit with status 1 if the file differs"
        )
    verbs.add_parser("audit")
    oldest_parser = verbs.add_parser("oldest")
    oldest_parser.add_argument("env", type=Path, help="folder of the new environment")
    oldest_parser.add_argument("--tests", nargs="+", default=list(OLDEST_TESTS), help="arguments for pytest")
    arguments = parser.parse_args(argv)
    if arguments.verb == "audit":
        problems = advisories()
        print("\n".join(problems) or "The pinned versions have no known vulnerabilities.")
        return int(bool(problems))
    if arguments.verb == "oldest":
        return oldest(arguments.env, arguments.tests)
    file, text = (HASHES, hashes()) if arguments.verb == "hashes" else (LICENCES, licences())
    if arguments.check:
        same = file.is_file() and file.read_text(encoding="utf-8") == text
        print(f"{file.relative_to(ROOT)} {'is up to date' if same else 'differs; write it again'}")
        return int(not same)
    file.write_text(text, encoding="utf-8")
    return 0


def system() -> str:
    """Name the kind of system to which hashes apply, because wheels differ by Python, system and processor."""
    return f"Python {sys.version_info.major}.{sys.version_info.minor}, {sys.platform}, {platform.machine()}"


def hashes_fit() -> bool:
    """Return whether tools/hashes.txt applies to this kind of system."""
    return f"# For {system()};" in HASHES.read_text(encoding="utf-8")


def hashes() -> str:
    """Return the pinned versions with the SHA-256 hash of the distribution that pip selects, without installing it."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--no-deps"]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        subprocess.run([*command, "--report", str(report), "--requirement", str(CONSTRAINTS)], check=True)
        distributions = json.loads(report.read_text(encoding="utf-8"))["install"]
    lines = [
        f"{each['metadata']['name']}=={each['metadata']['version']} --hash=sha256:{_sha256(each)}"
        for each in distributions
    ]
    head = [
        f"# For {system()}; written by `python -m tools.dependencies hashes` from tools/constraints.txt.",
        "# On such a system, tools/run installs only these files.",
    ]
    return "\n".join([*head, *sorted(lines, key=str.lower), ""])


def _sha256(distribution: dict[str, Any]) -> str:
    return str(distribution["download_info"]["archive_info"]["hashes"]["sha256"])


def requirements(project: dict[str, Any], extras: Iterable[str] = ()) -> list[Requirement]:
    """Return the requirements of a project with some of its extras."""
    optional = project.get("optional-dependencies", {})
    lines = [*project["dependencies"], *(line for extra in extras for line in optional.get(extra, ()))]
    return [Requirement(line) for line in lines]


def closure(roots: Iterable[Requirement]) -> set[str]:
    """Return the canonical names of all distributions that requirements install, directly or indirectly."""
    members = {
        canonicalize_name(project["name"]): project
        for project in (tomllib.loads(file.read_text(encoding="utf-8"))["project"] for file in PROJECTS)
    }
    names: set[str] = set()
    seen: set[tuple[str, str]] = set()
    stack = [(requirement, "") for requirement in roots]
    while stack:
        requirement, extra = stack.pop()
        name = canonicalize_name(requirement.name)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        for feature in (*requirement.extras, ""):
            if (name, feature) in seen:
                continue
            seen.add((name, feature))
            if name in members:
                more = requirements(members[name], [feature] if feature else [])
            else:
                try:
                    more = [Requirement(line) for line in importlib.metadata.distribution(name).requires or ()]
                except importlib.metadata.PackageNotFoundError:
                    continue
                names.add(name)
            stack += [(each, feature) for each in more]
    return names


def licences() -> str:
    """Return the page of licences, with all dependencies of every package and whether only an extra installs them."""
    parts = [
        "# Licences of the dependencies",
        "",
        "The code of the packages is under the Apache License 2.0. Each package also installs the distributions below, "
        "under the licences that they state. `python -m tools.dependencies licences` has written this page on Linux, "
        "with the versions of `tools/constraints.txt`; there, PyTorch also installs the CUDA libraries.",
        "",
        "Wheels can contain libraries with other licences. The wheels of PyAV (ssl-video) contain FFmpeg built with "
        "x264 and x265, which are under the GPL 2 or later: if you distribute an environment or an image that contains "
        "them, you distribute GPL code. This does not apply to a PyAV built against an FFmpeg without these libraries "
        "(`pip install av --no-binary av`), which are not needed for reading videos.",
    ]
    for file in PROJECTS:
        project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
        base = closure(requirements(project))
        extras = closure(requirements(project, project.get("optional-dependencies", {}))) - base
        parts += [
            "",
            f"## {project['name']}",
            "",
            "| distribution | version | licence | installed by |",
            "| --- | --- | --- | --- |",
        ]
        rows = [(name, "") for name in base] + [(name, "an extra") for name in extras]
        parts += [f"| {name} | {_version(name)} | {licence(name)} | {extra} |" for name, extra in sorted(rows)]
    return "\n".join([*parts, ""])


def _version(name: str) -> str:
    return importlib.metadata.version(name)


def licence(name: str) -> str:
    """Return the licence that a distribution states as an expression, in its classifiers or as text, in this order."""
    metadata: Any = importlib.metadata.metadata(name)
    if expression := metadata.get("License-Expression"):
        return str(expression)
    classifiers = [
        line.rpartition(" :: ")[2] for line in metadata.get_all("Classifier") or () if line.startswith("License ::")
    ]
    if classifiers := [each for each in classifiers if each not in ("OSI Approved", "Other/Proprietary License")]:
        return ", ".join(classifiers)
    lines = [line.strip() for line in (metadata.get("License") or "").splitlines() if line.strip()]
    return lines[0][:80].replace("|", "/") if lines else "not stated"


def advisories() -> list[str]:
    """List known vulnerabilities of the pinned versions and failures to look them up, one per line."""
    unknown = "advisories could not be looked up ({}); expected a network and a package index. Try again"
    with tempfile.TemporaryDirectory() as folder:
        try:
            python = tool(AUDIT, Path(folder))
        except subprocess.CalledProcessError as error:
            return [unknown.format(_last_line(error.stderr) or f"{AUDIT} cannot be installed")]
        command = [str(python), "-m", "pip_audit", "--requirement", str(HASHES), "--no-deps", "--disable-pip"]
        command += ["--format", "json", "--progress-spinner", "off", "--timeout", "30"]
        process = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    try:
        entries = json.loads(process.stdout)["dependencies"]
    except (ValueError, KeyError):
        return [unknown.format(_last_line(process.stderr) or f"exit status {process.returncode}")]
    return of_audit(entries)


def of_audit(entries: Sequence[dict[str, Any]]) -> list[str]:
    """Describe the entries of pip-audit's report, with a line for each problem that is not accepted."""
    unknown = [each for each in entries if "skip_reason" in each]
    problems = []
    if unknown:
        names = ", ".join(each["name"] for each in unknown[:3]) + (", ..." if len(unknown) > 3 else "")
        problems.append(f"the index has no advisories for {len(unknown)} distributions ({names})")
    for each in entries:
        for advisory in each.get("vulns", ()):
            if advisory["id"] not in ACCEPTED:
                fix_versions = ", ".join(advisory["fix_versions"]) or "no version yet"
                problems.append(f"{each['name']} {each['version']}: {advisory['id']}, fixed in {fix_versions}")
    return problems


def tool(requirement: str, folder: Path) -> Path:
    """Install a tool into a new environment and return the Python of the environment.

    Raises:
        subprocess.CalledProcessError: The tool cannot be installed.
    """
    subprocess.run([sys.executable, "-m", "venv", str(folder / "env")], check=True, capture_output=True, text=True)
    python = folder / "env" / ("Scripts" if os.name == "nt" else "bin") / "python"
    command = [str(python), "-m", "pip", "install", "--quiet", "--retries", "1", requirement]
    subprocess.run(command, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return python


def _last_line(text: str | None) -> str:
    lines = [line.strip() for line in (text or "").splitlines() if line.strip()]
    return lines[-1][:200] if lines else ""


def oldest(env: Path, tests: Sequence[str]) -> int:
    """Install the oldest versions that the packages accept into a new environment and run tests with them."""
    pins = env.with_name(f"{env.name}.txt")
    members = [argument for file in PROJECTS for argument in ("--no-emit-package", file.parent.name)]
    python = env / ("Scripts" if os.name == "nt" else "bin") / "python"
    with tempfile.TemporaryDirectory() as folder:
        uv = [str(tool(RESOLVER, Path(folder))), "-m", "uv"]
        resolve = [*uv, "pip", "compile", "--quiet", "--resolution", "lowest-direct", "--all-extras", *members]
        subprocess.run([*resolve, *map(str, PROJECTS), "--output-file", str(pins)], check=True)
        subprocess.run([*uv, "venv", "--quiet", "--python", sys.executable, str(env)], check=True)
        install = [*uv, "pip", "install", "--quiet", "--python", str(python), "--requirement", str(pins)]
        subprocess.run([*install, *TEST_TOOLS], check=True)
    sources = os.pathsep.join(str(file.parent / "src") for file in PROJECTS)
    command = [str(python), "-m", "pytest", "-p", "no:cacheprovider", *tests]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": sources}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
