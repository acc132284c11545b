"""Run studies, which are lists of commands, in parallel and without repeating commands that have a result.

A study is a list of jobs, each of which is a command line that can also be run manually. A training that was killed
continues from its last checkpoint when the study is run again.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from tools.forked import Forked
from tools.results import provenance, write_result

_TRAINING = frozenset({"pretrain", "finetune", "distill", "train", "selftrain", "run"})


@dataclass(frozen=True)
class Job:
    """One command of a study.

    Args:
        name: Unique name of the job and its log.
        arguments: Arguments of the program.
        result: File that exists when the job is done.
        after: Names of the jobs whose results the job needs.
        program: Program to run.
    """

    name: str
    arguments: tuple[str, ...]
    result: Path
    after: tuple[str, ...] = ()
    program: str = "ssl-vision"

    @property
    def line(self) -> str:
        """Command line of the job."""
        return f"{self.program} {shlex.join(self.arguments)}"

    @property
    def resuming(self) -> tuple[str, ...]:
        """Arguments of the program, with which a killed training continues."""
        return (*self.arguments, "--resume") if self.arguments[0] in _TRAINING else self.arguments


def run_all(
    jobs: Sequence[Job],
    *,
    logs: Path,
    workers: int,
    call: Callable[[Job, Path], int | None] | None = None,
    deadline: float | None = None,
) -> list[str]:
    """Run all jobs that have no result, in order as far as their dependencies allow.

    Args:
        jobs: Jobs of the study.
        logs: Folder of the logs.
        workers: Number of jobs to run at a time.
        call: Function that runs a job, writes its output to the log and returns the exit status. None: run the job as a
            program.
        deadline: Time by `time.monotonic` after which no job begins; `call` must end running jobs.

    Returns:
        Names of the jobs without a result, which have failed, wait for a failed job, or are out of time.
    """
    logs.mkdir(parents=True, exist_ok=True)
    backlog = [job for job in jobs if not job.result.exists()]
    successes = {job.name for job in jobs if job.result.exists()}
    failures: set[str] = set()
    futures: dict[Future[bool], Job] = {}
    lock = threading.Lock()
    with ThreadPoolExecutor(workers) as pool:
        while True:
            ready = [job for job in backlog if successes.issuperset(job.after)]
            if deadline is not None and time.monotonic() > deadline:
                ready = []
            for job in ready[: workers - len(futures)]:
                backlog.remove(job)
                futures[pool.submit(_run, job, logs, lock, call or start)] = job
            if not futures:
                return sorted(failures | {job.name for job in backlog})
            for future in wait(futures, return_when=FIRST_COMPLETED).done:
                job = futures.pop(future)
                (successes if future.result() else failures).add(job.name)


def start(job: Job, log: Path) -> int:
    """Run a job as a separate program with one thread and return its exit status."""
    command = [sys.executable, "-m", job.program.replace("-", "_"), *job.resuming]
    with log.open("w") as stream:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, env=environment, check=False).returncode


class Starter:
    """Callable that runs jobs in processes forked from a process with imported libraries, until a deadline.

    Args:
        modules: Modules to import before forking.
        deadline: Time by `time.monotonic` at which running jobs are ended; None: no limit.
    """

    def __init__(self, modules: Sequence[str], deadline: float | None) -> None:
        self._forked, self._deadline = Forked(modules), deadline

    def __call__(self, job: Job, log: Path) -> int | None:
        """Run a job and return its exit status, or None if it is out of time."""
        log.write_bytes(b"")
        seconds = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
        module = job.program.replace("-", "_")
        return self._forked.run(module, job.resuming, log, seconds=seconds, OMP_NUM_THREADS="1")


def _run(job: Job, logs: Path, lock: threading.Lock, call: Callable[[Job, Path], int | None]) -> bool:
    with lock:
        print(f"{job.name}: {job.line}", flush=True)
    log = logs / f"{job.name}.log"
    status = call(job, log)
    good = status == 0 and job.result.exists()
    if not good:
        with lock:
            reason = "out of time" if status is None else f"FAILED with status {status}"
            print(f"{job.name}: {reason}; see {log}", file=sys.stderr, flush=True)
    return good


def mean_and_spread(values: Sequence[float], *, decimals: int = 1) -> str:
    """Format mean and standard deviation over seeds or draws: `61.3 ± 0.4`."""
    if len(values) < 2:
        return f"{values[0]:.{decimals}f}"
    return f"{statistics.mean(values):.{decimals}f} ± {statistics.stdev(values):.{decimals}f}"


HALF_PER_CLASS = 2500


def signed(values: Sequence[float], *, decimals: int = 1) -> str:
    """Format mean and standard error of differences: ``+1.5 ± 0.4``."""
    error = f" ± {statistics.stdev(values) / len(values) ** 0.5:.{decimals}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):+.{decimals}f}{error}"


def half_of(cifar10: Path, out: Path) -> Path:
    """Create a folder with half of the training images of CIFAR-10, unless it exists, and return it."""
    if not (out / "test").exists():
        for folder in sorted(path for path in (cifar10.resolve() / "train").iterdir() if path.is_dir()):
            (out / "train" / folder.name).mkdir(parents=True, exist_ok=True)
            for image in sorted(folder.iterdir())[:HALF_PER_CLASS]:
                (out / "train" / folder.name / image.name).symlink_to(image)
        (out / "test").symlink_to(cifar10.resolve() / "test")
    return out


SEEDS = (0, 1, 2)

ENCODERS = {"simclr": 0.25, "small": 0.125}  # channel multiplier of ResNet-18
PER_CLASS = {1: 25, 10: 250}  # percent of 25,000 images -> labelled images of each of ten classes
PRETRAIN = ("--config", "simclr-cifar10-cpu", "--head.layers", "3", "--threads", "1")
TRAIN = ("--batch_size", "64", "--precision", "bf16-mixed", "--threads", "1")
EPOCHS = {1: "60", 10: "20"}  # of fine-tuning: 15,000 and 50,000 images
EPOCHS_FROM_SCRATCH = {1: "150", 10: "45"}


@dataclass(frozen=True)
class Place:
    """Folders of the images and of the runs."""

    data: Path
    runs: Path

    def labels(self) -> Job:
        """Return the job that draws labelled images for every seed, and 2,500 images for choosing settings."""
        counts = f"[{', '.join(map(str, PER_CLASS.values()))}]"
        command = ("make-splits", str(self.data), str(self.runs / "labels"), "--per_class", counts, "--fractions", "[]")
        return Job("labels", (*command, "--validation-fraction", "0.1"), self.runs / "labels" / "validation.json")

    def label_file(self, percent: int, seed: int) -> Path:
        """Return the label file of a seed."""
        return self.runs / "labels" / f"{PER_CLASS[percent]}-per-class-draw{seed}.json"

    def pretraining(self, encoder: str, seed: int) -> Job:
        """Return the job that pre-trains an encoder by SimCLR for 8 epochs (397,312 views), saved every 2 epochs."""
        name = f"{encoder}-s{seed}"
        arguments = (
            *(
                "pretrain",
                str(self.data),
                str(self.runs / name),
                *PRETRAIN,
                "--encoder.width_multiplier",
                str(ENCODERS[encoder]),
            ),
            *("--epochs", "8", "--save_every", "2", "--seed", str(seed)),
        )
        return Job(name, arguments, self.model(name))

    def finetuning(self, name: str, model: Path, percent: int, seed: int, *, after: str, layer: int = 0) -> list[Job]:
        """Return the jobs that fine-tune a model on the labels of a seed and test it."""
        arguments = (
            *("finetune", str(model), str(self.data), str(self.runs / name), *TRAIN, "--epochs", EPOCHS[percent]),
            *("--optimizer.lr", "0.1", "--from_layer", str(layer)),
            *("--labels", str(self.label_file(percent, seed)), "--seed", str(seed)),
        )
        return [Job(name, arguments, self.model(name), ("labels", after)), self.test(name)]

    def supervised(self, encoder: str, percent: int, seed: int) -> list[Job]:
        """Return the jobs that train the same network from scratch, on the labels alone, and test it."""
        name = f"supervised-{encoder}-{percent}-s{seed}"
        arguments = (
            *("finetune", "none", str(self.data), str(self.runs / name), "--config", "supervised", *TRAIN),
            *("--encoder.width_multiplier", str(ENCODERS[encoder]), "--epochs", EPOCHS_FROM_SCRATCH[percent]),
            *("--labels", str(self.label_file(percent, seed)), "--seed", str(seed)),
        )
        return [Job(name, arguments, self.model(name), ("labels",)), self.test(name)]

    def test(self, name: str) -> Job:
        """Return the job that scores a classifier on the test images."""
        arguments = ("evaluate", str(self.runs / name), str(self.data), "--name", "test")
        return Job(f"{name}-test", arguments, self._scores(name), (name,))

    def model(self, name: str) -> Path:
        """Return the file that exists when a run has ended."""
        return self.runs / name / "model" / "model.json"

    def top1(self, name: str) -> float:
        """Read the test accuracy of a run in percent."""
        return float(json.loads(self._scores(name).read_text())["top1"])

    def _scores(self, name: str) -> Path:
        return self.runs / name / "evaluation" / "test.json"


def parse(description: str | None) -> argparse.Namespace:
    """Parse the arguments of a study."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, required=True, help="folder of CIFAR-10 with train/<class> and test/<class>"
    )
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs")
    parser.add_argument(
        "--workers", type=int, default=2, help="number of commands to run at a time, with one thread each"
    )
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def perform(study: Callable[[Place], list[Job]], arguments: argparse.Namespace) -> tuple[Place, list[Job]]:
    """Run all jobs of a study that have no result.

    Raises:
        SystemExit: A command failed; the message names it.
    """
    place = Place(half_of(arguments.data, arguments.runs / "data"), arguments.runs)
    jobs = study(place)
    missing = run_all(jobs, logs=arguments.runs / "logs", workers=arguments.workers)
    if missing:
        raise SystemExit(f"no results were written, because these jobs failed: {', '.join(missing)}")
    return place, jobs


def write(
    out: Path,
    jobs: Sequence[Job],
    *,
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    notes: Sequence[str],
    accuracies: Mapping[str, object],
) -> None:
    """Write the results file of a study."""
    write_result(
        out,
        {
            "name": out.stem,
            **provenance(),
            "seeds": list(SEEDS),
            "config": {"commands": [job.line for job in jobs]},
            "table": {"columns": list(columns), "rows": list(rows)},
            "notes": list(notes),
            "accuracies": accuracies,
        },
    )
