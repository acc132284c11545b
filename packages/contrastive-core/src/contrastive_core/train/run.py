"""A training run: its folder, its processes, its steps."""

from __future__ import annotations

import dataclasses
import os
import random
import shlex
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, overload

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim import Optimizer

from contrastive_core.errors import UserError
from contrastive_core.random import derive
from contrastive_core.train import checkpoint, config, files, model_file, trackers
from contrastive_core.train.interrupt import Interrupted, SignalWatch
from contrastive_core.train.launch import make_fabric
from contrastive_core.train.metrics import MetricsFile, TimingFile, Value
from contrastive_core.train.options import RunOptions
from contrastive_core.train.processes import Processes
from contrastive_core.train.progress import Watch
from contrastive_core.train.sampler import Batches
from contrastive_core.train.sync_batchnorm import convert_sync_batchnorm

_ENGINE = "_run"


class Stateful(Protocol):
    """What a checkpoint can hold."""

    def state_dict(self) -> Any:
        """Everything that changes during training."""

    def load_state_dict(self, state_dict: Any, /) -> Any:
        """Take it back."""


class Run:
    """Context manager around a training loop that can be killed at any moment and go on as if nothing had happened.

    On CPU, a resumed run ends with the same bytes (weights, optimiser, metrics) as one never interrupted, if every
    random draw of the loop comes from `seed`, from torch, random or numpy (which `steps` seeds before each step), or
    from the sample's index, and if everything that changes is tracked.

    Args:
        out: The run folder; new, empty, or with options.resume the folder of the run to go on with.
        config: The resolved arguments, written to config.yaml: numbers, strings, paths, dataclasses, lists, mappings.
        command: What starts this run up to its arguments ("ssl-vision pretrain"), for the line that says how to resume.
        options: See RunOptions.

    Attributes:
        fabric: The Fabric; `run.fabric.backward(loss)` instead of `loss.backward()`.
        device: Where tensors go.
        rank: This process.
        world_size: Number of processes.
        is_main: Whether this is process 0, which writes everything.

    Raises:
        UserError: On entering: the folder is in use, holds something else, or a run with another configuration; a
            device or library that was asked for is not there.
    """

    fabric: Fabric
    device: torch.device
    rank: int
    world_size: int

    def __init__(self, out: str | Path, *, config: Mapping[str, object], command: str, options: RunOptions) -> None:
        self.out = Path(out)
        self.options = options
        self.command = command
        self._given = config
        self._tracked: dict[str, Stateful] = {}
        self._signals = SignalWatch()
        self._trackers: list[trackers.Tracker] = []
        self._lock: files.FolderLock | None = None
        self._start: int | None = None
        self._step: int | None = None
        self._total: int | None = None
        self._finished = True
        self._pending: dict[str, Value] = {}
        self._write_pending = False

    def __enter__(self) -> Run:
        trackers.check_installed(self.options)
        self._config = config.resolve(self._given, self.options)
        self._threads = torch.get_num_threads()
        if self.options.threads:
            torch.set_num_threads(self.options.threads)
        self.fabric = make_fabric(self.options)
        self.device, self.rank, self.world_size = self.fabric.device, self.fabric.global_rank, self.fabric.world_size
        self._processes = Processes(rank=self.rank, world_size=self.world_size)
        self._watch = Watch(shown=self.is_main and self.options.progress)
        self._metrics, self._timing = MetricsFile(self.out), TimingFile(self.out)
        self._processes.on_main(self._open_folder)
        self._seed_everything(self.seed("init"))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()
        if error is None and not self._finished:
            raise RuntimeError(
                f"the loop over run.steps was left in step {self._step} of {self._total}, so that step was neither "
                "recorded nor saved; in zip(), put run.steps(...) first, and do not break out of the loop"
            )

    @property
    def is_main(self) -> bool:
        """Whether this is process 0."""
        return self.rank == 0

    @property
    def is_logged_step(self) -> bool:
        """Whether `log` records in the current step."""
        if self._step is None or self._total is None:
            return False
        return self._step % self.options.log_every == 0 or self._step >= self._total - 1

    def seed(self, *keys: int | str) -> int:
        """A seed for one purpose, a function of options.seed and the keys."""
        return derive(self.options.seed, *keys)

    def say(self, message: str) -> None:
        """Tell the person watching, once for all processes."""
        if self.is_main:
            self._watch.say(message)

    @overload
    def setup(self, model: nn.Module) -> nn.Module: ...
    @overload
    def setup(self, model: nn.Module, optimizer: Optimizer) -> tuple[nn.Module, Optimizer]: ...
    def setup(self, model: nn.Module, optimizer: Optimizer | None = None) -> nn.Module | tuple[nn.Module, Optimizer]:
        """Move to the device, make batch norms synchronous over processes, compile if asked, and wrap by Fabric."""
        if self.world_size > 1:
            if self.device.type == "cuda":
                model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
            else:
                convert_sync_batchnorm(model)
        if self.options.compile:
            model = torch.compile(model)  # type: ignore[assignment]
        if optimizer is None:
            return self.fabric.setup(model)  # type: ignore[no-any-return]
        wrapped, wrapped_optimizer = self.fabric.setup(model, optimizer)
        return wrapped, wrapped_optimizer

    def track(self, **objects: Stateful) -> None:
        """Name what a checkpoint holds: everything that changes during training (model, optimizer, schedule, ...).

        The state must be the same on all processes; process 0 writes it.
        """
        for name, thing in objects.items():
            if not (hasattr(thing, "state_dict") and hasattr(thing, "load_state_dict")):
                raise TypeError(
                    f"{name} is a {type(thing).__name__}; expected an object with state_dict and load_state_dict"
                )
            if name in self._tracked or name == _ENGINE:
                raise ValueError(f"the name {name!r} is taken; track every object once, under a name of its own")
            if self._start is not None:
                raise RuntimeError(
                    f"{name} is tracked after the checkpoint was read; call track before restore and steps"
                )
            self._tracked[name] = thing

    def restore(self) -> int:
        """Read the newest good checkpoint if options.resume, and return the step to begin with; `steps` calls it too.

        Raises:
            UserError: There are checkpoints but none can be used, or they hold other things than are tracked.
        """
        if self._start is not None:
            return self._start
        path = self._processes.on_main(self._choose_checkpoint)
        self._start = 0
        covered = 0
        if path is not None:
            try:
                state = checkpoint.load(path)
            except checkpoint.Damaged as problem:
                raise UserError(
                    f"process {self.rank} cannot read {path} ({problem}); expected one folder for all"
                ) from problem
            engine = state.pop(_ENGINE)
            self._start, covered = engine["step"], engine["metrics_bytes"]
            if {*state} != {*self._tracked}:
                raise UserError(
                    f"{path} holds {', '.join(sorted(state))}; this program tracks {', '.join(sorted(self._tracked))}. "
                    "Resume with the version of the program that wrote it"
                )
            for name, thing in self._tracked.items():
                try:
                    thing.load_state_dict(state[name])
                except (RuntimeError, ValueError, KeyError) as error:
                    raise UserError(f"{path} does not fit: {name} refuses its state ({error})") from error
            self.fabric.strategy.precision.load_state_dict(engine["precision"])
            if engine["world_size"] != self.world_size:
                self.say(f"note: written by {engine['world_size']} process(es), going on with {self.world_size}")
            self.say(f"resumed from {path}")
        if self.is_main:
            lost = self._metrics.cut(covered)
            if lost:
                self.say(f"warning: {self.out / 'metrics.jsonl'} lacks its last {lost} bytes before step {self._start}")
            self._timing.append(self._session())
            self._trackers = trackers.open_trackers(
                self.options, self.out, config=self._config.values, start_step=self._start
            )
        return int(self._start)

    def batches(self, n: int, *, batch_size: int, total_steps: int) -> Batches:
        """Sample indices for this process, beginning where the run goes on; see Batches."""
        return Batches(
            n,
            batch_size=batch_size,
            seed=self.seed("batches"),
            rank=self.rank,
            world_size=self.world_size,
            start_step=min(self.restore(), total_steps),
            total_steps=total_steps,
        )

    def steps(self, total: int, *, samples_per_step: int | None = None) -> Iterator[int]:
        """The steps still to do; between two of them the engine records, saves and answers signals.

        Before a step torch, random and numpy are seeded by (seed, step, rank). After its body the logged values are
        written, a checkpoint on its cadence and after the last step, and SIGTERM or SIGINT is answered by a checkpoint
        and Interrupted (over several processes one step later, when all have heard of it).

        Args:
            total: Steps of the whole run.
            samples_per_step: Samples per step over all processes, for the speed in timing.jsonl.
        """
        start = self.restore()
        if start > total:
            raise UserError(
                f"the checkpoint in {self.out} is at step {start}, after the end of this run of {total} steps"
            )
        self._total, self._finished = total, False
        self._begun = self._mark = time.monotonic()
        self._marked_step = start
        if self.is_main:
            self._watch.start(start, total)
        self._signals.__enter__()
        for step in range(start, total):
            self._step = step
            self._seed_everything(self.seed("step", step, self.rank))
            yield step
            self._end_step(step, total, samples_per_step)
        self._signals.__exit__(None, None, None)
        self._step, self._finished = total, True
        self._watch.stop()
        self._seed_everything(self.seed("step", total, self.rank))

    def log(self, **scalars: float | Tensor) -> None:
        """Record values of the current step, if it is a logged one: every options.log_every steps and the last.

        Tensors are read (`.item()`) in logged steps only, so that an accelerator is not kept waiting. Over several
        processes the mean is recorded; all must log the same names.
        """
        if self.is_logged_step:
            self._take(scalars)

    def record(self, **scalars: float | Tensor) -> None:
        """Record values of the current step whether it is a logged one or not; after the loop, of step `total`."""
        self._take(scalars)
        self._write_pending = True
        if self._finished:
            self._write_metrics()

    def save_model(
        self, tensors: Mapping[str, Tensor], metadata: Mapping[str, object], *, folder: str = "model"
    ) -> Path:
        """Write model.safetensors and model.json, which `load_model` reads, to `folder` inside the run; returns it."""
        target = self.out / folder
        self._processes.on_main(lambda: model_file.save_model(target, tensors, metadata))
        return target

    # ---- the folder

    def _open_folder(self) -> None:
        if self.out.exists() and not self.out.is_dir():
            raise UserError(f"{self.out} is a file; expected a folder to write the run to")
        self.out.mkdir(parents=True, exist_ok=True)
        written = sorted(path.name for path in self.out.iterdir() if not path.name.startswith("."))
        config_path = self.out / "config.yaml"
        if written and not config_path.is_file():
            raise UserError(
                f"{self.out} is not empty (it holds {written[0]}{', ...' if len(written) > 1 else ''}) and not a run "
                "folder (there is no config.yaml in it); expected a new or empty folder. Choose another --out"
            )
        if written and not self.options.resume:
            raise UserError(
                f"{self.out} already holds a run; expected a new or empty folder. Go on with that run by adding "
                "--resume, or choose another --out"
            )
        self._lock = files.FolderLock(self.out)
        if not self._lock.acquire():
            raise UserError(f"{self.out} is being written by another process; wait for it to end, or stop it")
        if not written:
            self._config.write(config_path)
            return
        changed = self._config.differences(config.read(config_path))
        if changed:
            raise UserError(
                f"{self.out} holds a run with other settings (in its config.yaml -> now):\n  "
                + "\n  ".join(changed)
                + f"\nGo on with the settings it has by\n  {self.resume_command}\nor start a new run in another --out"
            )

    @property
    def resume_command(self) -> str:
        """The command line that goes on with this run."""
        out = shlex.quote(str(self.out))
        plain = f"{self.command} --config {shlex.quote(str(self.out / 'config.yaml'))} --out {out} --resume"
        if self.world_size == 1:
            return plain
        return f"torchrun --nproc-per-node {os.environ.get('LOCAL_WORLD_SIZE', self.world_size)} --no-python {plain}"

    def _choose_checkpoint(self) -> Path | None:
        folder = self.out / "checkpoints"
        if not self.options.resume:
            return None
        newest = checkpoint.load_newest(folder, say=self.say)
        checkpoint.prune(folder, keep=self.options.keep_checkpoints)
        return newest[0] if newest else None

    def _save_checkpoint(self, done: int) -> Path:
        state = {name: thing.state_dict() for name, thing in self._tracked.items()}
        state[_ENGINE] = {
            "step": done,
            "metrics_bytes": self._metrics.sync(),
            "world_size": self.world_size,
            "precision": self.fabric.strategy.precision.state_dict(),
        }
        folder = self.out / "checkpoints"
        try:
            path = checkpoint.save(folder, done, state)
            checkpoint.prune(folder, keep=self.options.keep_checkpoints)
        except OSError as error:
            raise UserError(
                f"cannot write the checkpoint of step {done} to {folder}: {error}. Put that right, then go on by\n"
                f"  {self.resume_command}"
            ) from error
        return path

    def _session(self) -> dict[str, object]:
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        return {
            "session": self._start,
            "torch": torch.__version__,
            "device": name,
            "processes": self.world_size,
            "threads": torch.get_num_threads(),
            "options": dataclasses.asdict(self.options),
        }

    # ---- the steps

    def _seed_everything(self, seed: int) -> None:
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002 - the global generator is the one a loop may use unawares

    def _end_step(self, step: int, total: int, samples_per_step: int | None) -> None:
        done = step + 1
        if self.is_logged_step or self._write_pending:
            self._write_metrics()
        if self.is_logged_step and self.is_main:
            self._write_timing(step, samples_per_step)
        signum = self._processes.vote(self._signals.signum or 0, final=done == total)
        due = signum or done == total or done % self.options.checkpoint_every == 0
        if self.is_main:
            if due:
                self._save_checkpoint(done)
            self._watch.advance(done)
        if signum:
            self._stop(signum, done, total)

    def _stop(self, signum: int, done: int, total: int) -> None:
        self._close()
        self._processes.wait()  # nobody leaves, and makes torchrun end the others, before the checkpoint is complete
        name = signal.Signals(signum).name
        message = f"stopped by {name} after step {done} of {total}"
        if self.is_main:
            message += f"; everything is saved in {self.out}. Go on by\n  {self.resume_command}"
        raise Interrupted(message, signum=signum)

    def _take(self, scalars: Mapping[str, float | Tensor]) -> None:
        if self._step is None:
            raise RuntimeError("values are recorded inside the loop over run.steps, or after it; no step has begun")
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
            self._pending[name] = float(number) if isinstance(number, float) else int(number)

    def _write_metrics(self) -> None:
        everyone = self._processes.gather(self._pending)
        self._pending, self._write_pending = {}, False
        names = list(everyone[0])
        for rank, values in enumerate(everyone):
            if list(values) != names:
                raise RuntimeError(
                    f"process {rank} logged {', '.join(values) or 'nothing'} in step {self._step}, process 0 "
                    f"{', '.join(names) or 'nothing'}; all must log the same names in the same order"
                )
        if not names or not self.is_main:
            return
        record = {name: _mean([values[name] for values in everyone]) for name in names}
        assert self._step is not None  # noqa: S101 - for the type checker
        self._metrics.append({"step": self._step, **record})
        self._watch.metrics(record)
        for tracker in self._trackers:
            tracker.write(self._step, record)

    def _write_timing(self, step: int, samples_per_step: int | None) -> None:
        now = time.monotonic()
        speed = (step + 1 - self._marked_step) / max(now - self._mark, 1e-9)
        record: dict[str, object] = {
            "step": step, "seconds": round(now - self._begun, 3), "steps_per_second": round(speed, 4),
        }  # fmt: skip
        if samples_per_step is not None:
            record["samples_per_second"] = round(speed * samples_per_step, 2)
        self._timing.append(record)
        self._mark, self._marked_step = now, step + 1

    def _close(self) -> None:
        self._signals.__exit__(None, None, None)
        self._watch.stop()
        for tracker in self._trackers:
            tracker.close()
        self._trackers = []
        if self._lock is not None:
            self._lock.release()
            self._lock = None
        torch.set_num_threads(self._threads)


def _mean(values: list[Value]) -> Value:
    return values[0] if all(value == values[0] for value in values) else sum(values) / len(values)
