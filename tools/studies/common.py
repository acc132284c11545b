"""Run studies: lists of commands, in parallel, without repeating those that have a result.

A study is a list of jobs, each a command line that can also be run by hand. A training that was killed continues from
its last checkpoint when the study is run again.
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
    jobs: Sequence[Job],
    *,
    logs: Path,
    workers: int,
    call: Callable[[Job, Path], int | None] | None = None,
    deadline: float | None = None,
) -> list[str]:
    """Run what has no result yet, in order as far as the needs allow.

    Args:
        jobs: all of them.
        logs: folder of their logs.
        workers: jobs at a time.
        call: how one is run, its output going to the log, and which status it ends with; None: as a program.
        deadline: by `time.monotonic`, after which no job begins; `call` ends those that run.

    Returns:
        Names of the jobs without a result: failed, waiting for one that did, or out of time.
    """
    logs.mkdir(parents=True, exist_ok=True)
    waiting = [job for job in jobs if not job.result.exists()]
    done = {job.name for job in jobs if job.result.exists()}
    failed: set[str] = set()
    running: dict[Future[bool], Job] = {}
    lock = threading.Lock()
    with ThreadPoolExecutor(workers) as pool:
        while True:
            ready = [job for job in waiting if done.issuperset(job.after)]
            if deadline is not None and time.monotonic() > deadline:
                ready = []
            for job in ready[: workers - len(running)]:
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


class Starter:
    """Runs jobs in processes forked from one that has imported the programs' libraries, until a deadline.

    Args:
        modules: to import.
        deadline: by `time.monotonic`, at which running jobs are ended; None: never.
    """

    def __init__(self, modules: Sequence[str], deadline: float | None) -> None:
        self._forked, self._deadline = Forked(modules), deadline

    def __call__(self, job: Job, log: Path) -> int | None:
        """Exit status; None: out of time."""
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
            ended = "out of time" if status is None else f"FAILED with status {status}"
            print(f"{job.name}: {ended}; see {log}", file=sys.stderr, flush=True)
    return good


def mean_and_spread(values: Sequence[float], *, decimals: int = 1) -> str:
    """`61.3 ± 0.4`: mean and standard deviation over seeds or draws."""
    if len(values) < 2:
        return f"{values[0]:.{decimals}f}"
    return f"{statistics.mean(values):.{decimals}f} ± {statistics.stdev(values):.{decimals}f}"


HALF_PER_CLASS = 2500


def half_of(cifar10: Path, out: Path) -> Path:
    """Make the folder, unless it is there; returns it."""
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
    """The images, and the folder of the runs."""

    data: Path
    runs: Path

    def labels(self) -> Job:
        """Labelled images, a draw for every seed, and 2,500 others that settings were chosen on."""
        counts = f"[{', '.join(map(str, PER_CLASS.values()))}]"
        words = ("make-splits", str(self.data), str(self.runs / "labels"), "--per_class", counts, "--fractions", "[]")
        return Job("labels", (*words, "--validation-fraction", "0.1"), self.runs / "labels" / "validation.json")

    def label_file(self, percent: int, seed: int) -> Path:
        """The labelled images of a seed."""
        return self.runs / "labels" / f"{PER_CLASS[percent]}-per-class-draw{seed}.json"

    def pretraining(self, encoder: str, seed: int) -> Job:
        """SimCLR with the encoder of that name, kept after every quarter: 8 epochs, 397,312 views."""
        name = f"{encoder}-s{seed}"
        words = (
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
        return Job(name, words, self.model(name))

    def finetuning(self, name: str, model: Path, percent: int, seed: int, *, after: str, layer: int = 0) -> list[Job]:
        """Fine-tune a model on the labels of a seed, and test it."""
        words = (
            *("finetune", str(model), str(self.data), str(self.runs / name), *TRAIN, "--epochs", EPOCHS[percent]),
            *("--optimizer.lr", "0.1", "--from_layer", str(layer)),
            *("--labels", str(self.label_file(percent, seed)), "--seed", str(seed)),
        )
        return [Job(name, words, self.model(name), ("labels", after)), self.test(name)]

    def supervised(self, encoder: str, percent: int, seed: int) -> list[Job]:
        """The same network from scratch, on the labels alone, and its test."""
        name = f"supervised-{encoder}-{percent}-s{seed}"
        words = (
            *("finetune", "none", str(self.data), str(self.runs / name), "--config", "supervised", *TRAIN),
            *("--encoder.width_multiplier", str(ENCODERS[encoder]), "--epochs", EPOCHS_FROM_SCRATCH[percent]),
            *("--labels", str(self.label_file(percent, seed)), "--seed", str(seed)),
        )
        return [Job(name, words, self.model(name), ("labels",)), self.test(name)]

    def test(self, name: str) -> Job:
        """Score a classifier on the test images."""
        words = ("evaluate", str(self.runs / name), str(self.data), "--name", "test")
        return Job(f"{name}-test", words, self._scores(name), (name,))

    def model(self, name: str) -> Path:
        """The file that exists when a run has ended."""
        return self.runs / name / "model" / "model.json"

    def top1(self, name: str) -> float:
        """Its test accuracy in percent."""
        return float(json.loads(self._scores(name).read_text())["top1"])

    def _scores(self, name: str) -> Path:
        return self.runs / name / "evaluation" / "test.json"


def parse(description: str | None) -> argparse.Namespace:
    """The arguments of an experiment."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="CIFAR-10 as a folder train/<class>, test/<class>")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--workers", type=int, default=2, help="commands side by side, a thread each")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def perform(study: Callable[[Place], list[Job]], arguments: argparse.Namespace) -> tuple[Place, list[Job]]:
    """Run what has not run yet.

    Raises:
        SystemExit: a command did not end well; it is named.
    """
    place = Place(half_of(arguments.data, arguments.runs / "data"), arguments.runs)
    jobs = study(place)
    missing = run_all(jobs, logs=arguments.runs / "logs", workers=arguments.workers)
    if missing:
        raise SystemExit(f"no results, for {', '.join(missing)} did not end well")
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
    """Write the results file of an experiment."""
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
