"""Run everything that needs a GPU, in order of importance, within a few minutes and without a network.

    python -m tools.gpu.run --out out                  # on the GPU machine, in the folder written by tools.gpu.pack
    python -m tools.gpu.run --out out --rehearse       # the same stages at tiny sizes on the CPU

`stages.yaml` lists the stages. A stage has one or more commands with a common time limit. The stages of a group run at
the same time. After every stage, `gpu.json` (results), `log.txt` (output of the commands) and `runs.tar.gz` (metrics
and records of the training runs) are written again, so that an interrupted run preserves its results. A stage that
fails or exceeds its time limit is recorded and does not stop the others. A rehearsal runs the same commands, but forks
them from a process that has imported their libraries, so that it takes less than a minute.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shlex
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tools.forked import Forked

ROOT = Path(__file__).resolve().parents[2]
STAGES = Path(__file__).with_name("stages.yaml")
SOURCES = [ROOT, *sorted((ROOT / "packages").glob("*/src"))]
LARGEST_FILE = 2 << 20  # of a run's files, the largest that is kept
_PATIENCE = 5  # times the limits in a rehearsal: a CPU may be busy with other work
# What the stages import; those of the GPU machine that are missing here, and the other way round, are passed over.
LIBRARIES = (
    "torch", "torchvision", "monai", "nibabel", "matplotlib", "ssl_vision.commands.pretrain",
    "ssl_medseg.selftraining.training", "ssl_medseg.reports.evaluation", "ssl_video.mvpl.method",
)  # fmt: skip
LARGEST_LOG = 200_000  # characters of a stage's output, its end


@dataclass
class Stage:
    """Commands to run, and their results.

    Attributes:
        name: Name of the stage, its folder and its entry in the results.
        seconds: Time limit of all commands together.
        commands: Argument lists, in which `{python}`, `{device}`, `{data}`, `{work}` (folder of the stage), `{runs}`
            (folder of all stages) and `{acdc}` (value of `--acdc`) are replaced.
        group: Number of the group; consecutive stages with the same number run at the same time.
        last: Seconds of the time limit that are reserved for the last command, which runs even if previous commands
            failed or were out of time, because it collects their results.
        rehearse: Additional arguments of each command in a rehearsal; None to omit the stage.
        record: Record of the run: seconds, the commands with their exit status, and the JSON files that they wrote.
    """

    name: str
    seconds: float
    commands: list[list[str]]
    group: int
    last: float = 0
    rehearse: list[list[str]] | None = field(default_factory=list)
    record: dict[str, Any] = field(default_factory=dict)


class Session:
    """Execution of all stages of one call."""

    def __init__(self, out: Path, work: Path, *, device: str, data: Path, budget: float) -> None:
        self.out, self.work, self.device, self.data = out, work, device, data
        self.begun, self.budget = time.monotonic(), budget
        self.stages: list[Stage] = []
        self.more: dict[str, list[str]] = {}
        self.forked: Forked | None = None
        self.environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": self.search_path()}
        self._lock = threading.Lock()

    def search_path(self) -> str:
        site = self.work / "site"
        return os.pathsep.join(map(str, [*SOURCES, site, *filter(None, [os.environ.get("PYTHONPATH")])]))

    def left(self) -> float:
        """Return the remaining seconds of the budget."""
        return self.budget - (time.monotonic() - self.begun)

    def run(self, stage: Stage) -> None:
        """Run the commands of a stage one after another until one fails or the time limit is exceeded."""
        folder = self.work / stage.name
        folder.mkdir(parents=True, exist_ok=True)
        begun, deadline = time.monotonic(), time.monotonic() + min(stage.seconds, self.left())
        stage.record = {"begun": round(begun - self.begun, 1), "commands": []}
        self._log(stage).unlink(missing_ok=True)
        with self._log(stage).open("a") as log:  # commands write to its end, too
            for number, command in enumerate(stage.commands, 1):
                is_last = number == len(stage.commands)
                names = {"python": sys.executable, "device": self.device, "data": self.data, "runs": self.work}
                arguments = [argument.format(work=folder, **names) for argument in self._expand(command)]
                print("$", *arguments, file=log, flush=True)
                if stage.last and not is_last and any(c["status"] != 0 for c in stage.record["commands"]):
                    continue
                status = self._wait(arguments, self._log(stage), deadline if is_last else deadline - stage.last)
                stage.record["commands"].append({"line": " ".join(arguments[1:]), "status": status})
                if status != 0 and not stage.last:
                    break
        stage.record["seconds"] = round(time.monotonic() - begun, 1)
        stage.record["results"] = {
            str(path.relative_to(folder)): _read(path)
            for path in sorted(folder.glob("*.json"))
        }  # fmt: skip
        ends = [command["status"] for command in stage.record["commands"]]
        print(f"{time.monotonic() - self.begun:5.0f} s  {stage.name}: {ends}", flush=True)
        self.write()

    def _expand(self, command: Sequence[str]) -> list[str]:
        """Return the command with each `{NAME}` replaced by its arguments."""
        return [argument for entry in command for argument in (self.more.get(entry, [entry]))]

    def _wait(self, command: Sequence[str], log: Path, deadline: float) -> int | str:
        """Run a command and return its exit status, or a description of what happened instead."""
        seconds = deadline - time.monotonic()
        if seconds < 0.1:
            return "out of time"
        if self.forked is not None and command[1:2] == ["-m"]:
            status = self.forked.run(command[2], command[3:], log, seconds=seconds)
            return "out of time" if status is None else status
        try:
            with log.open("ab") as file:
                process = subprocess.Popen(
                    command,
                    cwd=ROOT,
                    env=self.environment,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        except OSError as error:
            return f"did not start: {error}"
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return "out of time"

    def _log(self, stage: Stage) -> Path:
        return self.work / f"{stage.name}.log"

    def write(self) -> None:
        """Write the results so far, each file atomically."""
        with self._lock:
            results = {stage.name: stage.record for stage in self.stages if stage.record}
            record = {"seconds": round(time.monotonic() - self.begun, 1), "machine": machine(), "stages": results}
            _replace(self.out / "gpu.json", json.dumps(record, indent=1).encode())
            logs = [
                f"=== {stage.name}\n{self._log(stage).read_text(errors='replace')[-LARGEST_LOG:]}"
                for stage in self.stages
                if self._log(stage).is_file()
            ]
            _replace(self.out / "log.txt", "\n".join(logs).encode())
            beside = self.out / ".runs.tar.gz"
            with tarfile.open(beside, "w:gz") as archive:
                for stage in self.stages:
                    for path in sorted((self.work / stage.name).rglob("*")):
                        is_report = path.suffix in (".json", ".jsonl", ".yaml", ".csv", ".html", ".txt")
                        if is_report and path.is_file() and path.stat().st_size <= LARGEST_FILE:
                            archive.add(path, path.relative_to(self.work))
            beside.replace(self.out / "runs.tar.gz")


def machine() -> dict[str, str]:
    """Return the GPU and its driver as named by nvidia-smi, or an empty result without a GPU."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,clocks.sm", "--format=csv,noheader"]
    try:
        output = subprocess.run(query, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(("card", "driver", "memory", "clock"), output.split(", "), strict=False))


def read_stages(path: Path, names: Sequence[str], *, rehearse: bool) -> list[Stage]:
    """Read all stages of a file, or the selected ones; in a rehearsal with the arguments that make them small."""
    stages = [Stage(**entry) for entry in yaml.safe_load(path.read_text())]
    all_names = {stage.name for stage in stages}
    if unknown := set(names) - all_names:
        raise SystemExit(f"--stages: no stage {', '.join(sorted(unknown))}; {path} has {', '.join(sorted(all_names))}")
    selection = [stage for stage in stages if not names or stage.name in names]
    if not rehearse:
        return selection
    for stage in selection:
        stage.seconds *= _PATIENCE
        stage.last *= _PATIENCE
        for command, more in zip(stage.commands, stage.rehearse or [], strict=False):
            command.extend(more)
    return [stage for stage in selection if stage.rehearse is not None]


def prepare(session: Session) -> dict[str, Any]:
    """Unpack the data and install the wheels at the same time, and return the time or the failure of each."""
    site, data = session.work / "site", session.data
    wheels = sorted(map(str, (ROOT / "wheels").glob("*.whl")))
    jobs: dict[str, list[str]] = {}
    for path in sorted((ROOT / "data").glob("*.tar*")):
        folder = data / path.name.partition(".")[0]
        folder.mkdir(parents=True, exist_ok=True)
        jobs[f"unpack {path.name}"] = ["tar", "-C", str(folder), "-xf", str(path)]
    origin = "import json; from tools.results import provenance; print(json.dumps(provenance()))"
    jobs["provenance"] = [sys.executable, "-c", origin]
    if wheels:
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile"]
        jobs["wheels"] = [*pip, "--no-cache-dir", "--target", str(site), *wheels]

    def do(name: str) -> dict[str, Any]:
        begun = time.monotonic()
        process = subprocess.run(
            jobs[name], cwd=ROOT, env=session.environment, capture_output=True, text=True, check=False
        )
        output = f"{process.stdout}{process.stderr}"[-4000:]
        return {"seconds": round(time.monotonic() - begun, 1), "status": process.returncode, "said": output}

    with ThreadPoolExecutor() as pool:
        return dict(zip(jobs, pool.map(do, jobs), strict=True))


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        return f"{error}"


def _replace(path: Path, content: bytes) -> None:
    beside = path.with_name(f".{path.name}")
    beside.write_bytes(content)
    beside.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu.json, log.txt and runs.tar.gz")
    parser.add_argument("--work", type=Path, help="scratch folder; by default a temporary folder")
    parser.add_argument("--data", type=Path, help="folder of the unpacked data; by default in the scratch folder")
    parser.add_argument("--stages", nargs="+", default=[], help="stages to run; by default all")
    parser.add_argument("--file", type=Path, default=STAGES, help="file of the stages")
    parser.add_argument("--acdc", default="", help="additional arguments of the segmentation study, in one string")
    parser.add_argument("--seconds", type=float, default=540, help="time limit of the whole call in seconds")
    parser.add_argument(
        "--rehearse", action="store_true", help="run at tiny sizes on the CPU without installing anything"
    )
    arguments = parser.parse_args()
    work = arguments.work or Path(tempfile.mkdtemp(prefix="contrastive-gpu-"))
    for folder in (arguments.out, work):
        folder.mkdir(parents=True, exist_ok=True)
    session = Session(
        arguments.out.resolve(), work.resolve(), device="cpu" if arguments.rehearse else "cuda",
        data=(arguments.data or work / "data").resolve(), budget=arguments.seconds,
    )  # fmt: skip
    session.more = {"{acdc}": shlex.split(arguments.acdc)}
    session.stages = read_stages(arguments.file, arguments.stages, rehearse=arguments.rehearse)
    if arguments.rehearse:
        session.forked = Forked(LIBRARIES)
    if not arguments.rehearse:
        setup = Stage("prepare", 0, [], -1, record=prepare(session))
        print(f"{time.monotonic() - session.begun:5.0f} s  prepare: {json.dumps(setup.record)[:1500]}", flush=True)
        session.stages.insert(0, setup)
        session.write()
    for group, members in itertools.groupby(session.stages, key=lambda stage: stage.group):
        if group >= 0:
            with ThreadPoolExecutor() as pool:
                list(pool.map(session.run, members))
    if arguments.rehearse and (failed_stages := failures(session.stages)):
        raise SystemExit(f"failed: {', '.join(failed_stages)}; see {arguments.out}/log.txt")


def failures(stages: Sequence[Stage]) -> list[str]:
    """Return the stages with a command that failed."""
    return [s.name for s in stages if any(c["status"] != 0 for c in s.record.get("commands", []))]


if __name__ == "__main__":
    main()
