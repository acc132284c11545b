"""Explain failures of the machine, such as a full or read-only disk, too little memory or a killed worker."""

from __future__ import annotations

import errno
import re
import shlex
import sys
from collections.abc import Sequence

from contrastive_core.training.crashes import end_as_worker, files_of_worker

_FULL = "free some space"
_ADVICE = {
    errno.ENOSPC: f"The disk is full, or has no inodes left (df -h, df -i); {_FULL}",
    errno.EDQUOT: f"Your quota is used up; {_FULL}",
    errno.EROFS: "The file system is read-only; choose another folder",
    errno.EACCES: "Permission is missing; change the permissions, or choose another folder",
    errno.EPERM: "Permission is missing; change the permissions, or choose another folder",
    errno.ENAMETOOLONG: "The name is too long for the file system; choose a shorter name",
    errno.ENOTDIR: "A part of the path is a file; choose another folder",
    errno.EIO: "The disk reports an error; copy its files to another disk",
    errno.ESTALE: "The network file system has lost the file; mount it again",
    errno.EMFILE: "Too many files are open; raise the limit (ulimit -n) or use fewer --workers",
    errno.ENFILE: "Too many files are open; raise the limit (ulimit -n) or use fewer --workers",
    errno.ENOMEM: "There is too little memory; use fewer --workers or a smaller --batch-size",
}


def advice(error: Exception) -> str | None:
    """Return the cause and the remedy of an exception in one line, or None if it is not a failure of the machine."""
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and error.errno in _ADVICE:
        prefix = f"{error.filename}: " if error.filename else ""
        return f"{prefix}{error.strerror}. {_ADVICE[error.errno]}"
    kind = type(error).__name__
    # safetensors raises its own exception, with the error number in its text.
    number = re.search(r"os error (\d+)", text)
    if kind == "SafetensorError" and number and int(number[1]) in _ADVICE:
        return f"{text}. {_ADVICE[int(number[1])]}"
    if isinstance(error, RuntimeError) and "DataLoader worker" in text:
        forget_loaders()
        return _of_worker(f"{text} {error.__cause__ or ''}")  # the cause may contain the signal
    if isinstance(error, RuntimeError) and re.search(r"unable to (write to|open|allocate) (file|shared memory)", text):
        return (
            "the shared memory through which data loading processes pass batches is full (df -h /dev/shm); use "
            "--workers 0, or give the container more shared memory (docker run --shm-size)"
        )
    if isinstance(error, MemoryError) or kind == "OutOfMemoryError":
        return f"there is too little memory ({text or kind}); use a smaller --batch-size or fewer --workers"
    return None


def _of_worker(text: str) -> str:
    """Explain the end of a data loading process from PyTorch's message."""
    files, signal_name = files_of_worker(text)
    if files and signal_name not in ("Killed", "Terminated"):
        end_as_worker(files, signal_name)
        return (
            f"{', '.join(files)}: the library that reads it crashed in a data loading process "
            f"({signal_name or 'it ended'}), so the file is damaged; copy or export it again, or remove it"
        )
    return (
        "a data loading process ended, usually because memory or shared memory was full (df -h /dev/shm; docker run "
        "--shm-size gives a container more shared memory); use fewer --workers (0 loads in the training process) or a "
        "smaller --batch-size"
    )


def forget_loaders() -> None:
    """Suppress errors of data loaders when they are garbage-collected after a reported failure.

    Python would print the traceback of `_MultiProcessingDataLoaderIter.__del__` below the message.
    """
    before = sys.unraisablehook

    def hook(failure: sys.UnraisableHookArgs) -> None:
        if "DataLoader" not in getattr(failure.object, "__qualname__", ""):
            before(failure)

    sys.unraisablehook = hook


def resume_line(prog: str, arguments: Sequence[str]) -> str:
    """Return the command line that resumes a failed run."""
    flags = [] if any(word.split("=")[0] in ("--resume", "--run.resume") for word in arguments) else ["--resume"]
    return f"{prog} {shlex.join([*arguments, *flags])}"
