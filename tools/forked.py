"""Run `python -m` commands in processes forked from a process that has imported their libraries.

Importing torch, torchvision and MONAI takes seconds of processor time, which is more than many short commands need. A
fork server imports them once. Each command is then a separate process with the working folder of the server, its own
environment variables and its own log.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.forkserver import set_forkserver_preload
from pathlib import Path


class Forked:
    """Fork server, of which a process has only one.

    Args:
        modules: Modules to import; those that are not installed are ignored.
    """

    def __init__(self, modules: Sequence[str]) -> None:
        self._context = multiprocessing.get_context("forkserver")
        set_forkserver_preload(list(modules))

    def run(
        self, module: str, arguments: Sequence[str], log: Path, *, seconds: float | None = None, **environment: str
    ) -> int | None:
        """Run `python -m module words...` and append its output to the log.

        Returns:
            Exit status, negative for a signal; None if the time limit was exceeded and the process was killed together
            with its children.
        """
        process = self._context.Process(target=_main, args=(module, list(arguments), str(log), environment))
        process.start()
        process.join(seconds)
        if process.exitcode is None and process.pid is not None:
            # The child leads its own process group as soon as it runs; before that, it has no children.
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                process.kill()
            process.join()
            return None
        return process.exitcode


def _main(module: str, arguments: list[str], log: str, environment: Mapping[str, str]) -> None:
    os.setsid()
    os.environ.update(environment)
    with open(log, "ab") as file:  # noqa: PTH123 - only the descriptor is used
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())
    sys.argv[1:] = arguments
    runpy.run_module(module, run_name="__main__", alter_sys=True)
