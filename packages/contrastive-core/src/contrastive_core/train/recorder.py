"""Where the numbers of a run go: files, trackers, and the person watching."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from contrastive_core.train.metrics import MetricsFile, TimingFile, Value
from contrastive_core.train.options import RunOptions
from contrastive_core.train.processes import Processes
from contrastive_core.train.progress import Watch
from contrastive_core.train.snapshots import Position
from contrastive_core.train.trackers import Tracker, open_trackers


class Recorder:
    """Collects the values of a step on every process and lets process 0 write their means."""

    def __init__(self, folder: Path, *, processes: Processes, options: RunOptions) -> None:
        self._folder, self._processes, self._options = folder, processes, options
        self._is_main = processes.rank == 0
        self._metrics, self._timing = MetricsFile(folder), TimingFile(folder)
        self._watch = Watch(shown=self._is_main and options.progress)
        self._trackers: list[Tracker] = []
        self._values: dict[str, Value] = {}
        self._is_due = False
        self._begun = self._mark = 0.0
        self._marked_step = 0

    def begin(self, start: Position, *, device: torch.device, config: Mapping[str, Any]) -> None:
        """Keep the metrics that belong to the steps before `start`, and open the trackers."""
        if not self._is_main:
            return
        lost = self._metrics.cut(start.metrics_bytes)
        if lost:
            self.say(f"warning: {self._folder / 'metrics.jsonl'} lacks the last {lost} bytes before step {start.step}")
        session = {
            "session": start.step,
            "torch": torch.__version__,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "processes": self._processes.world_size,
            "threads": torch.get_num_threads(),
            "options": dataclasses.asdict(self._options),
        }
        self._timing.begin(session)
        self._trackers = open_trackers(self._options, self._folder, config=config, start_step=start.step)

    def start(self, step: int, total: int) -> None:
        """The loop begins."""
        self._begun = self._mark = time.monotonic()
        self._marked_step = step
        self._watch.start(step, total)

    def take(self, scalars: Mapping[str, float | Tensor], *, always: bool = False) -> None:
        """Values of the current step; `always`: they are to be written even if it is no logged one.

        Raises:
            TypeError: One is not a number.
            ValueError: A tensor holds several numbers, or the name is "step".
        """
        for name, value in scalars.items():
            if name == "step":
                raise ValueError("the name 'step' is the record's own; log the value under another name")
            if isinstance(value, Tensor) and value.numel() != 1:
                raise ValueError(
                    f"{name} is a tensor of shape {tuple(value.shape)}; expected one number (take its mean?)"
                )
            number = value.item() if isinstance(value, Tensor) else value
            if not isinstance(number, (int, float)):
                raise TypeError(f"{name} is a {type(number).__name__}; expected a number or a tensor with one element")
            self._values[name] = float(number) if isinstance(number, float) else int(number)
        self._is_due |= always

    def end_step(self, step: int, *, is_logged: bool = False, samples_per_step: int | None = None) -> None:
        """Write what was taken in `step`, if it is a logged one or must be written always, and the speed if logged."""
        if is_logged or self._is_due:
            self._is_due = False
            self._write(step)
        if is_logged and self._is_main:
            self._write_speed(step, samples_per_step)

    def _write(self, step: int) -> None:
        """Write what was taken, as the record of `step`: the mean over processes."""
        everyone = self._processes.gather(self._values)
        self._values = {}
        names = list(everyone[0])
        for rank, values in enumerate(everyone):
            if list(values) != names:
                raise RuntimeError(
                    f"process {rank} logged {', '.join(values) or 'nothing'} in step {step}, process 0 "
                    f"{', '.join(names) or 'nothing'}; all must log the same names in the same order"
                )
        if not names or not self._is_main:
            return
        record = {name: _mean([values[name] for values in everyone]) for name in names}
        self._metrics.append({"step": step, **record})
        self._watch.metrics(record)
        for tracker in self._trackers:
            tracker.write(step, record)

    def _write_speed(self, step: int, samples_per_step: int | None) -> None:
        """Write the speed since the last call."""
        now = time.monotonic()
        speed = (step + 1 - self._marked_step) / max(now - self._mark, 1e-9)
        record = {"step": step, "seconds": round(now - self._begun, 3), "steps_per_second": round(speed, 4)}
        if samples_per_step is not None:
            record["samples_per_second"] = round(speed * samples_per_step, 2)
        self._timing.append(record)
        self._mark, self._marked_step = now, step + 1

    def advance(self, done: int) -> None:
        """`done` steps are complete."""
        self._watch.advance(done)

    def say(self, message: str) -> None:
        """Tell the person watching, once for all processes."""
        if self._is_main:
            self._watch.say(message)

    def sync(self) -> int:
        """Force the metrics to the disk; how many bytes they are."""
        return self._metrics.sync()

    def pause(self) -> None:
        """The loop is over; more values may come."""
        self._watch.stop()

    def close(self) -> None:
        """No more values come."""
        self._watch.stop()
        for tracker in self._trackers:
            tracker.close()
        self._trackers = []


def _mean(values: list[Value]) -> Value:
    return values[0] if all(value == values[0] for value in values) else sum(values) / len(values)
