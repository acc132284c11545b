"""What is installed beside our own code: hashes, licences, advisories, and the oldest versions that work.

    python -m tools.dependencies hashes               # tools/hashes.txt: SHA-256 of every pinned distribution
    python -m tools.dependencies licences             # docs/licences.md: licences of what each package installs
    python -m tools.dependencies audit                # known vulnerabilities of the pinned versions
    python -m tools.dependencies oldest ENV           # tests with the oldest versions that the packages say they take

`hashes` and `licences` describe the environment of `tools/run`, whose versions tools/constraints.txt has.
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

#: Tools of this script, each in a throwaway environment of its own.
AUDIT, RESOLVER = "pip-audit==2.10.1", "uv==0.13.9"
#: Versions with a known vulnerability that does not concern us, and why.
ACCEPTED: dict[str, str] = {}

#: A core set of tests that the oldest versions must pass: every package reads, trains, predicts and exports.
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
#: What these tests need beside the packages.
TEST_TOOLS = ("pytest", "pytest-timeout", "hypothesis", "beartype")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("hashes", "licences"):
        verbs.add_parser(verb).add_argument("--check", action="store_true", help="compare only; 1 if it would change")
    verbs.add_parser("audit")
    oldest_parser = verbs.add_parser("oldest")
    oldest_parser.add_argument("env", type=Path, help="new folder of the environment")
    oldest_parser.add_argument("--tests", nargs="+", default=list(OLDEST_TESTS), help="arguments for pytest")
    arguments = parser.parse_args(argv)
    if arguments.verb == "audit":
        problems = advisories()
        print("\n".join(problems) or "no known vulnerability in the pinned versions")
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
    """For what the hashes are: wheels differ by Python, system and processor."""
    return f"Python {sys.version_info.major}.{sys.version_info.minor}, {sys.platform}, {platform.machine()}"


def hashes_fit() -> bool:
    """Whether tools/hashes.txt is for this kind of system."""
    return f"# For {system()};" in HASHES.read_text(encoding="utf-8")


def hashes() -> str:
    """The pinned versions, each with the SHA-256 of the distribution that pip takes here; nothing is installed."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--no-deps"]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        subprocess.run([*command, "--report", str(report), "--requirement", str(CONSTRAINTS)], check=True)
        found = json.loads(report.read_text(encoding="utf-8"))["install"]
    lines = [
        f"{each['metadata']['name']}=={each['metadata']['version']} --hash=sha256:{_sha256(each)}" for each in found
    ]
    head = [
        f"# For {system()}; written by `python -m tools.dependencies hashes` from tools/constraints.txt.",
        "# tools/run installs these files and no others where it runs on such a system.",
    ]
    return "\n".join([*head, *sorted(lines, key=str.lower), ""])


def _sha256(installed: dict[str, Any]) -> str:
    return str(installed["download_info"]["archive_info"]["hashes"]["sha256"])


def requirements(project: dict[str, Any], extras: Iterable[str] = ()) -> list[Requirement]:
    """What a project requires, with some of its extras."""
    optional = project.get("optional-dependencies", {})
    lines = [*project["dependencies"], *(line for extra in extras for line in optional.get(extra, ()))]
    return [Requirement(line) for line in lines]


def closure(wanted: Iterable[Requirement]) -> set[str]:
    """Distributions that requirements install here, with all that these require, as canonical names."""
    members = {
        canonicalize_name(project["name"]): project
        for project in (tomllib.loads(file.read_text(encoding="utf-8"))["project"] for file in PROJECTS)
    }
    found: set[str] = set()
    seen: set[tuple[str, str]] = set()
    left = [(requirement, "") for requirement in wanted]
    while left:
        requirement, extra = left.pop()
        name = canonicalize_name(requirement.name)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        for own in (*requirement.extras, ""):
            if (name, own) in seen:
                continue
            seen.add((name, own))
            if name in members:
                more = requirements(members[name], [own] if own else [])
            else:
                try:
                    more = [Requirement(line) for line in importlib.metadata.distribution(name).requires or ()]
                except importlib.metadata.PackageNotFoundError:
                    continue
                found.add(name)
            left += [(each, own) for each in more]
    return found


def licences() -> str:
    """The page of licences: for every package all that it installs, and what only extras bring."""
    parts = [
        "# Licences of what is installed",
        "",
        "Our own code is under the Apache License 2.0. Each package also installs the distributions below, under the "
        "licences that they state themselves. Written by `python -m tools.dependencies licences` on Linux, in the "
        "versions of `tools/constraints.txt`; the CUDA libraries come with PyTorch there.",
        "",
        "Wheels hold libraries with licences of their own. Those of PyAV (ssl-video) hold FFmpeg built with x264 and "
        "x265, which are under the GPL 2 or later: whoever passes on an environment or an image with it passes on GPL "
        "code. A PyAV built against an FFmpeg without them (`pip install av --no-binary av`) does not; reading videos "
        "needs neither.",
    ]
    for file in PROJECTS:
        project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
        base = closure(requirements(project))
        extras = closure(requirements(project, project.get("optional-dependencies", {}))) - base
        parts += [
            "",
            f"## {project['name']}",
            "",
            "| distribution | version | licence | with |",
            "| --- | --- | --- | --- |",
        ]
        rows = [(name, "") for name in base] + [(name, "an extra") for name in extras]
        parts += [f"| {name} | {_version(name)} | {licence(name)} | {extra} |" for name, extra in sorted(rows)]
    return "\n".join([*parts, ""])


def _version(name: str) -> str:
    return importlib.metadata.version(name)


def licence(name: str) -> str:
    """The licence that a distribution states: its expression, else its classifiers, else the first line of its text."""
    metadata: Any = importlib.metadata.metadata(name)
    if expression := metadata.get("License-Expression"):
        return str(expression)
    stated = [
        line.rpartition(" :: ")[2] for line in metadata.get_all("Classifier") or () if line.startswith("License ::")
    ]
    if stated := [each for each in stated if each not in ("OSI Approved", "Other/Proprietary License")]:
        return ", ".join(stated)
    lines = [line.strip() for line in (metadata.get("License") or "").splitlines() if line.strip()]
    return lines[0][:80].replace("|", "/") if lines else "not stated"


def advisories() -> list[str]:
    """Known vulnerabilities of the pinned versions, one a line; what could not be found out is a line, too."""
    unknown = "advisories could not be looked up ({}); expected a network and a package index. Try again"
    with tempfile.TemporaryDirectory() as folder:
        try:
            python = tool(AUDIT, Path(folder))
        except subprocess.CalledProcessError as error:
            return [unknown.format(_last_line(error.stderr) or f"{AUDIT} cannot be installed")]
        command = [str(python), "-m", "pip_audit", "--requirement", str(HASHES), "--no-deps", "--disable-pip"]
        command += ["--format", "json", "--progress-spinner", "off", "--timeout", "30"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    try:
        audited = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        return [unknown.format(_last_line(done.stderr) or f"exit status {done.returncode}")]
    return of_audit(audited)


def of_audit(audited: Sequence[dict[str, Any]]) -> list[str]:
    """What to say about the entries of pip-audit's report, a line for each problem that is not accepted."""
    skipped = [each for each in audited if "skip_reason" in each]
    found = []
    if skipped:
        names = ", ".join(each["name"] for each in skipped[:3]) + (", ..." if len(skipped) > 3 else "")
        found.append(f"advisories of {len(skipped)} distributions could not be looked up ({names}); the index has none")
    for each in audited:
        for known in each.get("vulns", ()):
            if known["id"] not in ACCEPTED:
                mended = ", ".join(known["fix_versions"]) or "no version yet"
                found.append(f"{each['name']} {each['version']}: {known['id']}, mended in {mended}")
    return found


def tool(requirement: str, folder: Path) -> Path:
    """Install a tool into a new environment; the environment's Python.

    Raises:
        subprocess.CalledProcessError: It cannot be installed.
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
    """Install the oldest versions that the packages say they take into a new environment, and run tests there."""
    pinned = env.with_name(f"{env.name}.txt")
    members = [word for file in PROJECTS for word in ("--no-emit-package", file.parent.name)]
    python = env / ("Scripts" if os.name == "nt" else "bin") / "python"
    with tempfile.TemporaryDirectory() as folder:
        uv = [str(tool(RESOLVER, Path(folder))), "-m", "uv"]
        resolve = [*uv, "pip", "compile", "--quiet", "--resolution", "lowest-direct", "--all-extras", *members]
        subprocess.run([*resolve, *map(str, PROJECTS), "--output-file", str(pinned)], check=True)
        subprocess.run([*uv, "venv", "--quiet", "--python", sys.executable, str(env)], check=True)
        install = [*uv, "pip", "install", "--quiet", "--python", str(python), "--requirement", str(pinned)]
        subprocess.run([*install, *TEST_TOOLS], check=True)
    sources = os.pathsep.join(str(file.parent / "src") for file in PROJECTS)
    command = [str(python), "-m", "pytest", "-p", "no:cacheprovider", *tests]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": sources}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
