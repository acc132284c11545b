"""Install every package alone, as users do, and check that it works without the libraries of the other packages.

    python -m tools.isolation                     # every package under packages/
    python -m tools.isolation contrastive-core    # one of them

Wheels of the package and of the core are installed in a fresh environment, which is deleted at the end:

  - the wheel's version equals `__version__` and the changelog's top entry; it contains py.typed and the licence;
  - every module can be imported, the command line accepts --help and --version, and a short program runs;
  - pip finds no conflict, and no library of the other packages is installed.

The core is first checked without its extras, and then with them. All packages are installed in the same environment one
after another, because the core's own dependencies (PyTorch with its CUDA libraries) take minutes to install; what a
package brought in addition to them is uninstalled before the next one.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.release import PACKAGES, build, declared_version, top_entry
from tools.results import ROOT


@dataclass(frozen=True)
class Install:
    """Installation of a package, and its expected content.

    Args:
        libraries: Third-party distributions that only this installation contains.
        modules: Import packages of which all modules must be importable.
        skip: Import packages inside these that need an extra.
        commands: Command lines that must end with status 0.
        use: Program that must run.
    """

    libraries: frozenset[str]
    modules: tuple[str, ...]
    commands: tuple[str, ...]
    use: str = ""
    skip: tuple[str, ...] = ()


LOSS = """
import torch, contrastive_core
z = torch.randn(8, 4, requires_grad=True)
contrastive_core.nt_xent(z, z.flip(0)).backward()
assert z.grad.isfinite().all()
"""
MASKS = """
from pathlib import Path
import ssl_medseg
from ssl_medseg.phantom import write_phantom
write_phantom(Path("hearts"), patients=2, size=32)
assert ssl_medseg.evaluate(Path("hearts/labelsTr"), "hearts").summary.mean_dice.mean == 1
"""
ENGINE = frozenset({"lightning-fabric", "safetensors", "jsonargparse", "rich"})
CORE = "contrastive-core"
# Libraries of each installation; it must not contain libraries that are listed only for other installations.
INSTALLS = {
    CORE: Install(
        frozenset(),
        ("contrastive_core",),
        ("python -m contrastive_core",),
        use=LOSS,
        skip=("contrastive_core.training", "contrastive_core.app.report"),
    ),
    f"{CORE}[train]": Install(
        ENGINE,
        ("contrastive_core",),
        ("python -m contrastive_core",),
        use=LOSS,
        skip=("contrastive_core.app.report",),  # needs matplotlib, which the domain packages bring
    ),
    "ssl-vision": Install(
        ENGINE | {"torchvision", "scikit-learn", "matplotlib"},
        ("contrastive_core", "ssl_vision"),
        ("ssl-vision --help", "ssl-vision --version", "ssl-vision pretrain --help"),
        use="import ssl_vision; ssl_vision.knn('pixels', 'digits')",
    ),
    "ssl-medseg": Install(
        ENGINE | {"monai", "nibabel", "matplotlib"},
        ("contrastive_core", "ssl_medseg"),
        ("ssl-medseg --help", "ssl-medseg --version", "ssl-medseg run --help"),
        use=MASKS,
    ),
    "ssl-video": Install(
        ENGINE | {"pytorchvideo", "torchvision", "av", "matplotlib"},
        ("contrastive_core", "ssl_video"),
        ("ssl-video --help", "ssl-video --version", "ssl-video make-splits --help"),
        use="""
import torch, ssl_video
from ssl_video.models import NetworkOptions, build_network
network = build_network(NetworkOptions("small_slow", width=4), 3)
method = ssl_video.MultiviewPseudoLabel(network, classes=3, threshold=0.8)
clips = {view: torch.rand(2, 2, 3, 16, 16) * 255 for view in method.views}
method(clips, torch.tensor([0, 1]), clips, clips).loss.backward()
""",
    ),
}
EXTRAS = frozenset(
    {
        "highdicom",
        "onnx",
        "onnxruntime",
        "onnxscript",
        "opencv-python",
        "opencv-python-headless",
        "pyarrow",
        "pydicom",
        "simpleitk",
        "tensorboard",
        "torchaudio",
        "wandb",
    }
)

# Programs for the Python of the fresh environment. The first prints the distributions; the other imports the given
# packages before.
LIST = """
import importlib.metadata, json
names = [d.metadata["Name"].lower().replace("_", "-").replace(".", "-") for d in importlib.metadata.distributions()]
print(json.dumps(sorted(names)))
"""
PROBE = (
    """
import importlib, pkgutil, sys
skip = tuple(sys.argv[1].split())
for package in sys.argv[2:]:
    for module in pkgutil.walk_packages(importlib.import_module(package).__path__, package + "."):
        if not (module.name.startswith(skip) if skip else False) and not module.name.endswith("__main__"):
            importlib.import_module(module.name)
"""
    + LIST
)


def main(argv: Sequence[str] | None = None) -> int:
    there = sorted(path.parent.name for path in PACKAGES.glob("*/pyproject.toml"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", nargs="*", help=f"any of {', '.join(there)}; all when left out")
    packages = parser.parse_args(argv).packages or there
    if unknown := [name for name in packages if name not in there]:
        parser.error(f"unknown package {unknown[0]!r}; expected some of {', '.join(there)}")
    problems: list[str] = []
    with tempfile.TemporaryDirectory(prefix="isolation-") as folder:
        environment = Environment(Path(folder))
        for package in packages:
            begin = time.monotonic()
            package_problems = check(package, environment)
            print(
                f"{package}: {'NOT isolated' if package_problems else 'isolated'}, {time.monotonic() - begin:.0f} s",
                flush=True,
            )
            problems += package_problems
    print("\n".join(problems), end="\n" if problems else "", file=sys.stderr)
    return int(bool(problems))


class Environment:
    """A fresh environment with the core alone, to which a package can be added and from which it can be removed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.python = folder / "env" / "bin" / "python"
        subprocess.run([sys.executable, "-m", "venv", f"{folder}/env"], check=True)
        self.core = build(CORE, folder / "dist", "wheel")[0]
        self.install(str(self.core))
        self.base = self.distributions()

    def wheel(self, package: str) -> Path:
        return self.core if package == CORE else build(package, self.folder / "dist", "wheel")[0]

    def install(self, *specifiers: str) -> None:
        self.pip("install", "--constraint", str(ROOT / "tools" / "constraints.txt"), *specifiers)

    def remove_all_but_the_core(self) -> None:
        if extras := sorted(self.distributions() - self.base):
            self.pip("uninstall", "--yes", *extras)

    def distributions(self) -> frozenset[str]:
        process = subprocess.run([self.python, "-I", "-c", LIST], capture_output=True, text=True, check=True)
        return frozenset(json.loads(process.stdout))

    def pip(self, *arguments: str) -> None:
        command = [str(self.python), "-m", "pip", arguments[0], "--quiet", *arguments[1:]]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


def absent(install: str) -> frozenset[str]:
    """Return the libraries that an installation must not contain: those of the others and those of extras."""
    every = frozenset().union(*(each.libraries for each in INSTALLS.values()))
    return (every | EXTRAS) - INSTALLS[install].libraries


def check(package: str, environment: Environment) -> list[str]:
    """Build, install and try one package, and return the problems found."""
    wheel = environment.wheel(package)
    problems = [f"{package}: {problem}" for problem in of_wheel(package, wheel)]
    for install in (name for name in INSTALLS if name.partition("[")[0] == package):
        environment.install(f"{wheel}{install.removeprefix(package)}")
        problems += [f"{install}: {problem}" for problem in of_environment(environment.python, install)]
    environment.remove_all_but_the_core()
    return problems


def of_wheel(package: str, wheel: Path) -> list[str]:
    module = package.replace("-", "_")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        info = next(name for name in names if name.endswith(".dist-info/METADATA"))
        version = next(line for line in archive.read(info).decode().splitlines() if line.startswith("Version: "))
    versions = {
        "wheel": version.removeprefix("Version: "),
        "__version__": declared_version(package),
        "changelog": top_entry(package)[0],
    }
    problems = [] if len(set(versions.values())) == 1 else [f"versions differ: {versions}"]
    expected_files = [f"{module}/py.typed", f"{Path(info).parent}/licenses/LICENSE"]
    problems += [f"the wheel lacks {name}" for name in expected_files if name not in names]
    strangers = [name for name in names if not name.startswith((f"{module}/", f"{module}-"))]
    return problems + [f"the wheel contains {name}, which is outside its package" for name in strangers]


def of_environment(python: Path, install: str) -> list[str]:
    installation = INSTALLS[install]
    with tempfile.TemporaryDirectory() as elsewhere:  # prevents imports from the checkout
        probe = attempt([str(python), "-I", "-c", PROBE, " ".join(installation.skip), *installation.modules], elsewhere)
        commands = [line.split() for line in (*installation.commands, "python -m pip check")]
        tries = [
            probe,
            *(attempt([str(python.with_name(program)), *arguments], elsewhere) for program, *arguments in commands),
        ]
        tries.append(attempt([str(python), "-I", "-c", installation.use], elsewhere))
    problems = [problem for _, problem in tries if problem]
    libraries = set(json.loads(probe[0].splitlines()[-1])) if not probe[1] else set()
    problems += [f"{library} is installed, which it has no use for" for library in sorted(libraries & absent(install))]
    problems += [f"{library} is missing" for library in sorted(installation.libraries - libraries) if libraries]
    return problems


def attempt(command: list[str], folder: str) -> tuple[str, str]:
    """Return the standard output of a command, and a problem to report if it failed."""
    process = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    name = " ".join([Path(command[0]).name, *command[1:]]).partition("\n")[0]
    return (
        process.stdout,
        f"`{name}` ended with status {process.returncode}:\n{process.stderr}" if process.returncode else "",
    )


if __name__ == "__main__":
    sys.exit(main())
