"""The learning rate of a run: up, down to zero, and again in every round."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR

from ssl_medseg.training.optim import adam, rate, scheduler


def test_after_the_warm_up_it_is_torchs_cosine() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = CosineAnnealingLR(optimizer, T_max=950)
    for step in range(50, 1000):
        assert rate("cosine", step, cycle=1000) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
        optimizer.step()
        reference.step()


def test_it_warms_up_and_every_round_begins_anew() -> None:
    assert [rate("cosine", step, cycle=1000) for step in (0, 24, 49)] == pytest.approx([0.02, 0.5, 1.0])
    assert all(rate("cosine", step, cycle=60) == rate("cosine", step + 60, cycle=60) for step in range(60))
    assert rate("cosine", 0, cycle=1) == 1.0
    assert {rate("constant", step, cycle=7) for step in range(20)} == {1.0}


def test_a_resumed_scheduler_goes_on_where_it_was(tmp_path: Path) -> None:
    def rates(count: int, state: dict[str, object] | None = None) -> tuple[list[float], dict[str, object]]:
        optimizer = adam([torch.nn.Parameter(torch.zeros(1))], lr=3e-3)
        schedule = scheduler(optimizer, "cosine", cycle=30)
        if state is not None:
            schedule.load_state_dict(state)
            optimizer.param_groups[0]["lr"] = schedule.get_last_lr()[0]
        found = []
        for _ in range(count):
            found.append(float(optimizer.param_groups[0]["lr"]))
            optimizer.step()
            schedule.step()
        return found, json.loads(json.dumps(schedule.state_dict()))

    whole, _ = rates(45)
    first, state = rates(20)
    rest, _ = rates(25, state)
    assert first + rest == whole
    assert max(whole) == 3e-3
    assert whole[:15] == whole[30:]
