"""Which parameters LARS decays and adapts."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from contrastive_core import LARS, lars_param_groups

Golden = Callable[[str], np.lib.npyio.NpzFile]


class Model(nn.Module):
    """Every kind of parameter that matters for the groups."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.Conv2d(4, 4, 1), nn.SyncBatchNorm(4))
        )
        self.attention = nn.MultiheadAttention(4, 2)
        self.norms = nn.ModuleList(
            [nn.LayerNorm(4), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4, affine=True), nn.RMSNorm(4)]
        )
        self.scale = nn.Parameter(torch.ones(4))
        self.head = nn.Linear(4, 2)
        self.head_supervised = nn.Linear(4, 2)


@pytest.mark.parametrize("wrap", [lambda m: m, nn.SyncBatchNorm.convert_sync_batchnorm, nn.DataParallel])
def test_groups(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model = Model()
    names = {id(p): name for name, p in model.named_parameters()}
    adapted, plain = lars_param_groups(wrap(model), 1e-4)
    assert (adapted["weight_decay"], adapted["adapt"]) == (1e-4, True)
    assert (plain["weight_decay"], plain["adapt"]) == (0.0, False)
    assert {names[id(p)] for p in adapted["params"]} == {
        "encoder.0.weight",
        "encoder.2.0.weight",
        "attention.in_proj_weight",
        "attention.out_proj.weight",
        "scale",
        "head.weight",
        "head_supervised.weight",
    }
    assert len(adapted["params"]) + len(plain["params"]) == len(names)


def test_excluded_submodules() -> None:
    model = Model()
    adapted, plain = lars_param_groups(model, 1e-4, exclude=["head_supervised", "encoder.2"])
    assert any(p is model.head.weight for p in adapted["params"])
    for p in (model.head_supervised.weight, model.encoder[2][0].weight):
        assert any(p is q for q in plain["params"])
        assert all(p is not q for q in adapted["params"])
    with pytest.raises(ValueError, match=r"exclude='head_super'.*head_supervised"):
        lars_param_groups(model, exclude=["head_super"])


def test_groups_without_parameters_are_left_out() -> None:
    assert [group["adapt"] for group in lars_param_groups(nn.Linear(2, 2, bias=False))] == [True]
    assert [group["adapt"] for group in lars_param_groups(nn.BatchNorm1d(2))] == [False]


def test_decay_of_an_excluded_head_is_the_explicit_loss_term() -> None:
    """A plain group with decay does what the official code's wd / 2 * ||W||^2 in the loss does."""
    by_group, by_loss = nn.Linear(3, 2), nn.Linear(3, 2)
    by_loss.load_state_dict(copy.deepcopy(by_group.state_dict()))
    x = torch.randn(4, 3)
    by_group(x).square().sum().backward()
    (by_loss(x).square().sum() + 0.5 * 0.1 * by_loss.weight.square().sum()).backward()
    LARS([{"params": [by_group.weight], "weight_decay": 0.1, "adapt": False}], lr=0.5).step()
    LARS([{"params": [by_loss.weight], "adapt": False}], lr=0.5).step()
    torch.testing.assert_close(by_group.weight, by_loss.weight)
