"""Compile `csrc/` into a CPU library for the installed torch.

The build hook of the package, `python -m contrastive_core build` and the tests use this module. The library uses only
torch's stable ABI, so that it works with every torch from 2.10 on and every Python. This file imports only Python's
standard library, because the build hook runs it where the package is not installed.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).parent / "csrc"
CPU_LIBRARY = "cpu.so"
OLDEST_TORCH = (2, 10)

# Do not add -ffast-math: exp2 relies on exact rounding. The ABI is that of the oldest supported torch, whichever torch
# is installed.
_ABI = "-DTORCH_TARGET_VERSION=0x020a000000000000ULL"
_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", _ABI)
_CPU_FILES: dict[str, tuple[str, ...]] = {
    "cpu.cpp": (),
    "avx512.cpp": ("-mavx512f", "-mavx2", "-mfma"),
    "avx2.cpp": ("-mavx2", "-mfma"),
}


class BuildError(Exception):
    """The library cannot be built; the message states the reason and the remedy."""


@dataclass(frozen=True)
class Torch:
    """Paths and version of the installed torch that a compiler needs."""

    folder: Path
    version: str


def find_torch() -> Torch:
    """Find torch without importing it.

    Raises:
        BuildError: torch is not installed, or too old.
    """
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        raise BuildError("torch is not installed here; use pip install --no-build-isolation where torch is installed")
    folder, version = Path(spec.submodule_search_locations[0]), importlib.metadata.version("torch")
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers is None or tuple(map(int, numbers.groups())) < OLDEST_TORCH:
        raise BuildError(f"found torch {version}, expected {'.'.join(map(str, OLDEST_TORCH))} or newer; upgrade torch")
    return Torch(folder, version)


def build_cpu(folder: Path) -> Path:
    """Compile and link the CPU library into a folder and return its path, which takes some seconds.

    Raises:
        BuildError: The platform is not Linux on x86-64, torch or a compiler is missing, or the compiler failed.
    """
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise BuildError(
            f"the native backend supports Linux on x86_64, not {platform.system()} on {platform.machine()}; the "
            "PyTorch backend is used"
        )
    torch, compiler = find_torch(), _compiler()
    include = ("-isystem", str(torch.folder / "include"))
    with tempfile.TemporaryDirectory(prefix="contrastive-core-") as scratch:
        objects = [Path(scratch, name).with_suffix(".o") for name in _CPU_FILES]
        commands = [
            [compiler, *_FLAGS, *include, *flags, "-c", str(SOURCES / name), "-o", str(object_file)]
            for (name, flags), object_file in zip(_CPU_FILES.items(), objects, strict=True)
        ]
        with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
            list(pool.map(_run, commands))
        library = Path(scratch, CPU_LIBRARY)
        link = ["-shared", "-s", *map(str, objects), f"-L{torch.folder / 'lib'}", "-ltorch_cpu", "-ltorch"]
        _run([compiler, *link, "-o", str(library)])
        return _put(library, folder)


def source_hash() -> str:
    """Return a hash of the sources and this file, which identifies a library in the user's cache."""
    digest = hashlib.sha256()
    for path in sorted([*SOURCES.iterdir(), Path(__file__)]):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _compiler() -> str:
    cxx = os.environ.get("CXX")
    for name in [cxx] if cxx else ["c++", "g++", "clang++"]:
        if path := shutil.which(name):
            return path
    candidates = f"CXX={cxx}" if cxx else "c++, g++ and clang++"
    raise BuildError(f"no C++ compiler found (looked for {candidates}); install one, for example the package g++")


def _run(command: Sequence[str]) -> None:
    proc = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - compiler and linker
    if proc.returncode != 0:
        errors = [line for line in proc.stderr.splitlines() if "error" in line.lower()] or proc.stderr.splitlines()
        raise BuildError(f"`{' '.join(command)}` ended with status {proc.returncode}:\n" + "\n".join(errors[:20]))


def _put(library: Path, folder: Path) -> Path:
    """Move a finished library into its folder in one step, because another process may be loading the old one."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / library.name
    temporary = folder / f".{library.name}.{os.getpid()}"
    shutil.copyfile(library, temporary)
    temporary.replace(target)
    return target
