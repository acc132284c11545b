"""Stop a run at the end of a step after SIGTERM or SIGINT, and a command that is not in a step at once."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Launchers repeat a signal within milliseconds (torchrun forwards a Ctrl-C that the terminal has sent to all processes;
# coreutils' timeout signals the child and its group). A user who repeats it takes longer.
_REPEAT_SECONDS = 0.5


class Interrupted(Exception):  # noqa: N818 - not an error
    """A run received a signal, wrote a checkpoint and stopped.

    Attributes:
        signum: Number of the signal, such as `signal.SIGTERM`.
    """

    def __init__(self, message: str, *, signum: int) -> None:
        super().__init__(message)
        self.signum = signum


@contextlib.contextmanager
def stoppable(hint: str = "") -> Iterator[None]:
    """Turn SIGTERM and SIGINT inside the block into `Interrupted`, so that files are cleaned up and a message is shown.

    Inside a `SignalWatch`, that is, during the steps of a run, the signals stop the run at the end of the step instead.

    Args:
        hint: End of the message, such as how to resume.

    Raises:
        Interrupted: The process received SIGTERM or SIGINT.
    """
    own, last_signal = os.getpid(), signal.SIGINT

    def stop(signum: int, frame: FrameType | None) -> None:
        nonlocal last_signal
        if os.getpid() != own:  # a forked process ends as usual
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
            return
        last_signal = signal.Signals(signum)
        raise KeyboardInterrupt  # not an Exception, which code between here and the command might catch

    is_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, stop) if is_main else None
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(f"stopped by {last_signal.name}{hint}", signum=last_signal) from None
    finally:
        if is_main:
            signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


class SignalWatch:
    """Context manager that stores SIGTERM and SIGINT in `signum`; a repeated signal ends the process immediately.

    Python delivers signals only to the main thread; in other threads, the context manager has no effect. The previous
    handlers are restored on exit.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._since = 0.0
        self._before: dict[int, Any] = {}
        self._pid = os.getpid()

    def __enter__(self) -> SignalWatch:
        if threading.current_thread() is threading.main_thread():
            for signum in _SIGNALS:
                self._before[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for signum, handler in self._before.items():
            # None: the handler was not installed from Python and cannot be restored by Python.
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)
        self._before.clear()

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            # A forked data worker ignores Ctrl-C, which its parent handles; SIGTERM ends only the worker.
            if signum == signal.SIGTERM:
                signal.signal(signum, signal.SIG_DFL)
                os.kill(os.getpid(), signum)
            return
        if self.signum is None:
            self.signum, self._since = signum, time.monotonic()
        elif time.monotonic() - self._since > _REPEAT_SECONDS:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
