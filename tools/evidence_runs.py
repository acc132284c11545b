"""Experiments made of commands: what has a result already is not run again, the rest runs side by side.

A study is a list of jobs, each a command line of a package that anybody can give by hand. A training killed half-way
goes on from its last checkpoint when the study is run again.
"""

from __future__ import annotations

import os
import shlex
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

_TRAINING = frozenset({"pretrain", "finetune", "distill", "train", "selftrain", "run"})


@dataclass(frozen=True)
class Job:
    """One command.

    Args:
        name: unique; also that of its log.
        words: what follows the program's name.
        result: the file that exists when it is done.
        after: names of jobs whose results it needs.
        program: whose command it is.
    """

    name: str
    words: tuple[str, ...]
    result: Path
    after: tuple[str, ...] = ()
    program: str = "ssl-vision"

    @property
    def line(self) -> str:
        """The command line."""
        return f"{self.program} {shlex.join(self.words)}"

    @property
    def resuming(self) -> tuple[str, ...]:
        """Its words, such that a training that was killed goes on."""
        return (*self.words, "--resume") if self.words[0] in _TRAINING else self.words


def run_all(
    jobs: Sequence[Job], *, logs: Path, workers: int, call: Callable[[Job, Path], int] | None = None
) -> list[str]:
    """Run what has no result yet, in order as far as the needs allow.

    Args:
        jobs: all of them.
        logs: folder of their logs.
        workers: jobs at a time.
        call: how one is run, its output going to the log, and which status it ends with; None: as a program.

    Returns:
        Names of the jobs without a result: failed, or waiting for one that did.
    """
    logs.mkdir(parents=True, exist_ok=True)
    waiting = [job for job in jobs if not job.result.exists()]
    done = {job.name for job in jobs if job.result.exists()}
    failed: set[str] = set()
    running: dict[Future[bool], Job] = {}
    lock = threading.Lock()
    with ThreadPoolExecutor(workers) as pool:
        while True:
            for job in [job for job in waiting if done.issuperset(job.after)][: workers - len(running)]:
                waiting.remove(job)
                running[pool.submit(_run, job, logs, lock, call or start)] = job
            if not running:
                return sorted(failed | {job.name for job in waiting})
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job = running.pop(future)
                (done if future.result() else failed).add(job.name)


def start(job: Job, log: Path) -> int:
    """The job as a program of its own, with one thread."""
    command = [sys.executable, "-m", job.program.replace("-", "_"), *job.resuming]
    with log.open("w") as stream:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, env=environment, check=False).returncode


def _run(job: Job, logs: Path, lock: threading.Lock, call: Callable[[Job, Path], int]) -> bool:
    with lock:
        print(f"{job.name}: {job.line}", flush=True)
    log = logs / f"{job.name}.log"
    status = call(job, log)
    good = status == 0 and job.result.exists()
    if not good:
        with lock:
            print(f"{job.name}: FAILED with status {status}; see {log}", file=sys.stderr, flush=True)
    return good


def mean_and_spread(values: Sequence[float], *, decimals: int = 1) -> str:
    """`61.3 ± 0.4`: mean and standard deviation over seeds or draws."""
    if len(values) < 2:
        return f"{values[0]:.{decimals}f}"
    return f"{statistics.mean(values):.{decimals}f} ± {statistics.stdev(values):.{decimals}f}"
