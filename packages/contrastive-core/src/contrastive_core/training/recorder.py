"""Record metrics in `metrics.jsonl`, `metrics.csv`, TensorBoard, Weights & Biases and the progress display.

The metrics files depend only on configuration and seed, so that a resumed run ends with the same bytes as an
uninterrupted one. Times are written to the separate file `timing.jsonl`.
"""

from __future__ import annotations

import csv
import dataclasses
import importlib
import io
import json
import math
import secrets
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from contrastive_core.errors import UserError
from contrastive_core.training import files
from contrastive_core.training.checkpoint import Position
from contrastive_core.training.config import Config, RunOptions
from contrastive_core.training.documents import read_json_lines, reading
from contrastive_core.training.processes import Processes
from contrastive_core.training.progress import Watch


class Tracker(Protocol):
    """Destination of metrics records."""

    def write(self, step: int, record: Mapping[str, float]) -> None:
        """Record the values of one step."""

    def close(self) -> None:
        """Flush and close."""


class TensorBoard:
    """TensorBoard event files in `<run>/tensorboard`.

    Records that an interrupted run has written after its last checkpoint are hidden.
    """

    def __init__(self, folder: Path, *, start_step: int) -> None:
        writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter
        self._writer = writer(str(folder / "tensorboard"), purge_step=start_step if start_step else None)

    def write(self, step: int, record: Mapping[str, float]) -> None:
        """Record the values of one step."""
        for name, value in record.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()


class WeightsAndBiases:
    """Run at Weights & Biases, which is continued when the run folder is resumed."""

    def __init__(self, folder: Path, *, config: Mapping[str, Any]) -> None:
        wandb = importlib.import_module("wandb")
        note = folder / ".wandb-id"
        if not note.exists():
            files.write_atomic(note, secrets.token_hex(8).encode())
        self._run = wandb.init(
            dir=str(folder), id=note.read_text(), name=folder.name, config=dict(config), resume="allow"
        )

    def write(self, step: int, record: Mapping[str, float]) -> None:
        """Record the values of one step."""
        self._run.log(dict(record), step=step)

    def close(self) -> None:
        """Flush and close."""
        self._run.finish()


def check_installed(options: RunOptions) -> None:
    """Check, before the run starts, that the libraries of the requested trackers are installed.

    Raises:
        UserError: The library of a requested tracker is not installed.
    """
    for is_enabled, module, extra in (
        (options.tensorboard, "tensorboard", "tensorboard"),
        (options.wandb, "wandb", "wandb"),
    ):
        if not is_enabled:
            continue
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise UserError(
                f"--{extra} was requested, but the library {module!r} cannot be imported ({error}). "
                f"Install it with: pip install 'contrastive-core[{extra}]', or omit --{extra}"
            ) from error


def open_trackers(options: RunOptions, folder: Path, *, config: Mapping[str, Any], start_step: int) -> list[Tracker]:
    """Open the trackers that the options request."""
    trackers: list[Tracker] = []
    if options.tensorboard:
        trackers.append(TensorBoard(folder, start_step=start_step))
    if options.wandb:
        trackers.append(WeightsAndBiases(folder, config=config))
    return trackers


Value = int | float
Record = Mapping[str, Value]


class MetricsFile:
    """Metrics files `metrics.jsonl` and `metrics.csv` of a run.

    The columns of the table are the names in the order of their first appearance; a new name rewrites the table. NaN
    and infinities, which JSON cannot represent, are written as the strings "NaN", "Infinity" and "-Infinity", which
    float() reads.
    """

    def __init__(self, folder: Path) -> None:
        self._jsonl, self._csv = folder / "metrics.jsonl", folder / "metrics.csv"
        self._columns: list[str] = []

    def append(self, record: Record) -> None:
        """Append one record."""
        with files.name_in_errors(self._jsonl), self._jsonl.open("a", encoding="utf-8", newline="\n") as file:
            file.write(_line(record))
        if all(name in self._columns for name in record):
            with files.name_in_errors(self._csv), self._csv.open("a", encoding="utf-8", newline="") as file:
                file.write(_row(self._columns, record))
        else:
            self._rewrite_table()

    def sync(self) -> int:
        """Flush the records to the disk and return their size in bytes."""
        if not self._jsonl.exists():
            return 0
        files.sync(self._jsonl)
        files.sync(self._jsonl.parent)
        return self._jsonl.stat().st_size

    def cut(self, size: int) -> int:
        """Truncate the records to the `size` bytes that a checkpoint covers, and return the number of missing bytes."""
        if not self._jsonl.exists():
            return size
        content = self._jsonl.read_bytes()[:size]
        content = content[: content.rfind(b"\n") + 1]
        files.write_atomic(self._jsonl, content)
        self._rewrite_table()
        return size - len(content)

    def _rewrite_table(self) -> None:
        records = read(self._jsonl)
        self._columns = list(dict.fromkeys(name for record in records for name in record))
        text = _row(self._columns, dict(zip(self._columns, self._columns, strict=True))) if records else ""
        files.write_atomic(self._csv, (text + "".join(_row(self._columns, record) for record in records)).encode())


class TimingFile:
    """File `timing.jsonl` of a run with seconds, speed and the machine, which differ between runs."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "timing.jsonl"

    def begin(self, session: Mapping[str, object]) -> None:
        """Append the record of a start, after removing an incomplete last line left by a killed process."""
        content = self._path.read_bytes() if self._path.exists() else b""
        files.write_atomic(self._path, content[: content.rfind(b"\n") + 1])
        self.append(session)

    def append(self, record: Mapping[str, object]) -> None:
        """Append one record."""
        with files.name_in_errors(self._path), self._path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(record) + "\n")


def read(path: Path) -> list[dict[str, Value]]:
    """Read the records of a `metrics.jsonl`; an incomplete last line, left by a killed process, is ignored."""
    if not path.exists():
        return []
    records = read_json_lines(path)
    with reading(path, "is damaged", "expected numbers by name on every line; restore it from a copy"):
        return [{name: _number(value) for name, value in record.items()} for record in records]


def _number(value: Any) -> Value:
    if isinstance(value, str):  # "NaN" and infinities, which JSON cannot represent
        return float(value)
    if not isinstance(value, int | float):
        raise TypeError(f"found a {type(value).__name__} instead of a number")
    return value


def _line(record: Record) -> str:
    return json.dumps({name: value if math.isfinite(value) else _name(value) for name, value in record.items()}) + "\n"


def _row(columns: Iterable[str], record: Mapping[str, object]) -> str:
    text = io.StringIO()
    values = [record.get(name, "") for name in columns]
    csv.writer(text, lineterminator="\n").writerow(
        [_name(value) if isinstance(value, float) and not math.isfinite(value) else value for value in values]
    )
    return text.getvalue()


def _name(value: float) -> str:
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


class Recorder:
    """Collect the values of a step on every process; process 0 writes their means."""

    def __init__(self, folder: Path, *, processes: Processes, options: RunOptions) -> None:
        self._folder, self._processes, self._options = folder, processes, options
        self._is_main = processes.rank == 0
        self._metrics, self._timing = MetricsFile(folder), TimingFile(folder)
        self._watch = Watch(visible=self._is_main and options.progress)
        self._trackers: list[Tracker] = []
        self._values: dict[str, Value] = {}
        self._is_due = False
        self._start_time = self._mark = 0.0
        self._marked_step = 0

    def begin(self, start: Position, *, device: torch.device, config: Config) -> None:
        """Remove the metrics of steps after `start` and open the trackers."""
        if not self._is_main:
            return
        missing_bytes = self._metrics.cut(start.metrics_bytes)
        if missing_bytes:
            self.say(
                f"warning: {self._folder / 'metrics.jsonl'} lacks the last {missing_bytes} bytes that were written "
                f"before step {start.step}"
            )
        session = {
            "session": start.step,
            "torch": torch.__version__,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "processes": self._processes.world_size,
            "threads": torch.get_num_threads(),
            "options": dataclasses.asdict(self._options),
            "resolved": list(config.resolved),
        }
        self._timing.begin(session)
        self._trackers = open_trackers(self._options, self._folder, config=config.values, start_step=start.step)

    def start(self, step: int, total: int) -> None:
        """Start the clock and the progress display of the loop."""
        self._start_time = self._mark = time.monotonic()
        self._marked_step = step
        self._watch.start(step, total)

    def take(self, scalars: Mapping[str, float | Tensor], *, always: bool = False) -> None:
        """Collect values of the current step; with `always`, they are written even if the step is not logged.

        Raises:
            TypeError: A value is not a number.
            ValueError: A tensor has several elements, or the name is "step".
        """
        for name, value in scalars.items():
            if name == "step":
                raise ValueError(
                    "the name 'step' is reserved for the number of the step; log the value by another name"
                )
            if isinstance(value, Tensor) and value.numel() != 1:
                raise ValueError(
                    f"{name} is a tensor of shape {tuple(value.shape)}, expected one number; log its mean, for example"
                )
            number = value.item() if isinstance(value, Tensor) else value
            if not isinstance(number, (int, float)):
                raise TypeError(f"{name} is a {type(number).__name__}, expected a number or a tensor with one element")
            self._values[name] = float(number) if isinstance(number, float) else int(number)
        self._is_due |= always

    def end_step(self, step: int, *, is_logged: bool = False, samples_per_step: int | None = None) -> None:
        """Write the values collected in `step` if the step is logged or `always` was set, and the speed if logged."""
        if is_logged or self._is_due:
            self._is_due = False
            self._write(step)
        if is_logged and self._is_main:
            self._write_speed(step, samples_per_step)

    def _write(self, step: int) -> None:
        """Write the collected values as the record of `step`, averaged over processes."""
        values_by_rank = self._processes.gather(self._values)
        self._values = {}
        names = list(values_by_rank[0])
        for rank, values in enumerate(values_by_rank):
            if list(values) != names:
                raise RuntimeError(
                    f"process {rank} logged {', '.join(values) or 'nothing'} in step {step}, and process 0 logged "
                    f"{', '.join(names) or 'nothing'}; all processes must log the same names in the same order"
                )
        if not names or not self._is_main:
            return
        record = {name: _mean([values[name] for values in values_by_rank]) for name in names}
        self._metrics.append({"step": step, **record})
        self._watch.metrics(record)
        for tracker in self._trackers:
            tracker.write(step, record)

    def _write_speed(self, step: int, samples_per_step: int | None) -> None:
        """Write the speed since the last call."""
        now = time.monotonic()
        speed = (step + 1 - self._marked_step) / max(now - self._mark, 1e-9)
        record = {"step": step, "seconds": round(now - self._start_time, 3), "steps_per_second": round(speed, 4)}
        if samples_per_step is not None:
            record["samples_per_second"] = round(speed * samples_per_step, 2)
        self._timing.append(record)
        self._mark, self._marked_step = now, step + 1

    def advance(self, step: int) -> None:
        """Report that `done` steps are complete."""
        self._watch.advance(step)

    def say(self, message: str) -> None:
        """Print a message, once for all processes."""
        if self._is_main:
            self._watch.say(message)

    def sync(self) -> int:
        """Flush the metrics to the disk and return their size in bytes."""
        return self._metrics.sync()

    def pause(self) -> None:
        """End the progress display of the loop; more values may follow."""
        self._watch.stop()

    def close(self) -> None:
        """Close all files and trackers."""
        self._watch.stop()
        for tracker in self._trackers:
            tracker.close()
        self._trackers = []


def _mean(values: list[Value]) -> Value:
    return values[0] if all(value == values[0] for value in values) else sum(values) / len(values)
