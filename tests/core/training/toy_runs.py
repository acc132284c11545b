"""Small runs in this process, and what they must leave behind."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import torch

from contrastive_core.training import Run, RunOptions

QUIET: dict[str, Any] = {"device": "cpu", "progress": False, "log_every": 2, "checkpoint_every": 3}


def start(out: Path, *, config: dict[str, Any] | None = None, **options: Any) -> Run:
    return Run(out, config=config or {"lr": 0.1}, command="prog verb", options=RunOptions(**{**QUIET, **options}))


class Counter:
    """The smallest object with a state."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def state_dict(self) -> dict[str, Any]:
        return {"steps": list(self.steps)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = list(state["steps"])


def go(run: Run, total: int, *, stop_at: int | None = None, signum: int = signal.SIGTERM) -> Counter:
    counter = Counter()
    run.track(counter=counter)
    for step in run.steps(total):
        counter.steps.append(step)
        run.log(loss=torch.rand(()), python=random.random(), numpy=np.random.rand())  # noqa: NPY002
        if step == stop_at:
            os.kill(os.getpid(), signum)
    return counter


def content(folder: Path) -> dict[str, bytes]:
    """Return all files that exact resumption promises."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("timing.jsonl", ".lock")
    }
