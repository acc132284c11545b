"""What a run records and what it prints."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from contrastive_core.training import Interrupted
from tests.core.training.toy_runs import go, start


def test_log_and_record(tmp_path: Path) -> None:
    class Lazy(torch.Tensor):
        read = 0

        def item(self) -> float:  # type: ignore[override]
            Lazy.read += 1
            return 1.0

    with start(tmp_path, log_every=4) as run:
        logged = []
        for step in run.steps(7):
            logged.append(run.is_logged_step)
            run.log(a=torch.zeros(1).as_subclass(Lazy))
            run.log(b=step, a2=True)
            if step == 2:
                run.record(accuracy=torch.tensor([0.25], dtype=torch.float64))
            if step == 4:
                run.record(accuracy=float("nan"))
        run.record(final=np.float64(3.5))
    assert logged == [True, False, False, False, True, False, True]
    assert Lazy.read == 3
    assert (tmp_path / "metrics.jsonl").read_text().splitlines() == [
        '{"step": 0, "a": 1.0, "b": 0, "a2": 1}',
        '{"step": 2, "accuracy": 0.25}',
        '{"step": 4, "a": 1.0, "b": 4, "a2": 1, "accuracy": "NaN"}',
        '{"step": 6, "a": 1.0, "b": 6, "a2": 1}',
        '{"step": 7, "final": 3.5}',
    ]


def test_every_step_is_seeded_by_itself(tmp_path: Path) -> None:
    def draws(out: Path, first: int, **options: Any) -> Iterator[tuple[Any, ...]]:
        with start(out, **options) as run:
            for step in run.steps(4):
                if step >= first:
                    yield torch.rand(1).item(), random.random(), np.random.rand(), torch.initial_seed()  # noqa: NPY002

    whole = list(draws(tmp_path / "a", 0))
    assert len({value for draw in whole for value in draw}) == 16
    assert list(draws(tmp_path / "b", 2)) == whole[2:]
    assert list(draws(tmp_path / "c", 0, seed=1)) != whole
    with start(tmp_path / "d") as run:
        first = nn.Linear(3, 3).weight
    with start(tmp_path / "e") as run:
        assert torch.equal(nn.Linear(3, 3).weight, first)
        assert run.seed("x", 1) != run.seed("x", 2)


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for options in ({}, {"resume": True}):
        with start(tmp_path, tensorboard=True, log_every=1, **options) as run, contextlib.suppress(Interrupted):
            go(run, 4, stop_at=None if options else 1)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [0, 1, 2, 3]


def test_weights_and_biases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the library records what it is given."""
    told: list[Any] = []

    class Stand:
        @staticmethod
        def init(**keywords: Any) -> Any:
            told.append(keywords)
            return Stand

        @staticmethod
        def log(values: dict[str, float], step: int) -> None:
            told.append((step, sorted(values)))

        @staticmethod
        def finish() -> None:
            told.append("finish")

    monkeypatch.setitem(sys.modules, "wandb", Stand)
    for _ in range(2):
        with start(tmp_path, wandb=True, resume=True) as run:
            go(run, 3)
    first, *steps, second, _ = told
    assert steps == [(0, ["loss", "numpy", "python"]), (2, ["loss", "numpy", "python"]), "finish"]
    assert first["id"] == second["id"]
    assert first["resume"] == "allow"
    assert first["config"]["lr"] == 0.1


# ---- the person watching


def test_plain_lines_when_not_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with start(tmp_path, progress=True) as run:
        for step in run.steps(50):
            run.log(loss=step / 3)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("step 1/50  loss 0  ")
    assert lines[1].startswith("step 50/50  loss 16.33  ")
    assert lines[1].endswith("steps/s  0 s left")


def test_a_bar_in_a_terminal(tmp_path: Path) -> None:
    import pty

    code = (
        "import sys, time; from contrastive_core.training.progress import Watch; w = Watch(visible=True)\n"
        "w.start(3, 9)\n"
        "for i in range(4, 10): w.metrics({'loss': 1.5}); w.advance(i); time.sleep(0.06)\n"
        "w.say('[red]a message'); w.stop()"
    )
    main, end = pty.openpty()
    subprocess.run(
        [sys.executable, "-c", code], stderr=end, check=True, env={**os.environ, "TERM": "xterm", "COLUMNS": "90"}
    )
    os.close(end)
    text = ""
    try:
        while piece := os.read(main, 65536):
            text += piece.decode()
    except OSError:  # the other end is closed
        pass
    os.close(main)
    assert "9/9" in text
    assert "loss 1.5" in text
    assert "[red]a message" in text
