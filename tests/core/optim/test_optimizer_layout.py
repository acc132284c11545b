"""Fused optimisers, which pair parameter and state by memory order, resumed with channels_last weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from contrastive_core.training import Run, RunOptions

STEPS = 6


def train(out: Path, optimizer: Any, *, resume: bool = False, stop: int | None = None) -> Tensor:
    """Return the weights of a convolution after some steps."""
    options = RunOptions(device="cpu", checkpoint_every=3, progress=False, resume=resume)
    with Run(out, config={}, command="toy", options=options) as run:
        torch.manual_seed(0)
        net = nn.Conv2d(4, 8, 3).to(memory_format=torch.channels_last)
        model, optim = run.setup(net, optimizer(net.parameters()))
        run.track(model=net, optimizer=optim)
        for step in run.steps(STEPS):
            if step == stop:
                raise KeyboardInterrupt
            optim.zero_grad()
            run.fabric.backward(model(torch.randn(2, 4, 8, 8)).square().mean())
            optim.step()
    return net.weight.detach().clone()


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_resumed_in_the_same_bytes(tmp_path: Path, name: str) -> None:
    makers = {
        "adam": lambda parameters: torch.optim.Adam(parameters, lr=1e-2, fused=True),
        "sgd": lambda parameters: torch.optim.SGD(parameters, lr=1e-2, momentum=0.9, fused=True),
    }
    whole = train(tmp_path / "whole", makers[name])
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "part", makers[name], stop=4)
    assert torch.equal(train(tmp_path / "part", makers[name], resume=True), whole)
