"""The moving average equals torch's, without reading from the device."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from contrastive_core.optim.average import MovingAverage
from tests.host_waits import DEVICE, Waits


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)).double()


@pytest.mark.parametrize("use_buffers", [True, False])
def test_values_and_state_are_those_of_torch(use_buffers: bool) -> None:
    torch.manual_seed(0)
    followed = network()
    mine = MovingAverage(followed, 0.9, use_buffers=use_buffers)
    follow = get_ema_multi_avg_fn(0.9)
    theirs = AveragedModel(followed, multi_avg_fn=follow, use_buffers=use_buffers).requires_grad_(False)
    for step in range(5):
        followed(torch.randn(4, 2, 3, 3, dtype=torch.float64))
        with torch.no_grad():
            for weight in followed.parameters():
                weight.add_(torch.randn_like(weight))
        if step == 3:  # a resumed run
            state = copy.deepcopy(mine.state_dict())
            mine = MovingAverage(network(), 0.9, use_buffers=use_buffers)
            mine.load_state_dict(state)
        if step == 4:
            mine = pickle.loads(pickle.dumps(mine))
        mine.update_parameters(followed)
        theirs.update_parameters(followed)
        assert mine.state_dict().keys() == theirs.state_dict().keys()
        for name, value in theirs.state_dict().items():
            expected = followed[1].num_batches_tracked if name.endswith("num_batches_tracked") else value
            assert torch.equal(mine.state_dict()[name], expected), name
    assert not any(p.requires_grad for p in mine.parameters())


@pytest.mark.parametrize("moved", [True, False])
def test_an_update_reads_nothing(moved: bool) -> None:
    followed = network().to(DEVICE)
    average = MovingAverage(followed, 0.9)
    if moved:
        average.to(DEVICE)
    with Waits() as waits:
        for _ in range(2):
            average.update_parameters(followed)
    assert not waits.found


def test_tensors_that_have_no_average_are_copied() -> None:
    followed = nn.MultiheadAttention(4, 2)
    followed.register_buffer("position", torch.arange(500))
    followed.register_buffer("used", torch.tensor([True, False]))
    followed.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(3))
    followed.register_parameter("codes", nn.Parameter(torch.arange(500), requires_grad=False))
    average = MovingAverage(followed, 0.9)
    for _ in range(3):
        average.update_parameters(followed)
    for name, value in followed.state_dict().items():
        assert torch.equal(average.module.state_dict()[name], value), name


@pytest.mark.parametrize(("precision", "warns"), [(torch.bfloat16, True), (torch.float16, False)])
def test_weights_too_coarse_for_the_average_are_warned_of(precision: torch.dtype, warns: bool) -> None:
    torch.manual_seed(0)
    followed = nn.Linear(30, 30).to(precision)
    average = MovingAverage(followed, 0.99)
    average.update_parameters(followed)
    nn.init.normal_(followed.weight)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for _ in range(1000):
            average.update_parameters(followed)
    assert any("bf16-mixed" in str(warning.message) for warning in found) == warns
    assert ((average.module.weight - followed.weight).abs().mean() > 0.1) == warns
