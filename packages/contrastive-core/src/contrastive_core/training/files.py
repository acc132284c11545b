"""Write files atomically, so that a crash, kill or power failure leaves either the old content or the new content."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from contrastive_core.errors import UserError
from contrastive_core.text import size

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


_OF_SYSTEMS = frozenset({"$recycle.bin", "#recycle", "@eadir", "__macosx", "lost+found", "system volume information"})


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is hidden, or is one that Windows, macOS, Linux or a Synology NAS adds to data.

    >>> is_hidden(".cache"), is_hidden("@eaDir"), is_hidden("cat")
    (True, True, False)
    """
    return name.startswith(".") or name.lower() in _OF_SYSTEMS


def sync(path: Path) -> None:
    """Flush the content of a file, or the entries of a folder, to the disk."""
    windows = os.name == "nt"
    if windows and path.is_dir():
        return  # Windows cannot open a folder
    descriptor = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


#: Functions that are called with a file and the temporary file that is about to replace it; see `outputs.Outputs`.
on_replacement: list[Callable[[Path, Path], None]] = []


@contextmanager
def open_atomic(path: Path) -> Iterator[BinaryIO]:
    """Open `path` for writing; the new content replaces the old content in one step that survives a power failure.

    If the block raises an exception, the old content remains. If several processes write the same file, the content of
    the last one remains.
    """
    with atomic_path(path) as temporary, temporary.open("r+b") as file:
        yield file


@contextmanager
def atomic_path(path: Path, *, ending: str = "") -> Iterator[Path]:
    """Yield a temporary path for a library to write to, whose file then replaces `path` as in `open_atomic`.

    Args:
        path: File to write; its folder must exist.
        ending: Ending of the temporary name, for libraries that choose the format by it.
    """
    # A process id would not distinguish writers that share a folder from two machines or containers.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp{ending}")
    try:
        with name_in_errors(path), temporary.open("xb") as stream:
            _lock(stream.fileno())  # shows other processes that the writer is alive
            yield temporary
            sync(temporary)
            put_in_place(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


@contextmanager
def name_in_errors(path: Path) -> Iterator[None]:
    """Name `path` in errors of the system that name no file, such as those of a write to a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise
    except Exception as error:
        # safetensors raises its own exception, with the error number in its text.
        number = re.search(r"os error (\d+)", str(error)) if type(error).__name__ == "SafetensorError" else None
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def put_in_place(temporary: Path, path: Path) -> None:
    """Call the functions in `on_replacement`, then rename a complete temporary file to its final name."""
    for listener in on_replacement:
        listener(path, temporary)
    temporary.replace(path)


_STALE_AFTER = 60.0


def remove_stale(path: Path) -> None:
    """Remove the temporary files of `open_atomic` and `atomic_path` that killed processes have left next to a file."""
    _remove_stale(path.parent, re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{8}}\.tmp(\..*)?"))


def remove_stale_files(folder: Path) -> None:
    """Remove all temporary files that killed processes have left in a folder that the command owns."""
    _remove_stale(folder, re.compile(r"\..+\.[0-9a-f]{8}\.tmp(\..*)?"))


def _remove_stale(folder: Path, pattern: re.Pattern[str]) -> None:
    try:
        temporaries = [Path(entry.path) for entry in os.scandir(folder) if pattern.fullmatch(entry.name)]
        for temporary in temporaries:
            if not _is_being_written(temporary):
                temporary.unlink(missing_ok=True)
    except OSError:  # the folder does not exist, or its files may not be removed
        return


def _is_being_written(temporary: Path) -> bool:
    """Return whether a live process holds the lock of a temporary file, or may be about to acquire it.

    A file counts as being written for one second after its creation, or for a minute if there are no locks.
    """
    descriptor = os.open(temporary, os.O_RDONLY)
    try:
        free = _lock(descriptor)
        age = time.time() - os.fstat(descriptor).st_mtime
        return free is False or age < (_STALE_AFTER if free is None else 1.0)
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool | None:
    """Try to lock a file until it is closed; return None if the system or the file system has no locks."""
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
    """Remove unfinished files of killed processes from a folder and its subfolders; the caller must hold its lock."""
    for inside in (folder, *(entry for entry in folder.iterdir() if entry.is_dir() and not entry.is_symlink())):
        for path in inside.glob(".*.tmp*"):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def write_atomic(path: Path, content: bytes) -> None:
    """Write the content to `path` in one step, see :func:`open_atomic`."""
    with open_atomic(path) as file:
        file.write(content)


def check_space(
    folder: Path, num_bytes: int, *, what: str, files: int = 0, advice: str = "choose another --out"
) -> None:
    """Check, before the work begins, that the disk has enough space for the results.

    Args:
        folder: Folder of the results; it need not exist.
        num_bytes: Number of bytes that will be written.
        what: Plural subject of the error message, such as "the masks of 12 images".
        files: Number of files that will be written, each of which takes an inode.
        advice: What the user can do other than free space.

    Raises:
        UserError: There is too little space, or there are too few inodes.
    """
    parent = folder.absolute()
    while not parent.exists():
        parent = parent.parent
    free = shutil.disk_usage(parent).free
    if num_bytes > free:
        raise UserError(
            f"{folder}: {what} take about {size(num_bytes)}, but only {size(free)} are free; free some space, or "
            f"{advice}"
        )
    if not hasattr(os, "statvfs"):  # Windows
        return
    nodes = os.statvfs(parent)
    if nodes.f_files and nodes.f_favail < files:  # file systems that create inodes as needed report 0
        raise UserError(
            f"{folder}: {what} need {files:,} files, but the file system has only {nodes.f_favail:,} free inodes "
            f"(df -i); delete some files, or {advice}"
        )


def check_regular(path: Path | str, *, what: str) -> int:
    """Return the size of a file that is not a pipe or device, from which reading may never end.

    Raises:
        UserError: It is a pipe or device.
        OSError: Its type cannot be determined.
    """
    status = os.stat(path)  # noqa: PTH116 - called for every image
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):  # the system refuses to read folders
        raise UserError(f"{path}: is a pipe or device; expected {what}")
    return status.st_size


def append_line(path: Path, line: str) -> None:
    """Append a line to a file, which is created if missing; several processes can append to the same file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # A single write to a file opened for appending is not interleaved with those of other processes.
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        with name_in_errors(path):
            content = f"{line}\n".encode()
            count = os.write(file, content)
            if count < len(content):
                # A disk that is about full takes the beginning of the line, which would damage the next one.
                os.ftruncate(file, os.lseek(file, 0, os.SEEK_CUR) - count)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    finally:
        os.close(file)


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Yield a new folder that then replaces the folder `target`; after an error, nothing of it is left on the disk."""
    new = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        with name_in_errors(target):
            yield new
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    replace_folder(new, target)


def replace_folder(new: Path, target: Path) -> None:
    """Replace the folder `target` by `new`, whose files are complete.

    The old folder is first renamed to `.<name>.old`; if the process is killed before the second rename, it remains
    there.
    """
    for file in new.iterdir():
        sync(file)
        for listener in on_replacement if file.is_file() else ():
            listener(target / file.name, file)
    sync(new)
    old = target.with_name(f".{target.name}.old")
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
    new.rename(target)
    sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def keep_others(target: Path, new: Path) -> None:
    """Copy the entries of `target` that `new` lacks into `new`, so that replacing `target` by `new` loses no files."""
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


_ATTEMPTS = 20


class FolderLock:
    """Lock that keeps a second process from writing to the same folder; the system releases it when the process ends.

    The lock is a record lock (lockf), which forked data workers do not inherit: they outlive a killed parent by some
    seconds. The library filelock uses flock. Its versions before 4 leave the lock with these workers (measured with
    3.20), and version 4 cannot be required, because monai[all] excludes versions from 3.12 on.
    """

    def __init__(self, folder: Path) -> None:
        self._descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)

    def acquire(self) -> bool:
        """Acquire the lock and return True, or return False if another process holds it for longer than a second.

        The wait is for the child of a command that was killed, which outlives the command by milliseconds. On a file
        system without locks the result is always True.
        """
        return _lock_range(self._descriptor)

    def release(self) -> None:
        """Release the lock."""
        os.close(self._descriptor)


def _lock_range(descriptor: int, start: int = 0, length: int = 0) -> bool:
    """Acquire a record lock on a range of a file, or return False if another process holds it for over a second."""
    if fcntl is None:
        return True
    for attempt in range(_ATTEMPTS + 1):
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, length, start)
        except (BlockingIOError, PermissionError):
            if attempt < _ATTEMPTS:
                time.sleep(1 / _ATTEMPTS)
        except OSError:
            return True
        else:
            return True
    return False


#: Name of the file that `FileLocks` uses.
OUTPUTS_LOCK = ".outputs.lock"
_MOST_LOCKS = 1000


class FileLocks:
    """Locks that keep a second process from writing the same files of a folder; its other files remain free.

    Every file has a byte of ``.outputs.lock``, on which it takes a record lock, see `FolderLock`. The locks of a
    process on a folder end together, because the system releases them when one descriptor of this file is closed.
    Users who cannot write to ``.outputs.lock`` of another user have no locks.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / OUTPUTS_LOCK
        self._descriptor: int | None = None

    def acquire(self, names: Sequence[str]) -> str | None:
        """Acquire the locks, or return the name of a file that another process is writing.

        Of thousands of files, the first and the last ones are locked, because the time is quadratic in their number.
        Two commands that write that many files to a folder also write the same summary, which is among them.
        """
        half = _MOST_LOCKS // 2
        names = names if len(names) <= _MOST_LOCKS else [*names[:half], *names[-half:]]
        for attempt in range(0 if fcntl is None else _ATTEMPTS):
            if attempt:
                self.release()
            try:
                self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            except OSError:
                return None
            for name in names:
                start = 1 + int.from_bytes(hashlib.sha256(os.fsencode(name)).digest()[:7], "big")
                if not _lock_range(self._descriptor, start, 1):
                    return name
            if self._is_there():  # otherwise the last process to release its locks has removed the file meanwhile
                return None
        return None  # the file system has no lasting numbers of files

    @contextmanager
    def index(self) -> Iterator[None]:
        """Keep other processes from changing the index of the folder inside the block."""
        if fcntl is None or self._descriptor is None:
            yield
            return
        with suppress(OSError):
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX, 1, 0)
        try:
            yield
        finally:
            with suppress(OSError):
                fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, 0)

    def release(self) -> None:
        """Release the locks, and remove their file if no other process has one."""
        if fcntl is None or self._descriptor is None:
            return
        with suppress(OSError):
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if self._is_there():
                self._path.unlink()
        os.close(self._descriptor)
        self._descriptor = None

    def _is_there(self) -> bool:
        """Return whether the open file is still the one of this name."""
        try:
            return self._descriptor is not None and os.path.samestat(self._path.stat(), os.fstat(self._descriptor))
        except FileNotFoundError:
            return False
