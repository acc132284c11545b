"""Install every package alone, as a user would, and look at what came with it.

    python -m tools.isolation [package ...]

For each package a fresh environment gets the wheel of that package and of the core, and nothing else. The package must
import, its command line must answer, its version must be that of its source and changelog, and no library of a sibling
may be there.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import venv
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Expectation:
    """What an environment with one package holds and does not."""

    absent: tuple[str, ...]
    commands: tuple[tuple[str, ...], ...]
    imports: tuple[str, ...] = field(default=())


EXPECTED = {
    "contrastive-core": Expectation(
        absent=("torchvision", "lightning-fabric", "safetensors", "jsonargparse", "monai", "nibabel", "pytorchvideo", "av"),
        commands=(("python", "-m", "contrastive_core"),),
        imports=("contrastive_core.losses", "contrastive_core.heads", "contrastive_core.optim"),
    ),
    "ssl-vision": Expectation(
        absent=("monai", "nibabel", "pytorchvideo", "av", "pyarrow", "tensorboard"),
        commands=(("ssl-vision", "--help"), ("ssl-vision", "pretrain", "--help"), ("ssl-vision", "check", "digits")),
        imports=("ssl_vision.commands.pretrain", "ssl_vision.commands.report"),
    ),
}


def check(package: str, wheels: Path) -> list[str]:
    """Install one package from the wheels and list what is wrong."""
    expected = EXPECTED[package]
    problems = []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        venv.create(place, with_pip=True)
        binaries = place / "bin"
        found = [next(wheels.glob(f"{name.replace('-', '_')}-*.whl")) for name in {"contrastive-core", package}]
        _run([binaries / "python", "-m", "pip", "install", "--quiet", *found], place)
        listed = subprocess.run(
            [binaries / "python", "-m", "pip", "list", "--format=freeze"], capture_output=True, text=True, check=True
        )
        installed = dict(line.split("==", 1) for line in listed.stdout.splitlines() if "==" in line)
        names = {re.sub(r"[-_.]+", "-", name).lower() for name in installed}
        problems += [f"{package} brings {name}, which belongs to a sibling" for name in expected.absent if name in names]
        if installed.get(package) != (wanted := changelog_version(package)):
            problems.append(f"{package} installs version {installed.get(package)}, its changelog says {wanted}")
        for module in expected.imports:
            _run([binaries / "python", "-c", f"import {module}"], place)
        for command in expected.commands:
            _run([binaries / command[0], *command[1:]], place)
    return problems


def changelog_version(package: str) -> str:
    """The newest version that a package's changelog names."""
    text = (ROOT / "packages" / package / "CHANGELOG.md").read_text()
    found = re.search(r"^## (\d+\.\d+\.\d+)", text, flags=re.MULTILINE)
    return found[1] if found else "none"


def _run(command: list[str | Path], cwd: Path) -> None:
    subprocess.run([str(part) for part in command], cwd=cwd, check=True, stdout=subprocess.DEVNULL)


def main(argv: list[str]) -> int:
    packages = argv or sorted(path.name for path in (ROOT / "packages").iterdir() if path.is_dir())
    problems = []
    with tempfile.TemporaryDirectory() as folder:
        wheels = Path(folder)
        sources = [str(ROOT / "packages" / name) for name in sorted({"contrastive-core", *packages})]
        subprocess.run(
            [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", wheels, *sources], check=True
        )
        for package in packages:
            print(f"{package}: installing it alone ...", flush=True)
            problems += check(package, wheels)
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"{len(packages)} packages installed alone, {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
