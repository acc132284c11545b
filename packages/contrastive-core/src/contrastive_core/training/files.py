"""Write files atomically: a crash, a kill or a power failure leaves the old content or the new one, never a mixture."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


def sync(path: Path) -> None:
    """Force a file's content, or a folder's list of names, to the disk."""
    windows = os.name == "nt"
    if windows and path.is_dir():
        return  # Windows opens no folder
    descriptor = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def open_atomic(path: Path) -> Iterator[BinaryIO]:
    """Open `path` for writing; the new content replaces the old one in one step that survives a power failure.

    If the block raises, the old content stays. Of several writers the last one wins.
    """
    # The process' number would not tell writers apart that share a folder from two machines or containers.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


_STALE_AFTER = 60.0


def remove_stale(path: Path) -> None:
    """Remove temporary files of `open_atomic` that a kill has left beside a file and that are older than a minute."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{8}}\.tmp")
    try:
        beside = [entry for entry in os.scandir(path.parent) if pattern.fullmatch(entry.name)]
        for entry in beside:
            if time.time() - entry.stat().st_mtime > _STALE_AFTER:
                Path(entry.path).unlink(missing_ok=True)
    except OSError:  # none there, or it is not ours to remove
        return


def remove_temporaries(folder: Path) -> None:
    """Remove unfinished files of killed processes from a folder, whose lock the caller holds, and its subfolders."""
    for inside in (folder, *(entry for entry in folder.iterdir() if entry.is_dir() and not entry.is_symlink())):
        for path in inside.glob(".*.tmp"):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def write_atomic(path: Path, content: bytes) -> None:
    """Write the content to `path`, see :func:`open_atomic`."""
    with open_atomic(path) as file:
        file.write(content)


def append_line(path: Path, line: str) -> None:
    """Append a line to a file, created if missing; lines of several processes do not mix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # One write to a file opened for appending.
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(file, f"{line}\n".encode())
    finally:
        os.close(file)


def replace_folder(new: Path, target: Path) -> None:
    """Replace the folder `target` by `new`, whose files are complete.

    Between two renames neither has its name; the old folder is then still beside it, as `.<name>.old`.
    """
    for file in new.iterdir():
        sync(file)
    sync(new)
    old = target.with_name(f".{target.name}.old")
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
    new.rename(target)
    sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def sha256(path: Path) -> str:
    """Return the SHA-256 hash of a file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class FolderLock:
    """Keep a second process from writing the same folder; however the process ends, the system releases the lock.

    A record lock (lockf), because data workers forked from this process must not inherit it: they outlive a killed
    parent by some seconds. filelock, the library for this, uses flock: its versions before 4 leave the lock with these
    workers (measured with 3.20), and where a file system has no locks it leaves a file behind a kill, which would stop
    the run from being resumed.
    """

    def __init__(self, folder: Path) -> None:
        self._descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)

    def acquire(self) -> bool:
        """Return True unless another process holds the lock; a file system without locks counts as free."""
        if fcntl is None:
            return True
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return False
        except OSError:
            return True
        return True

    def release(self) -> None:
        """Release the lock."""
        os.close(self._descriptor)
