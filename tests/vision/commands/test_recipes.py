"""Recipes of pre-training: the command accepts them, and they cost the compute that their comments state."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import pytest
import yaml

from contrastive_core.optim import scaled_lr
from ssl_vision.cli import main
from ssl_vision.training.options import SuNCEtOptions

NAMES = sorted(
    file.name.removesuffix(".yaml")
    for file in files("ssl_vision.configs").iterdir()
    if file.name.startswith(("simclr", "suncet")) and file.name.endswith(".yaml")
)


def recipe(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((files("ssl_vision.configs") / f"{name}.yaml").read_text())
    return content


@pytest.mark.parametrize("name", NAMES)
def test_the_command_takes_them(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "photos", "--out", "run", "--config", name, "--print_config"]) == 0
    resolved = yaml.safe_load(capsys.readouterr().out)
    for key, value in recipe(name).items():
        if isinstance(value, dict):
            assert resolved[key].items() >= value.items()
        else:
            assert resolved[key] == value


@pytest.mark.parametrize(
    ("name", "plain", "steps"),
    [("suncet-imagenet", "simclr-imagenet", None), ("suncet-cifar10-cpu", "simclr-cifar10-cpu", 50_000)],
)
def test_suncet_is_compared_at_equal_inputs(name: str, plain: str, steps: int | None) -> None:
    ours, theirs = recipe(name), recipe(plain)
    inputs = 2 * ours["training"]["batch_size"] + SuNCEtOptions(**ours["suncet"]).batch_size
    assert inputs == 2 * theirs["training"]["batch_size"]
    if steps:
        lengths = [r["epochs"] * (steps // r["batch_size"]) for r in (ours["training"], theirs["training"])]
        assert lengths[0] == pytest.approx(lengths[1], rel=0.03)


def test_peak_learning_rates_of_the_papers() -> None:
    imagenet = recipe("suncet-imagenet")
    inputs = 2 * imagenet["training"]["batch_size"] + SuNCEtOptions(**imagenet["suncet"]).batch_size
    assert scaled_lr(imagenet["optimizer"]["lr"], inputs // 2) == pytest.approx(4.8)
    second = recipe("simclrv2-imagenet")
    assert scaled_lr(second["optimizer"]["lr"], second["training"]["batch_size"], "sqrt") == pytest.approx(6.4)
