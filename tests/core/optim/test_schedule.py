"""WarmupCosine and its helpers against values recorded from the official code."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from contrastive_core import LARS, WarmupCosine
from contrastive_core.optim import scaled_lr, steps_for

Golden = Callable[[str], np.lib.npyio.NpzFile]


def optimizer(groups: int = 1) -> torch.optim.SGD:
    return torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))]} for _ in range(groups)], lr=123.0)


@pytest.mark.parametrize(
    ("config", "samples", "batch", "epochs", "warmup", "base", "rule"),
    [
        ("imagenet_b4096_e100_lin0.3", 1_281_167, 4096, 100, 10, 0.3, "linear"),
        ("imagenet_v2_b4096_e800_sqrt0.1_w40", 1_281_167, 4096, 800, 40, 0.1, "sqrt"),
        ("cifar_b512_e1000_lin1.0", 50_000, 512, 1000, 10, 1.0, "linear"),
        ("tiny_n100_b8_e7_lin0.3_w2", 100, 8, 7, 2, 0.3, "linear"),
    ],
)
def test_official_schedules(
    golden: Golden, config: str, samples: int, batch: int, epochs: int, warmup: int, base: float, rule: str
) -> None:
    recorded = golden("vision")
    total, warm = steps_for(epochs, samples, batch, warmup_epochs=warmup)
    assert total == recorded[f"lr_tf2/{config}/total_steps"]
    assert warm == recorded[f"lr_tf2/{config}/warmup_steps"]
    peak = scaled_lr(base, batch, rule)
    sgd = optimizer()
    schedule = WarmupCosine(sgd, peak_lr=peak, warmup_steps=warm, total_steps=total)
    ours = []
    for step in recorded[f"lr_tf2/{config}/step"].tolist():
        schedule.last_epoch = step - 1  # jump: a run of 250,000 steps adds nothing to its recorded ones
        sgd.step()
        schedule.step()
        ours.append(sgd.param_groups[0]["lr"])
    np.testing.assert_allclose(ours, recorded[f"lr_tf2/{config}/lr_f32"], rtol=0, atol=1e-6 * peak)


def test_suncet_start(golden: Golden) -> None:
    """SuNCEt's schedule starts above 0: its code counts from the first update and rounds nothing."""
    recorded = golden("vision")
    key = "lr_suncet/new/zero_final"
    args = json.loads(str(recorded[f"{key}/args"]))
    schedule = WarmupCosine(
        optimizer(),
        peak_lr=args["ref_lr"],
        start_lr=args["start_lr"],
        warmup_steps=args["warmup_steps"],
        total_steps=args["T_max"],
    )
    for step, lr in zip(recorded[f"{key}/step"].tolist(), recorded[f"{key}/lr"].tolist(), strict=True):
        schedule.last_epoch = step
        assert schedule.get_lr()[0] == pytest.approx(lr, abs=1e-12)


def test_every_step_of_a_short_run() -> None:
    sgd = optimizer()
    schedule = WarmupCosine(sgd, peak_lr=2.0, warmup_steps=2, total_steps=6)
    seen = []
    for _ in range(9):
        seen.append(sgd.param_groups[0]["lr"])
        assert schedule.get_last_lr() == [seen[-1]]
        sgd.step()
        schedule.step()
    cosine = [1 + math.cos(math.pi * i / 4) for i in range(5)]
    assert seen == pytest.approx([0.0, 1.0, *cosine, 0.0, 0.0], abs=1e-15)
    assert seen[6:] == [0.0, 0.0, 0.0]


def test_without_warmup_the_first_update_runs_at_the_peak() -> None:
    sgd = optimizer()
    WarmupCosine(sgd, peak_lr=0.7, warmup_steps=0, total_steps=5, start_lr=0.1)
    assert sgd.param_groups[0]["lr"] == 0.7


def test_one_rate_per_group() -> None:
    sgd = optimizer(groups=2)
    schedule = WarmupCosine(sgd, peak_lr=[1.0, 3.0], start_lr=(0.5, 0.0), warmup_steps=2, total_steps=4)
    assert schedule.get_last_lr() == [0.5, 0.0]
    sgd.step()
    schedule.step()
    assert [group["lr"] for group in sgd.param_groups] == [0.75, 1.5]


def test_state_is_plain_and_restores_the_rate() -> None:
    sgd = optimizer()
    schedule = WarmupCosine(sgd, peak_lr=1.0, warmup_steps=3, total_steps=10)
    for _ in range(7):
        sgd.step()
        schedule.step()
    state = json.loads(json.dumps(schedule.state_dict()))
    fresh = optimizer()
    resumed = WarmupCosine(fresh, peak_lr=1.0, warmup_steps=3, total_steps=10)
    resumed.load_state_dict(state)
    assert fresh.param_groups[0]["lr"] == sgd.param_groups[0]["lr"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            for s, o in ((schedule, sgd), (resumed, fresh)):
                o.step()
                s.step()
            assert resumed.get_last_lr() == schedule.get_last_lr()
    assert schedule.get_last_lr() == [0.0]


def test_with_a_tensor_rate() -> None:
    lars = LARS([nn.Parameter(torch.ones(1))], lr=torch.tensor(0.1))
    schedule = WarmupCosine(lars, peak_lr=1.0, warmup_steps=0, total_steps=2)
    lr = lars.param_groups[0]["lr"]
    assert lr.item() == 1.0
    lars.step()
    schedule.step()
    assert lr.item() == 0.5
    schedule.load_state_dict(schedule.state_dict() | {"last_epoch": 2})
    assert lars.param_groups[0]["lr"] is lr
    assert lr.item() == 0.0


def test_group_added_too_late_is_named() -> None:
    sgd = optimizer()
    schedule = WarmupCosine(sgd, peak_lr=1.0, warmup_steps=0, total_steps=2)
    sgd.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})
    sgd.step()
    with pytest.raises(ValueError, match="the optimizer has 2 parameter groups, expected 1 as when"):
        schedule.step()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"warmup_steps": 5}, "0 <= warmup_steps < total_steps"),
        ({"warmup_steps": -1}, "0 <= warmup_steps < total_steps"),
        ({"total_steps": 0, "warmup_steps": 0}, "0 <= warmup_steps < total_steps"),
        ({"peak_lr": -1.0}, "peak_lr=-1.0"),
        ({"peak_lr": [1.0, 2.0]}, "one finite number of at least 0, or a list of 1 such numbers"),
        ({"start_lr": float("inf")}, "start_lr=inf"),
    ],
)
def test_bad_settings(bad: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WarmupCosine(optimizer(), **{"peak_lr": 1.0, "warmup_steps": 1, "total_steps": 5, **bad})


def test_helpers() -> None:
    assert steps_for(60, 12_811, 1024) == (751, 0)
    assert steps_for(1, 10, 4, warmup_epochs=0.5) == (3, 1)
    assert scaled_lr(0.3, 256) == 0.3
    assert scaled_lr(0.075, 4096, "sqrt") == pytest.approx(4.8)
    with pytest.raises(ValueError, match="'linear' or 'sqrt'"):
        scaled_lr(0.3, 256, "square")
    with pytest.raises(ValueError, match="batch_size=0"):
        scaled_lr(0.3, 0)
    for bad in ((0, 10, 2), (1, 0, 2), (1, 10, 0)):
        with pytest.raises(ValueError, match="at least 1"):
            steps_for(*bad)
    with pytest.raises(ValueError, match="warmup_epochs=-1"):
        steps_for(1, 10, 2, warmup_epochs=-1)
