"""Run `python -m` commands in processes forked from one that has imported their libraries.

Importing torch, torchvision and MONAI takes seconds of processor time, more than many a short command itself. A fork
server imports them once; each command is then a process of its own, with the working folder of the server, its own
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
    """A fork server, of which there is one in a process.

    Args:
        modules: What it imports; what is not installed is passed over.
    """

    def __init__(self, modules: Sequence[str]) -> None:
        self._context = multiprocessing.get_context("forkserver")
        set_forkserver_preload(list(modules))

    def run(
        self, module: str, words: Sequence[str], log: Path, *, seconds: float | None = None, **environment: str
    ) -> int | None:
        """Run `python -m module words...`, its output going to the end of the log.

        Returns:
            The exit status, negative for a signal; None if the time was up, and the process and its children killed.
        """
        process = self._context.Process(target=_main, args=(module, list(words), str(log), environment))
        process.start()
        process.join(seconds)
        if process.exitcode is None and process.pid is not None:
            # The child leads a group of its own as soon as it runs; before that there is nobody else to end.
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                process.kill()
            process.join()
            return None
        return process.exitcode


def _main(module: str, words: list[str], log: str, environment: Mapping[str, str]) -> None:
    os.setsid()
    os.environ.update(environment)
    with open(log, "ab") as file:  # noqa: PTH123 - its descriptor is what counts
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())
    sys.argv[1:] = words
    runpy.run_module(module, run_name="__main__", alter_sys=True)
