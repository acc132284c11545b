"""Which parameters LARS decays and adapts."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from contrastive_core import LARS, NTXentLoss, lars_param_groups

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


class Odd(nn.Module):
    """Parameters that are neither matrices nor called bias, and matrices that look one-dimensional."""

    def __init__(self) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(2.0))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 8))
        self.reg_token = nn.Parameter(torch.zeros(1, 4, 8))
        self.layer_scale = nn.Parameter(torch.ones(8, 1, 1))
        self.gain = nn.Parameter(torch.ones(1, 1, 1, 8))
        self.pos_embed = nn.Parameter(torch.zeros(1, 5, 8))
        self.norm = OwnNorm()
        self.prelu = nn.PReLU(8)
        self.loss = NTXentLoss(temperature=nn.Parameter(torch.tensor(0.1)))
        self.to_one = nn.Linear(8, 1)
        self.one_by_one = nn.Conv2d(1, 1, 1)
        self.depthwise = nn.Conv1d(1, 8, 1)
        self.table = nn.Embedding(1, 8)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(8, 3))
        self.own_matrix = nn.Parameter(torch.zeros(3, 8))
        self.recurrent = nn.LSTM(1, 1)

    def no_weight_decay(self) -> set[str]:
        return {"pos_embed", "not_there"}


class OwnNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8))


def test_groups_go_by_shape_as_well_as_type() -> None:
    model = nn.Sequential(Odd())
    names = {id(p): name.removeprefix("0.") for name, p in model.named_parameters()}
    adapted, plain = lars_param_groups(model, 1e-4)
    assert {names[id(p)] for p in adapted["params"]} == {
        "to_one.weight",
        "one_by_one.weight",
        "depthwise.weight",
        "table.weight",
        "normed.parametrizations.weight.original1",
        "own_matrix",
    }
    assert {names[id(p)] for p in plain["params"]} >= {
        "logit_scale", "cls_token", "reg_token", "layer_scale", "gain", "pos_embed", "norm.weight", "prelu.weight",
        "loss.temperature", "normed.parametrizations.weight.original0",
    }  # fmt: skip
    assert len(adapted["params"]) + len(plain["params"]) == len(names)


@pytest.mark.parametrize(
    ("library", "name"), [("torchvision.models", "vit_b_32"), ("torchvision.models", "convnext_tiny")]
)
def test_groups_of_known_models(library: str, name: str) -> None:
    """Exactly kernels and matrices are decayed and adapted: two or more dimensions, except layer scales."""
    models = pytest.importorskip("torchvision.models")
    with torch.device("meta"):
        model = getattr(models, name)()
    names = {id(p): name for name, p in model.named_parameters()}
    adapted, plain = lars_param_groups(model, 1e-4)
    assert all(p.ndim >= 2 for p in adapted["params"])
    found = {names[id(p)].rsplit(".", 1)[-1] for p in plain["params"] if p.ndim >= 2}
    assert found == ({"class_token"} if name.startswith("vit") else {"layer_scale"})


def test_states_of_other_optimisers_are_refused() -> None:
    model = nn.Linear(4, 2)

    def state(
        make: Callable[..., torch.optim.Optimizer], module: nn.Module = model, **options: float
    ) -> dict[str, Any]:
        optimizer = make(module.parameters(), lr=0.1, **options)
        sum(p.sum() for p in module.parameters()).backward()
        optimizer.step()
        saved: dict[str, Any] = optimizer.state_dict()
        return saved

    ours = LARS(model.parameters(), lr=0.5)
    before = [p.detach().clone() for p in model.parameters()]
    for foreign, words in (
        (state(torch.optim.SGD, momentum=0.9), "lacks trust_coefficient, adapt and has dampening, maximize"),
        (state(torch.optim.AdamW), "lacks momentum, trust_coefficient, nesterov, adapt and has betas, eps"),
    ):
        with pytest.raises(ValueError, match=words):
            ours.load_state_dict(foreign)
    half = state(torch.optim.AdamW)
    half["param_groups"][0].update(ours.state_dict()["param_groups"][0])
    with pytest.raises(ValueError, match="state of parameter 0 holds step, exp_avg, exp_avg_sq"):
        ours.load_state_dict(half)
    with pytest.raises(ValueError, match=r"momentum of parameter 0 has shape \[3, 4\], expected \[2, 4\]"):
        ours.load_state_dict(state(LARS, nn.Linear(4, 3)))
    assert ours.param_groups[0]["lr"] == 0.5
    ours.load_state_dict(state(LARS))
    assert ours.param_groups[0]["lr"] == 0.1
    ours.step()
    assert all((p != q).any() for p, q in zip(model.parameters(), before, strict=True))


def test_a_state_can_be_loaded_several_times() -> None:
    """torch adds settings of its own to the defaults of an optimiser that is loaded, copied or unpickled."""
    model = nn.Linear(4, 2, bias=False)
    first = LARS(model.parameters(), lr=0.1)
    model(torch.ones(3, 4)).sum().backward()
    first.step()
    saved = first.state_dict()
    again = LARS(model.parameters(), lr=0.2)
    for optimizer in (again, again, copy.deepcopy(first), pickle.loads(pickle.dumps(first))):
        optimizer.load_state_dict(saved)
        loaded = optimizer.state_dict()
        assert loaded["param_groups"][0]["lr"] == 0.1
        assert torch.equal(loaded["state"][0]["momentum_buffer"], saved["state"][0]["momentum_buffer"])


def test_parameters_without_groups_are_warned_of() -> None:
    """With a plain list of parameters, biases and gains would be decayed and adapted."""
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    with pytest.warns(UserWarning, match="3 of 4 parameters have at most one dimension .* pass lars_param_groups"):
        LARS(model.parameters(), lr=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LARS(lars_param_groups(model, 1e-4), lr=0.1)
        LARS([{"params": model.parameters(), "adapt": True}], lr=0.1)
        LARS([model[0].weight], lr=0.1)
        LARS([model[0].bias], lr=0.1)
    with pytest.raises(TypeError, match=r"got a module, expected parameters; pass lars_param_groups\(module"):
        LARS(model, lr=0.1)


@pytest.mark.parametrize("state", [{}, None, {"state": {}}, {"model": 1, "epoch": 3}])
def test_what_is_no_state_is_refused(state: dict[str, object]) -> None:
    optimizer = LARS([nn.Parameter(torch.ones(2, 2))], lr=0.1)
    with pytest.raises(ValueError, match=r"LARS: found .*expected what `state_dict` returned"):
        optimizer.load_state_dict(state)
