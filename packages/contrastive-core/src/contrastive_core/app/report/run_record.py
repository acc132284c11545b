"""Read the configuration, metrics and timing of a run, and describe versions, hardware and source commit."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from contrastive_core.app.failures import advice
from contrastive_core.errors import UserError
from contrastive_core.training import config, recorder
from contrastive_core.training.documents import read_json_lines, reading, reason

_PACKAGES = ("contrastive-core", "torch", "lightning-fabric", "numpy")


def versions(packages: Sequence[str] = ()) -> dict[str, str]:
    """Return the versions of Python, the given packages and the dependencies of the training engine."""
    version_numbers = {"Python": platform.python_version()}
    for package in (*packages, *_PACKAGES):
        try:
            version_numbers[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return version_numbers


def hardware() -> dict[str, str]:
    """Return processor, cores and accelerator of this machine, without its host name."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": f"{_processor()}, {cores} cores",
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }


def source_commit() -> str | None:
    """Return the commit of the source checkout and whether it has local changes, or None for an installed package."""
    git = shutil.which("git")
    folder = Path(__file__).parent

    def ask(*arguments: str) -> str | None:
        if git is None:
            return None
        answer = subprocess.run(  # noqa: S603 - git, and arguments written here
            [git, "-C", str(folder), *arguments], capture_output=True, text=True, check=False
        )
        return answer.stdout.strip() if answer.returncode == 0 else None

    # An installed copy may be inside a repository to which it does not belong.
    if ask("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None
    commit = ask("rev-parse", "HEAD")
    if commit is None:
        return None
    changes = ask("status", "--porcelain", "--untracked-files=no")
    return commit + (" with local changes" if changes else "")


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@dataclass(frozen=True)
class RunRecord:
    """Content of the folder of a finished or unfinished run.

    Attributes:
        config: Resolved settings.
        records: Records of ``metrics.jsonl``.
        sessions: Hardware and software of each start.
        seconds: Time spent in training steps; None if nothing was logged.
    """

    config: Mapping[str, Any]
    records: list[dict[str, int | float]]
    sessions: list[dict[str, Any]]
    seconds: float | None


@contextmanager
def showing(run: Path) -> Iterator[None]:
    """Convert exceptions about the content of a run's files, while its report is made, into one error.

    Failures of the machine, such as too little memory, are passed on.

    Raises:
        UserError: A file of the run contains other values than the commands write.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if advice(error) is not None:
            raise
        raise UserError(
            f"{run}: its files do not have the content of a run ({reason(error)}), so there is no report of it; "
            "restore them from a copy"
        ) from error


def read_record(path: Path, *, made_by: str) -> RunRecord:
    """Read the folder of a run.

    Args:
        path: Run folder.
        made_by: Commands that write such a folder, for the error message.

    Raises:
        UserError: The folder is not a run folder, or its files are damaged.
    """
    if not (path / "config.yaml").is_file():
        raise UserError(f"{path}: found no config.yaml, expected the output folder of {made_by}")
    file = path / "timing.jsonl"
    timing = read_json_lines(file) if file.exists() else []
    with reading(file, "is damaged", "expected seconds on every line; remove it, or restore it from a copy"):
        seconds = _seconds(timing)
    return RunRecord(
        config=config.read(path / "config.yaml"),
        records=recorder.read(path / "metrics.jsonl"),
        sessions=[line for line in timing if "session" in line],
        seconds=seconds,
    )


def _seconds(timing: list[dict[str, Any]]) -> float | None:
    """Return the time spent in steps over all sessions; steps repeated after an interruption count twice."""
    total, current = 0.0, 0.0
    for line in timing:
        if "session" in line:
            total, current = total + current, 0.0
        else:
            current = float(line["seconds"])
    return total + current or None
