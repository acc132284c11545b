"""Execute a training run with a run folder, seeding, several processes and exact resume."""

from __future__ import annotations

import contextlib
import os
import random
import shlex
import signal
from collections.abc import Callable, Collection, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import overload

import numpy as np
import safetensors
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim import Optimizer

from contrastive_core.errors import UserError
from contrastive_core.rng import derive
from contrastive_core.training import config, files, model_file, recorder
from contrastive_core.training.checkpoint import Position, Snapshots, Stateful
from contrastive_core.training.config import RunOptions
from contrastive_core.training.launch import make_fabric, resolve_precision, set_up, slow_precision
from contrastive_core.training.outputs import claim_folder
from contrastive_core.training.processes import Processes
from contrastive_core.training.recorder import Recorder
from contrastive_core.training.samplers import Batches
from contrastive_core.training.signals import Interrupted, SignalWatch


def resume_command(command: str, out: Path, *, world_size: int) -> str:
    """Return the command line that resumes the run in `out`, started by `command` on `world_size` processes."""
    line = f"{command} --config {shlex.quote(str(out / 'config.yaml'))} --out {shlex.quote(str(out))} --resume"
    if world_size == 1:
        return line
    return f"torchrun --nproc-per-node {os.environ.get('LOCAL_WORLD_SIZE', world_size)} --no-python {line}"


_WHOLE: ContextVar[tuple[str, Path, str] | None] = ContextVar("whole", default=None)


@contextlib.contextmanager
def stages_of(command: str, out: Path, *, again: str = "") -> Iterator[None]:
    """Make the runs inside the block stages of a command, so that users resume this command.

    Args:
        command: Program and verb.
        out: Folder of the command.
        again: Command line that resumes the command, if it is not that of `resume_command`.
    """
    token = _WHOLE.set((command, Path(out), again))
    try:
        yield
    finally:
        _WHOLE.reset(token)


class RunFolder:
    """Run folder, which is locked against other processes while it is open."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_path = path / "config.yaml"
        self._lock: files.FolderLock | None = None

    def open(self, settings: config.Config, *, command: str, resume: bool, resume_command: str) -> None:
        """Create the folder and write the configuration, or check that the folder contains the same run.

        Raises:
            UserError: The path is a file; the folder contains other files, or is in use; it contains a run and `resume`
                is not set; or that run has another configuration.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path} is a file; expected a folder for the run")
        self.path.mkdir(parents=True, exist_ok=True)
        # The configuration is the first file of a run and is written atomically, so other files without it are foreign.
        entries = sorted(entry.name for entry in self.path.iterdir() if not entry.name.startswith("."))
        if entries and not self.config_path.is_file():
            raise UserError(
                f"{self.path} is not empty (it contains {entries[0]}{', ...' if len(entries) > 1 else ''}) and is not "
                "a run folder (it has no config.yaml); expected a new or empty folder. Choose another --out"
            )
        # A start that failed before its first step (for example by a mistyped flag) has left nothing to keep.
        has_begun = any((self.path / name).exists() for name in ("metrics.jsonl", "checkpoints"))
        if has_begun and not resume:
            raise UserError(
                f"{self.path} already contains a run; expected a new or empty folder. Resume that run with "
                "--resume, or choose another --out"
            )
        self._lock = files.FolderLock(self.path)
        if not self._lock.acquire():
            raise UserError(f"{self.path} is being written by another process; wait for it to end, or stop it")
        files.remove_temporaries(self.path)
        if not has_begun:
            claim_folder(self.path, command=command)  # fails if another command wrote config.yaml
            settings.write(self.config_path)
            return
        differences = settings.differences(config.read(self.config_path))
        if differences:
            lines = "\n".join(f"  {line}" for line in differences)
            raise UserError(
                f"{self.path} contains a run with other settings (in its config.yaml -> now):\n{lines}\n"
                f"Resume with the settings of the run by\n  {resume_command}\nor start a new run with another --out"
            )
        settings.rewrite(self.config_path)

    def close(self) -> None:
        """Release the folder."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None


def seed_global_generators(seed: int, device: torch.device) -> None:
    """Seed the global generators of torch (on the CPU and on `device`), random and numpy.

    Unlike torch.manual_seed, this seeds only the devices in use; for other devices, that function formats a stack
    trace.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - code in a loop may use the global generator


def remember_global_generators(device: torch.device) -> Callable[[], None]:
    """Return a function that restores the present states of the generators that `seed_global_generators` seeds."""
    of_random, of_numpy, of_torch = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    on_cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    on_mps = torch.mps.get_rng_state() if device.type == "mps" else None

    def restore() -> None:
        random.setstate(of_random)
        np.random.set_state(of_numpy)  # noqa: NPY002
        torch.set_rng_state(of_torch)
        if on_cuda is not None:
            torch.cuda.set_rng_state(on_cuda, device)
        if on_mps is not None:
            torch.mps.set_rng_state(on_mps)

    return restore


class Run:
    """Context manager around a training loop that can be killed at any time and resumed exactly.

    On the CPU, a resumed run ends with the same bytes (weights, optimiser, metrics) as an uninterrupted run if two
    conditions hold: every random draw of the loop comes from `seed`, from torch, random or numpy (which `steps` seeds
    before each step), or from the sample's index; and every object that changes is tracked. After the run, these
    generators continue as if it had not been there.

    Args:
        out: Run folder, which is new or empty, or with options.resume the folder of the run to resume.
        config: Arguments, written to config.yaml: numbers, strings, paths, dataclasses, lists and mappings.
        command: Program and verb that start the run, such as "ssl-vision pretrain", for messages about resuming.
        options: Options for executing, logging and saving the run.
        free: Names in config that may differ when the run is resumed, because they do not affect the result.
        resolved: Settings that replace those in `config`, because the command chose the values that were not given.

    Attributes:
        fabric: Lightning Fabric of the run; call `run.fabric.backward(loss)` instead of `loss.backward()`.
        device: Device of the tensors.
        rank: Rank of this process.
        world_size: Number of processes.

    Raises:
        UserError: On entry, if the folder is in use, contains other files or a run with another configuration, or if a
            requested device or library is missing.
    """

    fabric: Fabric
    device: torch.device
    rank: int
    world_size: int

    def __init__(
        self,
        out: str | Path,
        *,
        config: Mapping[str, object],
        command: str,
        options: RunOptions,
        free: Collection[str] = (),
        resolved: Mapping[str, object] | None = None,
    ) -> None:
        self.out = Path(out)
        self.options = options
        self.command = command
        self._settings, self._free, self._resolved = config, free, resolved
        self._folder = RunFolder(self.out)
        self._snapshots = Snapshots(self.out / "checkpoints", keep=options.keep_checkpoints)
        self._signals = SignalWatch()
        self._recorder: Recorder | None = None
        self._start: int | None = None
        self._step: int | None = None
        self._total: int | None = None
        self._in_loop = False

    def __enter__(self) -> Run:
        recorder.check_installed(self.options)
        # `auto` is replaced before the options are recorded, so that a resumed run keeps the precision.
        self.options = replace(self.options, precision=resolve_precision(self.options.precision, self.options.device))
        self._config = config.resolve(self._settings, self.options, free=self._free, resolved=self._resolved)
        self.fabric = make_fabric(self.options)
        self.device, self.rank, self.world_size = self.fabric.device, self.fabric.global_rank, self.fabric.world_size
        self._processes = Processes(rank=self.rank, world_size=self.world_size)
        self._threads = torch.get_num_threads()
        try:
            self._processes.on_main(
                lambda: self._folder.open(
                    self._config,
                    command=self.command,
                    resume=self.options.resume,
                    resume_command=self.resume_command,
                )
            )
        except BaseException:
            self._folder.close()
            raise
        self._recorder = Recorder(self.out, processes=self._processes, options=self.options)
        if self.options.threads:
            torch.set_num_threads(self.options.threads)
        if warning := slow_precision(self.options.precision, self.device):
            self.say(warning)
        # A random search draws its settings between runs: they would be the same after every run.
        self._restore_generators = remember_global_generators(self.device)
        seed_global_generators(self.seed("init"), self.device)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._close()
        if error is None:
            self._processes.close()
        if error is None and self._in_loop:
            raise RuntimeError(
                f"the loop over run.steps ended in step {self._step} of {self._total}, so this step was neither "
                "recorded nor saved; in zip(), pass run.steps(...) first, and do not break out of the loop"
            )

    @property
    def is_main(self) -> bool:
        """Whether this is process 0, which writes everything."""
        return self.rank == 0

    @property
    def is_logged_step(self) -> bool:
        """Whether `log` records values in the current step."""
        if self._step is None or self._total is None:
            return False
        return self._step % self.options.log_every == 0 or self._step >= self._total - 1

    @property
    def resume_command(self) -> str:
        """Command line that resumes this run, or the command of which this run is a stage."""
        command, out, again = _WHOLE.get() or (self.command, self.out, "")
        return again or resume_command(command, out, world_size=self.world_size)

    def seed(self, *keys: int | str) -> int:
        """Derive a seed for one purpose from options.seed and the keys."""
        return derive(self.options.seed, *keys)

    def say(self, message: str) -> None:
        """Print a message, once for all processes."""
        self._open_recorder.say(message)

    @overload
    def setup(self, model: nn.Module) -> nn.Module: ...
    @overload
    def setup(self, model: nn.Module, optimizer: Optimizer) -> tuple[nn.Module, Optimizer]: ...
    def setup(self, model: nn.Module, optimizer: Optimizer | None = None) -> nn.Module | tuple[nn.Module, Optimizer]:
        """Move a model to the device, synchronise its batch norm layers, compile it if requested and wrap it."""
        return set_up(self.fabric, model, optimizer, compiled=self.options.compile)

    def track(self, **objects: Stateful) -> None:
        """Add objects to the checkpoints; track everything that changes during training (model, optimizer, ...).

        The state must be the same on all processes; process 0 writes it.

        Raises:
            TypeError: An object has no state_dict and load_state_dict.
            ValueError: A name is used twice.
            RuntimeError: The checkpoint has already been read.
        """
        if self._start is not None:
            raise RuntimeError(
                f"{', '.join(objects)}: track was called after the checkpoint was read; call it before restore, "
                "batches and steps"
            )
        for name, stateful in objects.items():
            self._snapshots.track(name, stateful)

    def restore(self) -> int:
        """Restore the newest undamaged checkpoint if options.resume is set, and return the first step to execute.

        `batches` and `steps` also call this method.

        Raises:
            UserError: All existing checkpoints are damaged, or the newest one does not contain the tracked objects.
        """
        if self._start is not None:
            return self._start
        start = Position()
        if self.options.resume:
            start = self._snapshots.restore(self._processes, say=self.say)
            self.fabric.strategy.precision.load_state_dict(start.precision)
        self._start = start.step
        self._open_recorder.begin(start, device=self.device, config=self._config)
        return self._start

    def batches(self, n: int, *, batch_size: int, total_steps: int) -> Batches:
        """Return this process's batches of n samples from the first step on (see `Batches`); call `track` before."""
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
        """Iterate over the remaining steps; between steps, record values, write checkpoints and handle signals.

        Before each step, torch, random and numpy are seeded by (seed, step, rank). After each step, the logged values
        are written. A checkpoint is written every options.checkpoint_every steps and after the last step. On SIGTERM or
        SIGINT, a checkpoint is written and Interrupted is raised (with several processes one step later, when all of
        them have received the message).

        Args:
            total: Number of steps of the whole run.
            samples_per_step: Number of samples per step over all processes, for the speed in timing.jsonl.

        Raises:
            UserError: The checkpoint is past `total`, there is too little disk space, or a checkpoint cannot be
                written.
            Interrupted: The process received SIGTERM or SIGINT; a checkpoint has been written.
        """
        if self._total is not None:
            raise RuntimeError("run.steps was called twice; a run has only one loop")
        start = self.restore()
        if start > total:
            raise UserError(
                f"{self.out} is at step {start}, which is past the end of a run of {total} steps; increase the number "
                "of steps"
            )
        if start < total and self.is_main:
            self._check_space()
        self._total, self._in_loop = total, True
        recorder = self._open_recorder
        recorder.start(start, total)
        with self._signals:
            for step in range(start, total):
                self._step = step
                seed_global_generators(self.seed("step", step, self.rank), self.device)
                yield step
                recorder.end_step(step, is_logged=self.is_logged_step, samples_per_step=samples_per_step)
                self._between_steps(step + 1, total)
        self._step, self._in_loop = total, False
        recorder.pause()
        seed_global_generators(self.seed("step", total, self.rank), self.device)

    def log(self, **scalars: float | Tensor) -> None:
        """Record values of the current step if it is logged: every options.log_every steps, and the last step.

        Tensors are read (`.item()`) only in logged steps, because reading synchronises with the device. With several
        processes, the mean is recorded, and all processes must log the same names.
        """
        self._check_begun()
        if self.is_logged_step:
            self._open_recorder.take(scalars)

    def record(self, **scalars: float | Tensor) -> None:
        """Record values of the current step whether or not it is logged; after the loop, record values of step `total`.

        All processes must call this method.
        """
        step = self._check_begun()
        self._open_recorder.take(scalars, always=True)
        if not self._in_loop:
            self._open_recorder.end_step(step)

    def save_model(
        self, tensors: Mapping[str, Tensor], metadata: Mapping[str, object], *, folder: str = "model"
    ) -> Path:
        """Write model.safetensors and model.json, which `load_model` reads, to `folder` inside the run folder.

        Args:
            tensors: Tensors by name, such as the result of `module.state_dict()`.
            metadata: Numbers, strings, paths, dataclasses, lists and mappings by name.
            folder: Name of the model folder.

        Returns:
            Path of the model folder.
        """
        target = self.out / folder
        self._processes.on_main(lambda: model_file.save_model(target, tensors, metadata))
        return target

    @property
    def _open_recorder(self) -> Recorder:
        if self._recorder is None:
            raise RuntimeError("the Run is not open; use it as `with Run(...) as run:`")
        return self._recorder

    def _check_begun(self) -> int:
        if self._step is None:
            raise RuntimeError("no step has begun; record values inside the loop over run.steps or after it")
        return self._step

    def _between_steps(self, step: int, total: int) -> None:
        last = step == total
        if last:
            # Signals received so far are counted below; later ones have their usual effect, with everything saved.
            self._save_checkpoint(step)
            self._signals.__exit__(None, None, None)
        signum = self._processes.vote(self._signals.signum or 0, final=last)
        if not last and (signum or step % self.options.checkpoint_every == 0):
            self._save_checkpoint(step)
        self._open_recorder.advance(step)
        if not signum:
            return
        self._in_loop = False
        self._close()
        self._processes.wait()  # torchrun would end the other processes before the checkpoint is complete
        message = f"stopped by {signal.Signals(signum).name} after step {step} of {total}"
        if self.is_main:
            message += f"; everything is saved in {self.out}. Resume with\n  {self.resume_command}"
        raise Interrupted(message, signum=signum)

    def _check_space(self) -> None:
        """Check that the checkpoints and the model will fit on the disk."""
        checkpoints = self.options.keep_checkpoints
        files.check_space(
            self.out,
            self._snapshots.bytes_of_one() * (checkpoints + 2),
            what=f"{checkpoints} checkpoints, the checkpoint being written and the model",
            files=4 * (checkpoints + 2) + 10,
            advice="choose another --out or fewer --keep-checkpoints",
        )

    def _save_checkpoint(self, step: int) -> None:
        if not self.is_main:
            return
        position = Position(
            step=step,
            metrics_bytes=self._open_recorder.sync(),
            world_size=self.world_size,
            precision=self.fabric.strategy.precision.state_dict(),
        )
        try:
            self._snapshots.save(position)
        except (OSError, safetensors.SafetensorError) as error:
            raise UserError(
                f"cannot write the checkpoint of step {step} to {self._snapshots.folder}: {error}. Fix the cause, "
                f"then resume with\n  {self.resume_command}"
            ) from error

    def _close(self) -> None:
        self._signals.__exit__(None, None, None)
        if self._recorder is not None:
            self._recorder.close()
        self._folder.close()
        torch.set_num_threads(self._threads)
        self._restore_generators()
