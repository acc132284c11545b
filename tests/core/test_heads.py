"""ProjectionHead against values recorded from the official code, and its edge cases."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from contrastive_core import ProjectionHead
from contrastive_core.training.sync_batchnorm import SyncBatchNorm, convert_sync_batchnorm

Golden = Callable[[str], np.lib.npyio.NpzFile]


def recorded_head(recorded: np.lib.npyio.NpzFile, tag: str) -> ProjectionHead:
    """The head with the official weights, read by their official names."""
    layers = int(tag[-1])
    head = ProjectionHead(6, 5, layers=layers)
    state = {}
    for i, name in enumerate(recorded[f"layer/{tag}/weight_names"]):
        value = torch.from_numpy(recorded[f"layer/{tag}/weight/{i:02d}"])
        state.update([torch_name(name, value)])
    missing, unexpected = head.load_state_dict(state, strict=False)
    assert unexpected == []
    assert [name for name in missing if not name.endswith("num_batches_tracked")] == []
    return head


def torch_name(name: str, value: torch.Tensor) -> tuple[str, torch.Tensor]:
    layer = name.split("/nl_")[1][0]
    kind = name.rsplit("/", 1)[1].removesuffix(":0")
    if kind == "kernel":
        return f"layers.{layer}.linear.weight", value.T.contiguous()
    kinds = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
    return f"layers.{layer}.norm.{kinds[kind]}", value


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_outputs_are_the_official_ones(golden: Golden, mode: str) -> None:
    tag = "proj3"
    recorded = golden("vision")
    head = recorded_head(recorded, tag).train(mode == "train")
    x = torch.from_numpy(recorded[f"layer/{tag}/input"])
    fine_tune_point = copy.deepcopy(head).first_layers(1)
    np.testing.assert_allclose(head(x).detach().numpy(), recorded[f"layer/{tag}/output_{mode}"], rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(
        fine_tune_point(x).detach().numpy(), recorded[f"layer/{tag}/ft_layer1_{mode}"], rtol=2e-6, atol=2e-6
    )


def test_moving_averages(golden: Golden) -> None:
    """Means move as in TensorFlow, and so do variances without PyTorch's factor N / (N - 1)."""
    tag = "proj3"
    recorded = golden("vision")
    head = recorded_head(recorded, tag).train()
    x = torch.from_numpy(recorded[f"layer/{tag}/input"])
    before = copy.deepcopy(head.state_dict())
    head(x)
    after = head.state_dict()
    flat, seen = recorded[f"layer/{tag}/weights_after_train_call"], 0
    for i, name in enumerate(recorded[f"layer/{tag}/weight_names"]):
        shape = recorded[f"layer/{tag}/weight/{i:02d}"].shape
        size = int(np.prod(shape))
        key, official = torch_name(name, torch.from_numpy(flat[seen : seen + size].reshape(shape)))
        seen += size
        ours = after[key]
        if key.endswith("running_var"):
            biased = (len(x) - 1) / len(x)
            ours = 0.9 * before[key] + (ours - 0.9 * before[key]) * biased
        torch.testing.assert_close(ours, official, rtol=2e-6, atol=2e-6)
    assert seen == len(flat)


def test_parameter_counts_are_the_official_ones(golden: Golden) -> None:
    for depth, width, _, _, layers, _, expected, _, _ in golden("vision")["arch/param_counts"].tolist():
        features = (512 if depth < 50 else 2048) * width
        with torch.device("meta"):
            head = ProjectionHead(features, layers=layers)
        assert sum(p.numel() for p in head.parameters()) == expected


def test_structure_and_start() -> None:
    torch.manual_seed(0)
    head = ProjectionHead(200, 64, hidden_features=300, layers=3)
    shapes = {name: tuple(p.shape) for name, p in head.named_parameters()}
    assert shapes == {
        "layers.0.linear.weight": (300, 200),
        "layers.0.norm.weight": (300,),
        "layers.0.norm.bias": (300,),
        "layers.1.linear.weight": (300, 300),
        "layers.1.norm.weight": (300,),
        "layers.1.norm.bias": (300,),
        "layers.2.linear.weight": (64, 300),
        "layers.2.norm.weight": (64,),
    }
    for name, p in head.named_parameters():
        if "linear" in name:
            assert abs(p.std().item() / 0.01 - 1) < 0.02
            assert abs(p.mean().item()) < 3e-4
        else:
            assert (p == (1 if name.endswith("weight") else 0)).all()
    for norm in (m for m in head.modules() if isinstance(m, nn.BatchNorm1d)):
        assert (norm.eps, norm.momentum) == (1e-5, 0.1)


@pytest.mark.parametrize("layers", [1, 2, 4])
@pytest.mark.parametrize("training", [True, False])
def test_against_the_formula(layers: int, training: bool) -> None:
    """Written out with matrices; scales, shifts and running statistics differ from their initial values."""
    torch.manual_seed(0)
    head = ProjectionHead(4, 3, hidden_features=5, layers=layers).double().train(training)
    for tensor in head.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.5)
    x = torch.randn(6, 4, dtype=torch.float64)
    state, expected = copy.deepcopy(head.state_dict()), x
    for i in range(layers):
        y = expected @ state[f"layers.{i}.linear.weight"].T
        mean, var = (state[f"layers.{i}.norm.running_{name}"] for name in ("mean", "var"))
        if training:
            mean, var = y.mean(0), ((y - y.mean(0)) ** 2).mean(0)
        y = (y - mean) / (var + 1e-5).sqrt() * state[f"layers.{i}.norm.weight"]
        expected = y if i == layers - 1 else (y + state[f"layers.{i}.norm.bias"]).clamp_min(0)
    torch.testing.assert_close(head(x), expected)


def test_first_layers_share_weights() -> None:
    head = ProjectionHead(4, 3, layers=3).eval()
    x = torch.randn(5, 4)
    assert head.first_layers(0)(x) is x
    torch.testing.assert_close(head.first_layers(3)(x), head(x))
    part = head.first_layers(1)
    part(x).sum().backward()
    assert head.layers[0].linear.weight.grad is not None
    assert head.layers[1].linear.weight.grad is None
    for count in (-1, 4):
        with pytest.raises(ValueError, match="0 to 3 layers"):
            head.first_layers(count)


@pytest.mark.parametrize(
    ("convert", "layer"),
    [(nn.SyncBatchNorm.convert_sync_batchnorm, nn.SyncBatchNorm), (convert_sync_batchnorm, SyncBatchNorm)],
)
def test_sync_batch_norm_conversion_keeps_the_missing_shift(
    convert: Callable[[nn.Module], nn.Module], layer: type[nn.Module]
) -> None:
    head = ProjectionHead(4, 3, layers=2)
    names = list(head.state_dict())
    converted = convert(copy.deepcopy(head))
    assert sum(isinstance(m, layer) for m in converted.modules()) == 2
    assert list(converted.state_dict()) == names
    assert converted.layers[1].norm.bias is None
    assert sum(isinstance(m, layer) for m in converted.first_layers(1).modules()) == 1
    x = torch.randn(5, 4)
    torch.testing.assert_close(converted.eval()(x), head.eval()(x))


def test_gradients_against_finite_differences() -> None:
    torch.manual_seed(1)
    head = ProjectionHead(3, 2, layers=2).double()
    for p in head.parameters():
        nn.init.normal_(p)
    assert torch.autograd.gradcheck(head, torch.randn(5, 3, dtype=torch.float64, requires_grad=True))


def test_under_autocast_and_bfloat16() -> None:
    head = ProjectionHead(8, 4)
    with torch.autocast("cpu", torch.bfloat16):
        z = head(torch.randn(6, 8))
    z.float().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())


@pytest.mark.parametrize("bad", [{"in_features": 0}, {"out_features": 0}, {"layers": 0}, {"hidden_features": 0}])
def test_sizes_below_one_are_refused(bad: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(bad))} is 0"):
        ProjectionHead(**{"in_features": 4, **bad})


@pytest.mark.parametrize("shape", [(4,), (2, 5), (2, 4, 7, 7)])
def test_wrong_input_says_what_to_do(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected \[N, 4\]; pool"):
        ProjectionHead(4)(torch.zeros(shape))
