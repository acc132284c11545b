"""Optional places that show the metrics while a run goes on: TensorBoard and Weights & Biases."""

from __future__ import annotations

import importlib
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from contrastive_core.errors import UserError
from contrastive_core.train import files
from contrastive_core.train.options import RunOptions


class Tracker(Protocol):
    """Somewhere that records go."""

    def write(self, step: int, record: Mapping[str, float]) -> None:
        """Take the values of one step."""

    def close(self) -> None:
        """Hand over what is still held back."""


class TensorBoard:
    """Event files in `<run>/tensorboard`; what an interrupted run wrote after its checkpoint is hidden."""

    def __init__(self, folder: Path, *, start_step: int) -> None:
        writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter
        self._writer = writer(str(folder / "tensorboard"), purge_step=start_step if start_step else None)

    def write(self, step: int, record: Mapping[str, float]) -> None:
        """Take the values of one step."""
        for name, value in record.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Hand over what is still held back."""
        self._writer.close()


class WeightsAndBiases:
    """A run at Weights & Biases, the same one again when the folder is resumed."""

    def __init__(self, folder: Path, *, config: Mapping[str, Any]) -> None:
        wandb = importlib.import_module("wandb")
        note = folder / ".wandb-id"
        if not note.exists():
            files.write_atomic(note, secrets.token_hex(8).encode())
        self._run = wandb.init(
            dir=str(folder), id=note.read_text(), name=folder.name, config=dict(config), resume="allow"
        )

    def write(self, step: int, record: Mapping[str, float]) -> None:
        """Take the values of one step."""
        self._run.log(dict(record), step=step)

    def close(self) -> None:
        """Hand over what is still held back."""
        self._run.finish()


def check_installed(options: RunOptions) -> None:
    """Fail before the run begins, not at its first metric.

    Raises:
        UserError: A tracker is asked for whose library is not installed.
    """
    for wanted, module, extra in (
        (options.tensorboard, "tensorboard", "tensorboard"),
        (options.wandb, "wandb", "wandb"),
    ):
        if not wanted:
            continue
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise UserError(
                f"--{extra} was asked for, but the library {module!r} cannot be imported ({error}). "
                f"Install it with: pip install 'contrastive-core[{extra}]', or leave --{extra} out"
            ) from error


def open_trackers(options: RunOptions, folder: Path, *, config: Mapping[str, Any], start_step: int) -> list[Tracker]:
    """The trackers that the options ask for."""
    trackers: list[Tracker] = []
    if options.tensorboard:
        trackers.append(TensorBoard(folder, start_step=start_step))
    if options.wandb:
        trackers.append(WeightsAndBiases(folder, config=config))
    return trackers
