"""LARS against values recorded from the official code, a NumPy reference, and torch's conventions for optimisers."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from contrastive_core import LARS, WarmupCosine, lars_param_groups

Golden = Callable[[str], np.lib.npyio.NpzFile]


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("decay", ["0", "1e-06"])
@pytest.mark.parametrize(("name", "dtype", "tolerance"), [("f64", torch.float64, 3e-16), ("f32", torch.float32, 3e-7)])
def test_five_steps_of_the_official_code(
    golden: Golden, decay: str, name: str, dtype: torch.dtype, tolerance: float, foreach: bool
) -> None:
    """Eight kinds of variables; the rate jumps, one gradient is exactly zero, one weight starts at zero."""
    recorded = golden("vision")
    names, adapted = recorded["lars/param_names"].tolist(), recorded["lars/tf2/do_layer_adaptation"]
    weights = {n: nn.Parameter(torch.from_numpy(recorded[f"lars/param/{n}/init"]).to(dtype)) for n in names}
    groups = [
        {"params": [weights[n] for n, a in zip(names, adapted, strict=True) if a], "weight_decay": float(decay)},
        {"params": [weights[n] for n, a in zip(names, adapted, strict=True) if not a], "adapt": False},
    ]
    optimizer = LARS(groups, lr=0.0, foreach=foreach)
    for step, lr in enumerate(recorded["lars/lr_per_step"]):
        for group in optimizer.param_groups:
            group["lr"] = float(np.float32(lr))  # TensorFlow rounds the lr whatever the variables are
        for n, w in weights.items():
            w.grad = torch.from_numpy(recorded[f"lars/param/{n}/grads"][step]).to(dtype)
        optimizer.step()
        for n, w in weights.items():
            key = f"lars/tf2/classic/wd{decay}/{name}/{n}"
            close(w, recorded[f"{key}/weights"][step], tolerance)
            if name == "f64":
                close(optimizer.state[w]["momentum_buffer"], recorded[f"{key}/momentum"][step], tolerance)


def close(ours: Tensor, expected: np.ndarray, tolerance: float) -> None:
    """Assert equality within `tolerance` of the largest entry (and of 1, the scale of the weights)."""
    np.testing.assert_allclose(ours.detach().numpy(), expected, rtol=0, atol=tolerance * max(1, np.abs(expected).max()))


def reference(
    weights: list[np.ndarray], gradients: list[list[np.ndarray]], rates: list[float], settings: list[dict[str, Any]]
) -> list[np.ndarray]:
    """The rule of the TensorFlow code, one variable at a time."""
    result = []
    for i, start in enumerate(weights):
        s, w, v = settings[i], start.copy(), np.zeros_like(start)
        for step, lr in enumerate(rates):
            g = gradients[step][i] + s["weight_decay"] * w
            trust = 1.0
            if s["adapt"] and np.linalg.norm(w) > 0 and np.linalg.norm(g) > 0:
                trust = s["trust_coefficient"] * np.linalg.norm(w) / np.linalg.norm(g)
            v = s["momentum"] * v + lr * trust * g
            w = w - (s["momentum"] * v + lr * trust * g if s["nesterov"] else v)
        result.append(w)
    return result


@pytest.mark.parametrize("foreach", [False, True, None])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("decay", [0.0, 1e-4, 0.1])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_against_numpy(nesterov: bool, decay: float, foreach: bool | None, as_tensor: bool) -> None:
    """Groups with their own settings, strided and scalar parameters, a zero weight and zero gradients."""
    rng = np.random.default_rng(3)
    weights = [rng.normal(size=shape) for shape in [(4, 3, 3, 3), (7, 5), (6,), (), (2, 2)]]
    weights[4][:] = 0
    rates = [0.0, 0.3, 4.8, 1.0, 0.1]
    gradients = [[rng.normal(size=w.shape) for w in weights] for _ in rates]
    gradients[2][1][:] = 0
    common = {"momentum": 0.9, "weight_decay": decay, "trust_coefficient": 0.001, "nesterov": nesterov, "adapt": True}
    settings = [
        common,
        common,
        {**common, "adapt": False},
        {**common, "momentum": 0.5, "trust_coefficient": 0.02},
        common,
    ]
    parameters = [nn.Parameter(torch.from_numpy(w.copy())) for w in weights]
    # A strided view: norms and in-place updates must not depend on the layout.
    parameters[1] = nn.Parameter(torch.from_numpy(weights[1].T.copy()).T)
    groups = [
        {"params": [parameters[0], parameters[1], parameters[4]]},
        {"params": [parameters[2]], "adapt": False},
        {"params": [parameters[3]], "momentum": 0.5, "trust_coefficient": 0.02},
    ]
    optimizer = LARS(groups, 0.0, momentum=0.9, weight_decay=decay, nesterov=nesterov, foreach=foreach)
    for step, lr in enumerate(rates):
        for group in optimizer.param_groups:
            group["lr"] = torch.tensor(lr, dtype=torch.float64) if as_tensor else lr
        for p, g in zip(parameters, gradients[step], strict=True):
            p.grad = torch.from_numpy(g.copy())
        optimizer.step()
        for p, g in zip(parameters, gradients[step], strict=True):
            assert p.grad is not None
            np.testing.assert_array_equal(p.grad.numpy(), g)
    for p, expected in zip(parameters, reference(weights, gradients, rates, settings), strict=True):
        np.testing.assert_allclose(p.detach().numpy(), expected, rtol=1e-13, atol=1e-15)


def test_adaptation_stays_on_without_decay() -> None:
    """The step of an adapted weight has length lr * trust * ||w||, however large the gradient is."""
    for size in (1e-3, 1.0, 1e3):
        w = nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))
        w.grad = torch.tensor([size, 0.0], dtype=torch.float64)
        LARS([w], lr=2.0, weight_decay=0.0).step()
        torch.testing.assert_close(w.detach(), torch.tensor([3.0 - 2.0 * 0.001 * 5.0, 4.0], dtype=torch.float64))


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_norms_of_half_precision_do_not_overflow(dtype: torch.dtype, foreach: bool) -> None:
    w = nn.Parameter(torch.full((256,), 64.0, dtype=dtype))
    w.grad = torch.full((256,), 32.0, dtype=dtype)
    LARS([w], lr=100.0, foreach=foreach).step()
    torch.testing.assert_close(w.detach().float(), torch.full((256,), 64.0 - 0.1 * 64), rtol=8e-3, atol=0)


def small_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 3))


def train(model: nn.Module, optimizer: LARS, schedule: WarmupCosine, steps: range) -> None:
    for step in steps:
        x = torch.randn(8, 5, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        (model(x) - 1).square().mean().backward()
        optimizer.step()
        schedule.step()


def make(model: nn.Module) -> tuple[LARS, WarmupCosine]:
    optimizer = LARS(lars_param_groups(model, 1e-4), lr=0.1)
    return optimizer, WarmupCosine(optimizer, peak_lr=0.1, warmup_steps=3, total_steps=12)


@pytest.mark.parametrize("schedule_first", [False, True])
def test_saved_and_resumed_run_ends_in_the_same_bits(schedule_first: bool) -> None:
    whole = small_model()
    train(whole, *make(whole), range(12))

    part = small_model()
    optimizer, schedule = make(part)
    train(part, optimizer, schedule, range(5))
    file = io.BytesIO()
    torch.save([part.state_dict(), optimizer.state_dict(), schedule.state_dict()], file)
    file.seek(0)
    model_state, optimizer_state, schedule_state = torch.load(file, weights_only=True)

    resumed = small_model()
    resumed.load_state_dict(model_state)
    optimizer, schedule = make(resumed)
    loads = [(optimizer, optimizer_state), (schedule, schedule_state)]
    for thing, state in reversed(loads) if schedule_first else loads:
        thing.load_state_dict(state)
    train(resumed, optimizer, schedule, range(5, 12))
    for name, value in whole.state_dict().items():
        assert value.isfinite().all(), name
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_closure_is_called_with_gradients_on_and_its_value_returned() -> None:
    w = nn.Parameter(torch.ones(3))
    optimizer = LARS([w], lr=1.0)

    def closure() -> float:
        optimizer.zero_grad()
        loss = (w * w).sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 3.0
    torch.testing.assert_close(w.detach(), torch.full((3,), 0.999))


def test_parameters_without_gradient_are_left_alone() -> None:
    used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = LARS([used, unused], lr=1.0, weight_decay=0.1)
    used.grad = torch.ones(2)
    optimizer.step()
    assert not torch.equal(used, torch.ones(2))
    assert torch.equal(unused, torch.ones(2))
    assert unused not in optimizer.state
    LARS([unused], lr=1.0).step()


def test_added_group_has_its_own_settings_and_the_defaults() -> None:
    first, second = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = LARS([first], lr=1.0, weight_decay=0.5)
    optimizer.add_param_group({"params": [second], "adapt": False, "weight_decay": 0.0})
    assert optimizer.param_groups[1]["momentum"] == 0.9
    second.grad = torch.full((2,), 0.25)
    optimizer.step()
    assert torch.equal(second.detach(), torch.full((2,), 0.75))


@pytest.mark.parametrize("foreach", [False, True])
def test_mixed_dtypes_in_one_group(foreach: bool) -> None:
    parameters = [nn.Parameter(torch.ones(4, dtype=dtype)) for dtype in (torch.float32, torch.float64, torch.float32)]
    for p in parameters:
        p.grad = torch.ones_like(p)
    LARS(parameters, lr=1.0, foreach=foreach).step()
    for p in parameters:
        torch.testing.assert_close(p.detach(), torch.full_like(p, 0.999))


def test_with_a_gradient_scaler() -> None:
    w = nn.Parameter(torch.ones(4))
    optimizer = LARS([w], lr=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    scaler.scale(w.square().sum()).backward()
    scaler.step(optimizer)
    torch.testing.assert_close(w.detach(), torch.full((4,), 0.999))


def test_sparse_gradient_is_refused() -> None:
    layer = nn.Embedding(4, 2, sparse=True)
    layer(torch.tensor([1])).sum().backward()
    other = nn.Parameter(torch.ones(2, 2))
    other.square().sum().backward()
    optimizer = LARS([{"params": [other]}, {"params": layer.parameters()}], lr=1.0)
    with pytest.raises(RuntimeError, match="sparse=False"):
        optimizer.step()
    # The step changes no parameter, also of the groups before.
    assert torch.equal(other, torch.ones(2, 2))
    assert not optimizer.state


def test_complex_parameter_is_refused_and_not_kept() -> None:
    with pytest.raises(TypeError, match="view_as_real"):
        LARS([nn.Parameter(torch.ones(2, dtype=torch.complex64))], lr=1.0)
    optimizer = LARS([nn.Parameter(torch.ones(2))], lr=1.0)
    with pytest.raises(TypeError, match="complex"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2, dtype=torch.complex64))]})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        ({"lr": -1.0}, "finite number, at least 0"),
        ({"lr": float("nan")}, "finite number, at least 0"),
        ({"momentum": 1.0}, r"\[0, 1\)"),
        ({"weight_decay": -1e-6}, "at least 0"),
        ({"trust_coefficient": 0.0}, "above 0"),
        ({"momentum": 0.0, "nesterov": True}, "momentum above 0"),
    ],
)
def test_settings_out_of_range(bad: dict[str, float], expected: str) -> None:
    parameter = nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match=expected):
        LARS([parameter], **{"lr": 1.0, **bad})
    with pytest.raises(ValueError, match=expected):
        LARS([nn.Parameter(torch.ones(1))], lr=1.0).add_param_group({"params": [parameter], **bad})


@pytest.mark.parametrize("name", ["lr", "momentum", "weight_decay", "trust_coefficient"])
@pytest.mark.parametrize("wrong", ["0.1", None, torch.tensor([0.1, 0.2])])
def test_settings_that_are_no_numbers(name: str, wrong: object) -> None:
    with pytest.raises(TypeError, match=rf"LARS: got {name}=.*, expected a number"):
        LARS([nn.Parameter(torch.ones(1))], **{"lr": 1.0, name: wrong})  # type: ignore[arg-type]
