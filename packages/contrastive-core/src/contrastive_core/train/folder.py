"""The folder of a run: whose it is, with which configuration, and how to go on with it."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from contrastive_core.errors import UserError
from contrastive_core.train import config, files


def resume_command(command: str, out: Path, *, world_size: int) -> str:
    """The command line that goes on with the run in `out`, which `command` has started on `world_size` processes."""
    line = f"{command} --config {shlex.quote(str(out / 'config.yaml'))} --out {shlex.quote(str(out))} --resume"
    if world_size == 1:
        return line
    return f"torchrun --nproc-per-node {os.environ.get('LOCAL_WORLD_SIZE', world_size)} --no-python {line}"


class RunFolder:
    """A folder that one process at a time writes one run to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_path = path / "config.yaml"
        self._lock: files.FolderLock | None = None

    def open(self, settings: config.Config, *, resume: bool, resume_command: str) -> None:
        """Make the folder and write the configuration, or find the same run in it, begun.

        Raises:
            UserError: It is a file, holds something else, is in use, holds a run and `resume` is not set, or that run
                has another configuration.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path} is a file; expected a folder to write the run to")
        self.path.mkdir(parents=True, exist_ok=True)
        # The configuration is the first file of a run and appears complete, so what lies here without it is not ours.
        found = sorted(entry.name for entry in self.path.iterdir() if not entry.name.startswith("."))
        if found and not self.config_path.is_file():
            raise UserError(
                f"{self.path} is not empty (it holds {found[0]}{', ...' if len(found) > 1 else ''}) and not a run "
                "folder (it holds no config.yaml); expected a new or empty folder. Choose another --out"
            )
        # A start that failed before its first step (a typing error in a flag) has left nothing that could be lost.
        begun = any((self.path / name).exists() for name in ("metrics.jsonl", "checkpoints"))
        if begun and not resume:
            raise UserError(
                f"{self.path} already holds a run; expected a new or empty folder. Go on with that run by adding "
                "--resume, or choose another --out"
            )
        self._lock = files.FolderLock(self.path)
        if not self._lock.acquire():
            raise UserError(f"{self.path} is being written by another process; wait for it to end, or stop it")
        if not begun:
            settings.write(self.config_path)
            return
        changed = settings.differences(config.read(self.config_path))
        if changed:
            lines = "\n".join(f"  {line}" for line in changed)
            raise UserError(
                f"{self.path} holds a run with other settings; in its config.yaml -> now:\n{lines}\n"
                f"Go on with the settings it has by\n  {resume_command}\nor start a new run with another --out"
            )

    def close(self) -> None:
        """Let other processes write it."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None
