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

from contrastive_core.errors import UserError
from contrastive_core.text import size

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
    with atomic_path(path) as temporary, temporary.open("r+b") as file:
        yield file


@contextmanager
def atomic_path(path: Path, *, ending: str = "") -> Iterator[Path]:
    """A temporary name for a library to write to, whose file then takes the place of `path` as `open_atomic` says.

    Args:
        path: File to write; its folder exists.
        ending: Ending of the temporary name, for libraries that choose the format by it.
    """
    # The process' number would not tell writers apart that share a folder from two machines or containers.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp{ending}")
    try:
        with temporary.open("xb") as held:
            _lock(held.fileno())  # says to others that its writer is alive
            yield temporary
            sync(temporary)
            temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


_STALE_AFTER = 60.0


def remove_stale(path: Path) -> None:
    """Remove temporary files of `open_atomic` and `atomic_path` that a kill has left beside a file."""
    _remove_stale(path.parent, re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{8}}\.tmp(\..*)?"))


def remove_stale_files(folder: Path) -> None:
    """Remove the temporary files that kills have left in a folder of our own, of whatever file."""
    _remove_stale(folder, re.compile(r"\..+\.[0-9a-f]{8}\.tmp(\..*)?"))


def _remove_stale(folder: Path, pattern: re.Pattern[str]) -> None:
    try:
        left = [Path(entry.path) for entry in os.scandir(folder) if pattern.fullmatch(entry.name)]
        for temporary in left:
            if not _is_being_written(temporary):
                temporary.unlink(missing_ok=True)
    except OSError:  # none there, or it is not ours to remove
        return


def _is_being_written(temporary: Path) -> bool:
    """Whether a live process holds the lock of a temporary file, or may be about to take it.

    Without locks it is young for a minute, with them for the second between its creation and its lock.
    """
    descriptor = os.open(temporary, os.O_RDONLY)
    try:
        free = _lock(descriptor)
        age = time.time() - os.fstat(descriptor).st_mtime
        return free is False or age < (_STALE_AFTER if free is None else 1.0)
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool | None:
    """Try to lock an open file for as long as it is open; None where the system or file system has no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def remove_temporaries(folder: Path) -> None:
    """Remove unfinished files of killed processes from a folder, whose lock the caller holds, and its subfolders."""
    for inside in (folder, *(entry for entry in folder.iterdir() if entry.is_dir() and not entry.is_symlink())):
        for path in inside.glob(".*.tmp*"):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def write_atomic(path: Path, content: bytes) -> None:
    """Write the content to `path`, see :func:`open_atomic`."""
    with open_atomic(path) as file:
        file.write(content)


def check_space(folder: Path, needed: int, *, what: str, files: int = 0, advice: str = "choose another --out") -> None:
    """Compare what will be written with what is free, before the work.

    Args:
        folder: Where it will be written; it need not exist.
        needed: Number of bytes.
        what: What takes them, as subject of a sentence: "the masks of 12 images".
        files: Number of files, each of which takes an inode.
        advice: What to do beside freeing space.

    Raises:
        UserError: There is too little space, or there are too few inodes.
    """
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if needed > free:
        raise UserError(
            f"{folder}: {what} take about {size(needed)}, and {size(free)} are free; free some space there, or {advice}"
        )
    if not hasattr(os, "statvfs"):  # Windows
        return
    nodes = os.statvfs(place)
    if nodes.f_files and nodes.f_favail < files:  # file systems that make inodes as needed state 0
        raise UserError(
            f"{folder}: {what} are {files:,} files, and the file system has room for {nodes.f_favail:,} more (df -i); "
            f"delete some there, or {advice}"
        )


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


def keep_others(target: Path, new: Path) -> None:
    """Copy what lies in the folder `target` and not in `new`, which will take its place: nothing of others vanishes."""
    for entry in target.iterdir() if target.is_dir() else ():
        if not (new / entry.name).exists():
            if entry.is_dir() and not entry.is_symlink():
                shutil.copytree(entry, new / entry.name, symlinks=True)
            else:
                shutil.copy2(entry, new / entry.name, follow_symlinks=False)


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
