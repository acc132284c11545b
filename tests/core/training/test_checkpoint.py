"""Checkpoints: every state is restored exactly, damage is found, a crash leaves nothing unfinished."""

from __future__ import annotations

import copy
import pickle
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import lr_scheduler

from contrastive_core import LARS, WarmupCosine
from contrastive_core.training import checkpoint

DTYPES = [
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32,
    torch.uint64, torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128,
    torch.float8_e4m3fn, torch.float8_e5m2,
]  # fmt: skip


def same(a: Any, b: Any) -> bool:
    """Equal in value, type and order, tensors bit by bit."""
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        if a.dtype != b.dtype or a.shape != b.shape:
            return False
        return bool(torch.equal(a.contiguous().view(-1).view(torch.uint8), b.contiguous().view(-1).view(torch.uint8)))
    if isinstance(a, dict):
        keys = [same(x, y) for x, y in zip(a, b, strict=False)]
        metadata = same(getattr(a, "_metadata", None), getattr(b, "_metadata", None))
        return len(a) == len(b) and metadata and all(keys) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b) or (isinstance(a, float) and repr(a) == repr(b))


def roundtrip(folder: Path, **state: Any) -> dict[str, Any]:
    path = checkpoint.save(folder, 1, state)
    checkpoint.verify(path)
    return checkpoint.load(path)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensors_of_every_type(tmp_path: Path, dtype: torch.dtype) -> None:
    raw = torch.randint(0, 256, (3 * 4 * 16,), dtype=torch.uint8)
    x = (raw % 2).bool()[:12].view(3, 4) if dtype == torch.bool else raw.view(dtype)[:12].view(3, 4)
    state = {
        "matrix": x,
        "zero-d": x[1, 2],
        "empty": x[:0],
        "transposed": x.T,
        "row": x[1],
        "everything": [x, (x[0], x)],
    }
    assert same(roundtrip(tmp_path, state=state)["state"], state)


def test_awkward_tensors(tmp_path: Path) -> None:
    x = torch.randn(4, 4, dtype=torch.complex64)
    state = {
        "conjugate": x.conj(),
        "negative": x.conj().imag,
        "parameter": nn.Parameter(torch.ones(2)).data,
        "channels last": torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        "expanded": torch.ones(1).expand(5),
    }
    found = roundtrip(tmp_path, state=state)["state"]
    assert all(torch.equal(found[name], value) for name, value in state.items())
    parameter = nn.Parameter(torch.ones(2))
    assert not roundtrip(tmp_path, p={"x": parameter})["p"]["x"].requires_grad
    big = torch.zeros(10**6)
    path = checkpoint.save(tmp_path, 7, {"s": big[:3]})
    assert (path / "tensors.safetensors").stat().st_size < 1000  # a view does not drag its memory along


SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5))
KEYS = st.one_of(st.text(max_size=5), st.integers(), st.booleans(), st.floats(allow_nan=False), st.none())
STATES = st.recursive(
    st.one_of(SCALARS, st.integers(0, 3).map(lambda n: torch.arange(n).float())),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(KEYS, inner, max_size=3),
        st.dictionaries(st.sampled_from(["dict", "tensor", "a.b", "a", "b", "list"]), inner, max_size=3),
        st.dictionaries(st.integers(), inner, max_size=2).map(OrderedDict),
    ),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None)
@given(state=STATES)
def test_nested_state(tmp_path_factory: pytest.TempPathFactory, state: Any) -> None:
    assert same(roundtrip(tmp_path_factory.mktemp("state"), s=state)["s"], state)


def test_counter_and_module_state(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    state = module.state_dict()
    found = roundtrip(tmp_path, model=state, counter=Counter({3: 2, 1: 1}))
    assert same(found["model"], state)
    assert found["model"]._metadata["1"]["version"] == 2
    assert same(found["counter"], Counter({3: 2, 1: 1}))


@pytest.mark.parametrize(
    ("state", "place"),
    [
        ({"a": [1, {2}]}, r"s\.a\.1 is a set"),
        (np.float32(1), r"s is a float32"),
        ({"a": b"x"}, r"s\.a is a bytes"),
        (torch.ones(2).to_sparse(), "layout torch.sparse_coo"),
        (torch.ones(2, device="meta"), "device meta"),
    ],
)
def test_what_cannot_be_held_is_named(tmp_path: Path, state: Any, place: str) -> None:
    with pytest.raises(TypeError, match=place):
        checkpoint.save(tmp_path, 1, {"s": state})


def training(kind: str) -> tuple[nn.Module, torch.optim.Optimizer, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    model[2].weight = nn.Parameter(model[2].weight.detach().clone())
    groups = [
        {"params": model[0].parameters(), "lr": 0.05},
        {"params": [*model[1].parameters(), *model[2].parameters()]},
    ]
    optimizers: dict[str, Any] = {
        "sgd": lambda: torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True),
        "adamw": lambda: torch.optim.AdamW(groups, lr=0.1, amsgrad=True),
        "adam-fused": lambda: torch.optim.Adam(groups, lr=0.1, fused=True),
        "adagrad": lambda: torch.optim.Adagrad(groups, lr=0.1),
        "rmsprop": lambda: torch.optim.RMSprop(groups, lr=0.1, centered=True),
        "lars": lambda: LARS(groups, 0.1, momentum=0.9, weight_decay=1e-4),
    }
    schedules: dict[str, Any] = {
        "sgd": lambda o: lr_scheduler.OneCycleLR(o, max_lr=1.0, total_steps=40),
        "adamw": lambda o: lr_scheduler.SequentialLR(
            o, [lr_scheduler.LinearLR(o, total_iters=3), lr_scheduler.CosineAnnealingWarmRestarts(o, 4)], [3]
        ),
        "adam-fused": lambda o: lr_scheduler.MultiStepLR(o, [2, 5, 5]),
        "adagrad": lambda o: lr_scheduler.LambdaLR(o, [lambda t: 0.9**t, lambda t: 0.8**t]),
        "rmsprop": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=3, cycle_momentum=False),
        "lars": lambda o: WarmupCosine(o, peak_lr=0.3, warmup_steps=4, total_steps=40),
    }
    optimizer = optimizers[kind]()
    return model, optimizer, schedules[kind](optimizer)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, schedule: Any, steps: range) -> None:
    for step in steps:
        x = torch.randn(5, 3, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize("kind", ["sgd", "adamw", "adam-fused", "adagrad", "rmsprop", "lars"])
def test_training_goes_on_exactly(tmp_path: Path, kind: str) -> None:
    whole = training(kind)
    train(*whole, range(10))
    half = training(kind)
    train(*half, range(5))
    names = ("model", "optimizer", "schedule")
    found = roundtrip(tmp_path, **{name: x.state_dict() for name, x in zip(names, half, strict=True)})
    for name, x in zip(names, half, strict=True):
        assert same(found[name], x.state_dict())
    resumed = training(kind)
    for name, x in zip(names, resumed, strict=True):
        x.load_state_dict(found[name])
    train(*resumed, range(5, 10))
    for a, b in zip(resumed, whole, strict=True):
        assert same(a.state_dict(), b.state_dict())


def test_no_pickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("dump", "dumps", "load", "loads", "Pickler", "Unpickler"):
        monkeypatch.setattr(pickle, name, lambda *_, **__: pytest.fail("pickle was used"))
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch.load was used"))
    monkeypatch.setattr(torch, "save", lambda *_, **__: pytest.fail("torch.save was used"))
    state = {"model": nn.Linear(2, 2).state_dict(), "more": (1, {2: [None, torch.ones(())]})}
    assert same(roundtrip(tmp_path, **copy.copy(state)), state)
