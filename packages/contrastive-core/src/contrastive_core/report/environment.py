"""Where numbers came from: versions, hardware, and the state of the source."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch

_PACKAGES = ("contrastive-core", "torch", "lightning-fabric", "numpy")


def versions(packages: Sequence[str] = ()) -> dict[str, str]:
    """Python and the packages that decide what a run computes: those named, then the engine's own."""
    found = {"Python": platform.python_version()}
    for package in (*packages, *_PACKAGES):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, str]:
    """Processor, cores and accelerator of this machine; never its name."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": f"{_processor()}, {cores} cores",
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }


def source_commit() -> str | None:
    """The commit of the checkout that this package runs from and whether it was changed; None for an installed copy."""
    git = shutil.which("git")
    folder = Path(__file__).parent

    def ask(*arguments: str) -> str | None:
        if git is None:
            return None
        answer = subprocess.run(  # noqa: S603 - git, and arguments written here
            [git, "-C", str(folder), *arguments], capture_output=True, text=True, check=False
        )
        return answer.stdout.strip() if answer.returncode == 0 else None

    # An installed copy may lie inside somebody's repository; it is not of that repository.
    if ask("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None
    commit = ask("rev-parse", "HEAD")
    if commit is None:
        return None
    changed = ask("status", "--porcelain", "--untracked-files=no")
    return commit + (" with local changes" if changed else "")


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
