"""Provide the optimiser, learning-rate schedule, best and averaged weights, and the estimate of a run's duration."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.optimizer import Optimizer

from contrastive_core.optim.average import MovingAverage
from contrastive_core.optim.schedule import half_cosine
from contrastive_core.text import duration, several
from contrastive_core.training import Run

Schedule = Literal["cosine", "constant"]
"""Learning-rate schedule: warm-up and cosine decay, or constant as in the released code."""

WARMUP = 50
"""Number of warm-up steps; at most a tenth of a cycle is used."""


def adam(parameters: Iterable[nn.Parameter], *, lr: float, weight_decay: float = 0.0) -> torch.optim.Adam:
    """Create a fused Adam (AdamW with weight decay) with betas 0.9 and 0.999 and epsilon 1e-8."""
    if weight_decay:
        return torch.optim.AdamW(list(parameters), lr=lr, weight_decay=weight_decay, fused=True)
    return torch.optim.Adam(list(parameters), lr=lr, fused=True)


def rate(name: Schedule, step: int, *, cycle: int) -> float:
    """Return the factor of the learning rate at a step.

    ``constant``: 1. ``cosine``, with w = min(50, cycle // 10) and t = step mod cycle, so that every round of
    self-training has its own cycle and ends with a small learning rate:

        (t + 1) / w                                    for t < w
        (1 + cos(pi (t - w) / (cycle - w))) / 2        otherwise

    Args:
        name: Schedule.
        step: Training step, from 0.
        cycle: Steps per cycle, at least 1.

    >>> [round(rate("cosine", step, cycle=20), 3) for step in (0, 1, 2, 11, 19, 20)]
    [0.5, 1.0, 1.0, 0.5, 0.008, 0.5]
    """
    if name == "constant":
        return 1.0
    warmup, at = min(WARMUP, cycle // 10), step % cycle
    if at < warmup:
        return (at + 1) / warmup
    return half_cosine((at - warmup) / (cycle - warmup))


def scheduler(optimizer: Optimizer, name: Schedule, *, cycle: int) -> LambdaLR:
    """Create the learning-rate scheduler; call its ``step()`` after each optimiser step, and track it."""
    return LambdaLR(optimizer, lambda step: rate(name, step, cycle=cycle))


class BestWeights:
    """The weights with the highest score so far; must be tracked, so that a resumed run keeps them.

    Attributes:
        score: Highest score; None before the first one.
        step: Number of training steps after which it was reached.
    """

    def __init__(self) -> None:
        self.score: float | None = None
        self.step = 0
        self._weights: dict[str, Tensor] = {}

    def offer(self, score: float, *, step: int, network: nn.Module) -> bool:
        """Keep a copy of the weights if they score higher than all previous ones; the first of equal ones is kept."""
        if self.score is not None and score <= self.score:
            return False
        self.score, self.step = score, step
        self._weights = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
        return True

    def give(self, network: nn.Module) -> None:
        """Load the best weights into the network, if there are any."""
        if self._weights:
            network.load_state_dict(self._weights)

    def reset(self) -> None:
        """Discard the weights, at the start of a new round."""
        self.score, self.step, self._weights = None, 0, {}

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {"score": self.score, "step": self.step, "weights": dict(self._weights)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of a checkpoint."""
        self.score, self.step = state["score"], int(state["step"])
        self._weights = dict(state["weights"])


def moving_average(network: nn.Module, decay: float) -> MovingAverage:
    """Create an exponential moving average of weights and batch-norm statistics.

    Call ``average.update_parameters(network)`` after every step; ``average.module`` is the averaged network. It must be
    tracked. The first update copies the network.
    """
    return MovingAverage(network, decay)


_MEASURED = 3


class DurationEstimate:
    """Report the expected duration of a run after its first few steps; call `after` at the end of each step.

    Args:
        run: Run that reports the duration.
        steps: Number of steps of the run.
        each: Description of the work of a step.
        apart: Expected seconds outside the steps, mostly for validation.
    """

    def __init__(self, run: Run, steps: int, *, each: str, apart: float = 0.0) -> None:
        self._run, self._steps, self._each, self._apart = run, steps, each, apart
        self._begun: float | None = None
        self._count = 0

    def after(self, step: int) -> None:
        """Register the end of a step. The first step is not measured, because it prepares kernels and memory."""
        if self._count > _MEASURED:
            return
        if self._begun is None:
            self._begun = time.monotonic()
        elif self._count == _MEASURED:
            seconds = (time.monotonic() - self._begun) / _MEASURED
            left = seconds * (self._steps - step - 1) + self._apart * (self._steps - step - 1) / self._steps
            if step + 1 < self._steps:
                self._run.say(
                    f"a step takes {seconds:.2g} s ({self._each}): about {duration(left)} for "
                    f"{several(self._steps - step - 1, 'step')}" + (" and validation" if self._apart else "")
                )
        self._count += 1


def seconds_of(action: Callable[[], object]) -> float:
    """Measure the duration of a call, in seconds."""
    begun = time.monotonic()
    action()
    return time.monotonic() - begun
