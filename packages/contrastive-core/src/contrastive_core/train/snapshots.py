"""What a run saves of itself: the objects its loop tracks, and where it goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from contrastive_core.errors import UserError
from contrastive_core.train import checkpoint
from contrastive_core.train.processes import Processes

# Where a Position stands in a checkpoint, beside the tracked objects.
_POSITION = "_run"


class Stateful(Protocol):
    """What a checkpoint can hold."""

    def state_dict(self) -> Any:
        """Everything that changes during training."""

    def load_state_dict(self, state_dict: Any, /) -> Any:
        """Take it back."""


@dataclass(frozen=True)
class Position:
    """Where a run goes on.

    Attributes:
        step: The next step to do.
        metrics_bytes: How much of the metrics file belongs to the steps before it.
        world_size: How many processes did them.
        precision: State of the mixed precision, the loss scale.
    """

    step: int = 0
    metrics_bytes: int = 0
    world_size: int = 1
    precision: dict[str, Any] = field(default_factory=dict)


class Snapshots:
    """The checkpoints of one run in `folder`, of which the `keep` newest stay."""

    def __init__(self, folder: Path, *, keep: int) -> None:
        self.folder, self._keep = folder, keep
        self._tracked: dict[str, Stateful] = {}

    def track(self, name: str, thing: Stateful) -> None:
        """Let checkpoints hold the state of an object.

        Raises:
            TypeError: It has no state_dict and load_state_dict.
            ValueError: The name is used already.
        """
        if not (hasattr(thing, "state_dict") and hasattr(thing, "load_state_dict")):
            raise TypeError(
                f"{name} is a {type(thing).__name__}; expected an object with state_dict and load_state_dict"
            )
        if name in self._tracked or name == _POSITION:
            raise ValueError(f"the name {name!r} is taken; track every object once, under a name of its own")
        self._tracked[name] = thing

    def restore(self, processes: Processes, *, say: Callable[[str], None]) -> Position:
        """Give the tracked objects, on every process, their state in the newest checkpoint whose files are good.

        Damaged ones are put aside, and `say` is told.

        Returns:
            Where it was written; the start if there is no checkpoint.

        Raises:
            UserError: There are checkpoints, and every one is damaged; or the newest does not hold what is tracked.
        """
        path = processes.on_main(lambda: self._newest(say))
        if path is None:
            return Position()
        position = self._load(path)
        say(f"resumed from {path}")
        if position.world_size != processes.world_size:
            say(f"note: {position.world_size} process(es) wrote it, {processes.world_size} go on")
        return position

    def save(self, position: Position) -> None:
        """Write the state of the tracked objects, and delete what is older than the newest few.

        Raises:
            OSError: The disk is full, or the folder cannot be written.
        """
        state = {name: thing.state_dict() for name, thing in self._tracked.items()}
        checkpoint.save(self.folder, position.step, {**state, _POSITION: dict(vars(position))})
        checkpoint.prune(self.folder, keep=self._keep)

    def _newest(self, say: Callable[[str], None]) -> Path | None:
        path = checkpoint.newest_good(self.folder, say=say)
        checkpoint.prune(self.folder, keep=self._keep)
        return path

    def _load(self, path: Path) -> Position:
        state = checkpoint.load(path)
        position = Position(**state.pop(_POSITION))
        self._check_names(path, state)
        for name, thing in self._tracked.items():
            try:
                thing.load_state_dict(state[name])
            except (RuntimeError, ValueError, KeyError) as error:
                raise UserError(
                    f"{path} does not fit: {name} refuses its state ({error}). Resume with the version of the program "
                    "that wrote it"
                ) from error
            if isinstance(thing, Optimizer):
                _lay_out_as_parameters(thing)
        return position

    def _check_names(self, path: Path, state: Mapping[str, Any]) -> None:
        if {*state} != {*self._tracked}:
            raise UserError(
                f"{path} holds {', '.join(sorted(state)) or 'nothing'}; this program tracks "
                f"{', '.join(sorted(self._tracked)) or 'nothing'} (track comes before restore, batches and steps). "
                "Resume with the version of the program that wrote it"
            )


def _lay_out_as_parameters(optimizer: Optimizer) -> None:
    """Give an optimiser's tensors the memory layout of their parameters, as it made them itself.

    They come contiguous from the checkpoint. torch's fused optimisers on the CPU walk parameter and state side by side
    in memory, so that beside parameters in channels_last every number would meet another one's average, silently.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
