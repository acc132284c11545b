"""Handle native readers that crash on a damaged file: report the file and read the others.

Pillow, FFmpeg, SimpleITK and similar libraries decode in the calling process, at full speed. Every process records
which files it is reading, in shared memory that outlives the process. A command runs in a child process (`supervise`).
If the child crashes, a command that only reads starts again without the file, and a command that trains reports the
file and how to resume. This requires Linux; on other systems a crash ends the command without naming the file.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import signal
import sys
import threading
from pathlib import Path

from contrastive_core.errors import UserError

_CRASHES = {signal.SIGSEGV, signal.SIGABRT, signal.SIGFPE, signal.SIGILL} | (
    {signal.SIGBUS} if hasattr(signal, "SIGBUS") else set()
)
#: Environment variable with the path of the shared memory in /proc, for processes that are not forked.
_VARIABLE = "CONTRASTIVE_CORE_READING"
_SLOTS, _SLOT = 64, 1024
_BLOCK = _SLOTS * _SLOT
"""Size in bytes of a process's block, whose offset is its process id times this size; the memory is sparse."""
_PROCESSES = 1 << 22
"""Largest process id on Linux."""
_MOST = 100
"""Number of crashes after which a command ends."""
_SIGNALS = frozenset(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGCHLD") if hasattr(signal, name)
)
_PR_SET_PDEATHSIG = 1
_SI_KERNEL = 0x80
"""Origin (si_code) of a signal that a terminal sends to all processes in its foreground."""


class _Notes:
    """Names of the files that the threads of this process are reading, in its block of the shared memory."""

    def __init__(self) -> None:
        self.block: mmap.mmap | None = None
        self.free = list(range(0, _BLOCK, _SLOT))
        self.lock = threading.Lock()
        if (memory := open_notes()) is not None:
            with contextlib.suppress(OSError, ValueError, OverflowError):
                self.block = mmap.mmap(memory, _BLOCK, offset=os.getpid() * _BLOCK)
                self.block[:] = bytes(_BLOCK)  # an earlier process may have had the same id

    def write(self, offset: int, file: str) -> None:
        """Write the name of a file to the slot at `offset`."""
        if (block := self.block) is not None:
            name = os.fsencode(file)[: _SLOT - 1] + b"\0"
            block[offset : offset + len(name)] = name


_notes: _Notes | None = None
_making = threading.Lock()
_descriptor: int | None = None
_is_supervised = False
_is_child = False
#: Files that have crashed a reader (with the signal) and files that may have; `supervise` sets both for its child.
_crashed: dict[str, str] = {}
_suspects: frozenset[str] = frozenset()


def _make_notes() -> _Notes:
    global _notes  # noqa: PLW0603 - created once per process
    with _making:
        if _notes is None:
            _notes = _Notes()
        return _notes


def _forget_notes() -> None:
    global _notes, _making
    _notes, _making = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_notes)


def open_notes() -> int | None:
    """Open the shared memory of a command and return its descriptor, or None if the system does not support it.

    Call this function before the processes of the command are started.
    """
    global _descriptor  # noqa: PLW0603 - opened once per process
    if _descriptor is None:
        _descriptor = _open_memory()
    return _descriptor


def _open_memory() -> int | None:
    if not hasattr(os, "memfd_create"):
        return None
    try:
        if path := os.environ.get(_VARIABLE):
            return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:  # the memory belongs to a command that has ended
        pass
    try:
        memory = os.memfd_create("contrastive-core", os.MFD_CLOEXEC)
        os.ftruncate(memory, _PROCESSES * _BLOCK)
    except OSError:
        return None
    os.environ[_VARIABLE] = f"/proc/{os.getpid()}/fd/{memory}"
    return memory


class native_reader:  # noqa: N801 - used as a function
    """Record, inside a `with` block, that native code is reading a file, on which it may crash.

    Entering and leaving the block takes a few microseconds.

    Args:
        path: File that is being read.

    Raises:
        UserError: On entry, if a reader has crashed on the file before.
    """

    __slots__ = ("_name", "_notes", "_offset")

    def __init__(self, path: Path | str) -> None:
        self._name = os.fspath(path)

    def __enter__(self) -> None:
        if self._name in _crashed:
            raise UserError(
                f"{self._name}: the library that reads it crashed ({_crashed[self._name]}), so the file is damaged; "
                "copy or export it again, or remove it"
            )
        self._notes = notes = _notes or _make_notes()
        if self._name in _suspects:
            notes.lock.acquire()
        try:
            self._offset = notes.free.pop()
        except IndexError:  # more threads than slots
            self._offset = -1
            return
        notes.write(self._offset, self._name)

    def __exit__(self, *_: object) -> None:
        notes = self._notes
        if self._offset >= 0 and (block := notes.block) is not None:
            block[self._offset] = 0
            notes.free.append(self._offset)
        if self._name in _suspects:
            notes.lock.release()


def forget_files() -> None:
    """Clear the record of this process, which is about to end for a reason that no file has caused."""
    notes = _notes or _make_notes()
    block, notes.block = notes.block, None
    if block is not None:
        block[:] = bytes(_BLOCK)


def files_read_by(process: int) -> list[str]:
    """Return the files that a process is reading, or was reading when it ended."""
    memory = open_notes()
    block = b"" if memory is None else os.pread(memory, _BLOCK, process * _BLOCK)
    slots = (block[at : at + _SLOT] for at in range(0, len(block), _SLOT))
    return [os.fsdecode(name) for slot in slots if (name := slot.partition(b"\0")[0])]


def files_of_worker(message: str) -> tuple[list[str], str]:
    """Return the files that a data loading process was reading when it ended, and the name of the signal that ended it.

    Args:
        message: PyTorch's error message about the process.
    """
    pid_match = re.search(r"worker \(pid\(?s?\)? ([\d, ]+)\)", message)
    cause = re.search(r"killed by signal: ([^.]+)", message)
    numbers = [int(number) for number in pid_match[1].split(",")] if pid_match else []
    return [file for number in numbers for file in files_read_by(number)], cause[1].strip() if cause else ""


def supervise(command: str, *, again: bool = True, remedy: str = "") -> int | None:
    """Fork a child process to do the work. If the child crashes on a file, report the file.

    Args:
        command: Program and verb, for messages.
        again: Whether the child is then started again without the file; never under torchrun.
        remedy: End of the message if the child is not started again, such as how to resume.

    Returns:
        None in the child, which then does the work and ends (see `is_child`); in the parent, the exit status of the
        last child.
    """
    global _crashed, _suspects, _is_supervised, _is_child  # noqa: PLW0603 - the child inherits them
    if not hasattr(os, "memfd_create") or (again and "RANK" in os.environ) or threading.active_count() > 1:
        return None
    os.environ.pop(_VARIABLE, None)
    if open_notes() is None:
        return None
    _is_supervised = again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    for _ in range(_MOST):
        sys.stdout.flush()
        sys.stderr.flush()
        parent = os.getpid()
        child = os.fork()
        if not child:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            if "RANK" in os.environ:
                os.setpgid(0, 0)  # torchrun signals the group; the parent passes signals on, which would arrive twice
            _die_with(parent)
            _is_child = True
            return None
        status = _wait(child)
        if not os.WIFSIGNALED(status):
            return os.waitstatus_to_exitcode(status)
        number = os.WTERMSIG(status)
        file_names = frozenset(files_read_by(child))
        if number not in _CRASHES or not file_names:
            break
        if not again:
            return _tell_crash(command, file_names, signal.Signals(number).name, remedy)
        # If several files were being read, the guilty one is also being read at the next crash, because suspects are
        # read one at a time.
        guilty = file_names if len(file_names) == 1 else file_names & _suspects
        for file in guilty:
            _crashed = {**_crashed, file: signal.Signals(number).name}
            print(  # noqa: T201 - before the next attempt
                f"{command}: {file}: the library that reads it crashed ({signal.Signals(number).name}); the command "
                "starts again without this file",
                file=sys.stderr,
                flush=True,
            )
        _suspects = (_suspects - guilty) if guilty else file_names
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    return 128 + number


def is_child() -> bool:
    """Return whether this process was forked by `supervise`, so that it must end when its work is done."""
    return _is_child


def _tell_crash(command: str, file_names: frozenset[str], crash: str, remedy: str) -> int:
    """Print which files a crashed process was reading, and return the exit status of an error."""
    names = ", ".join(sorted(file_names))
    explanation = (
        f"the library that reads it crashed ({crash}); the file is damaged: copy or export it again, or remove it"
        if len(file_names) == 1
        else f"the library that reads them crashed ({crash}) on one of these files; `check` finds out which. Copy or "
        "export that file again, or remove it"
    )
    print(f"{command}: {names}: {explanation}{remedy}", file=sys.stderr, flush=True)  # noqa: T201 - of a program
    return 1


def end_as_worker(files: list[str], crash: str) -> None:
    """End this process with the signal of its data loading process, if it is supervised and will be started again."""
    number = next((candidate for candidate in _CRASHES if signal.strsignal(candidate) == crash), None)
    if not _is_supervised or number is None:
        return
    notes = _Notes()
    for slot, file in enumerate(files[:_SLOTS]):
        notes.write(slot * _SLOT, file)
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _die_with(parent: int) -> None:
    """Ask the system to kill this process when its parent ends, however the parent ends."""
    import ctypes  # noqa: PLC0415 - needed by the child only

    with contextlib.suppress(OSError, AttributeError):  # a system library without it
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it has ended in the meantime
        os.kill(os.getpid(), signal.SIGKILL)


def _wait(child: int) -> int:
    """Wait for a child and forward the signals that this process receives, whose `_SIGNALS` are blocked."""
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return status
        info = signal.sigwaitinfo(_SIGNALS)
        if info.si_signo == signal.SIGCHLD or (info.si_signo == signal.SIGINT and info.si_code == _SI_KERNEL):
            continue  # a terminal has also sent the signal to the child
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, info.si_signo)
