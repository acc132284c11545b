"""Batch norm with several views: what is shared, what is not, and statistics equal to a brute-force count."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from contrastive_core.errors import UserError
from ssl_video.models import NetworkOptions, build_network
from ssl_video.models.networks import (
    ViewBatchNorm,
    join_batchnorm,
    labelling,
    recalibrate_bn,
    split_batchnorm,
    views_in_batch,
)

VIEWS = ("rgb", "tg")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv3d(3, 4, (1, 3, 3)), nn.BatchNorm3d(4), nn.ReLU(), nn.Dropout(0.5), nn.Conv3d(4, 4, 1), nn.BatchNorm3d(4)
    )


def clips(n: int, *, offset: float = 0.0, seed: int = 1) -> Tensor:
    return torch.randn(n, 3, 2, 6, 6, generator=torch.Generator().manual_seed(seed)) + offset


def test_split_views_equal_two_networks_with_the_same_weights() -> None:
    plain = network().train()
    plain[3] = nn.Identity()
    split = split_batchnorm(copy.deepcopy(plain), VIEWS)
    rgb, tg = clips(3), clips(2, offset=2.0, seed=2)
    apart = {"rgb": copy.deepcopy(plain), "tg": copy.deepcopy(plain)}
    expected = torch.cat([apart["rgb"](rgb), apart["tg"](tg)])
    with views_in_batch(split, [("rgb", 3), ("tg", 2)]):
        found = split(torch.cat([rgb, tg]))
    assert torch.allclose(found, expected, atol=1e-6)
    found.square().sum().backward()
    expected.square().sum().backward()
    summed = apart["rgb"][1].weight.grad + apart["tg"][1].weight.grad
    assert torch.allclose(split[1].norms["rgb"].weight.grad, summed, rtol=1e-4)
    for view in VIEWS:
        assert torch.allclose(split[1].norms[view].running_mean, apart[view][1].running_mean, atol=1e-6)
        assert torch.allclose(split[5].norms[view].running_var, apart[view][5].running_var, atol=1e-6)
    # Called as any other network it is the one of the first view.
    assert torch.allclose(split.eval()(rgb), apart["rgb"].eval()(rgb), atol=1e-6)
    assert not torch.allclose(split(rgb), apart["tg"].eval()(rgb), atol=1e-2)


@pytest.mark.parametrize("on_meta", [False, True])
def test_views_share_parameters_after_loading(on_meta: bool) -> None:
    saved = split_batchnorm(network(), VIEWS)
    with torch.device("meta" if on_meta else "cpu"):
        loaded = split_batchnorm(network(), VIEWS)
    if on_meta:
        loaded.to_empty(device="cpu").load_state_dict(saved.state_dict())
    else:
        loaded.load_state_dict(saved.state_dict(), assign=True)
    assert len(list(loaded.parameters())) == len(list(network().parameters()))
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, saved.state_dict()[name])


def test_split_keeps_the_parameters() -> None:
    plain = network()
    before = list(plain.parameters())
    split = split_batchnorm(plain, VIEWS)
    assert {id(p) for p in split.parameters()} == {id(p) for p in before}
    assert sum(isinstance(part, ViewBatchNorm) for part in split_batchnorm(split, VIEWS).modules()) == 2
    joined = join_batchnorm(copy.deepcopy(split), "tg")
    assert list(joined.state_dict()) == list(network().state_dict())
    with pytest.raises(ValueError, match="a network that contains some"):
        split_batchnorm(nn.BatchNorm3d(2), VIEWS)


def test_a_network_is_not_split_again_by_other_views() -> None:
    split = split_batchnorm(network(), VIEWS)
    split_batchnorm(split, VIEWS)
    for views in (("rgb",), ("tg", "rgb"), ("rgb", "tg", "flow")):
        with pytest.raises(ValueError, match=r"already split by the views rgb, tg.*join_batchnorm"):
            split_batchnorm(split, views)
    assert list(split_batchnorm(join_batchnorm(split, "rgb"), ("tg",))[1].norms) == ["tg"]


def test_an_unknown_view_is_named() -> None:
    split = split_batchnorm(network(), VIEWS)
    with pytest.raises(UserError, match="has the views rgb, tg, not flow"):
        recalibrate_bn(split, [clips(3)], view="flow")
    with pytest.raises(UserError, match="has the views rgb, tg, not flow"):
        join_batchnorm(split, "flow")


def test_a_norm_in_two_places_stays_one() -> None:
    norm = nn.BatchNorm3d(3)
    split = split_batchnorm(nn.Sequential(norm, nn.ReLU(), norm), VIEWS)
    assert split[0] is split[2]


def test_split_networks_of_the_libraries() -> None:
    for name in ("r3d_18", "x3d_xs"):
        torch.manual_seed(0)
        plain = build_network(NetworkOptions(name), 3).eval()
        x = torch.randn(1, 3, 4, 32, 32)
        expected = plain(x)
        assert torch.allclose(split_batchnorm(plain, VIEWS)(x), expected, atol=1e-5)


def test_labelling_leaves_no_trace() -> None:
    net = network().train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    x = clips(4, offset=1.0)
    with labelling(net):
        first, second = net(x), net(x)
        assert not first.requires_grad
    assert torch.equal(first, second)  # no dropout
    assert first.mean(dim=(0, 2, 3, 4)).abs().max() < 1e-5  # the statistics are the batch's
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(part.training for part in net.modules())
    net(x)
    assert not torch.equal(net[1].running_mean, before["1.running_mean"])


class Merged(nn.Conv3d):
    """A layer with an adapter that `eval` adds to the weight and `train` subtracts, as those of LoRA do."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 1)
        self.adapter, self.merged = nn.Parameter(torch.ones_like(self.weight)), False

    def train(self, mode: bool = True) -> Merged:
        if self.merged == mode:
            self.weight.data += self.adapter.data * (-1 if mode else 1)
            self.merged = not mode
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight if self.merged else self.weight + self.adapter, self.bias)


def test_layers_that_change_with_the_mode_are_trained_after_labelling_and_recalibration() -> None:
    net = nn.Sequential(nn.BatchNorm3d(3), Merged(3)).train()
    weight, expected = net[1].weight.detach().clone(), net(clips(4)).detach()
    with labelling(net):
        assert torch.allclose(net(clips(4)), expected)
    recalibrate_bn(net, [clips(4)])
    assert torch.equal(net[1].weight, weight)
    net(clips(4)).sum().backward()
    assert net[1].adapter.grad is not None


def brute_force(batches: list[Tensor], net: nn.Module) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return mean and variance of the input of each batch norm, every batch normalised by itself, in float64."""
    seen: list[list[np.ndarray]] = [[], []]
    for x in batches:
        first = net[0](x).double()
        mean, var = first.mean(dim=(0, 2, 3, 4), keepdim=True), first.var(dim=(0, 2, 3, 4), keepdim=True, correction=0)
        hidden = ((first - mean) / (var + 1e-5).sqrt()).clamp(min=0)
        second = net[4].double()(hidden)
        net[4].float()
        for into, value in zip(seen, (first, second), strict=True):
            into.append(value.detach().transpose(0, 1).reshape(4, -1).numpy())
    return [(np.concatenate(s, 1).mean(1), np.concatenate(s, 1).var(1, ddof=1)) for s in seen]


def test_recalibrated_statistics_are_those_of_all_batches() -> None:
    net = network().train()
    batches = [clips(4, seed=3), clips(2, offset=3.0, seed=4), clips(5, offset=-1.0, seed=5)]
    expected = brute_force(batches, net)
    weights = {name: value.clone() for name, value in net.named_parameters()}
    assert recalibrate_bn(net, batches) == 11
    for norm, (mean, var) in zip((net[1], net[5]), expected, strict=True):
        assert np.allclose(norm.running_mean.numpy(), mean, atol=1e-5)
        assert np.allclose(norm.running_var.numpy(), var, rtol=1e-4)
    assert all(torch.equal(value, weights[name]) for name, value in net.named_parameters())
    assert all(part.training for part in net.modules())


def test_recalibration_matters_after_training_on_two_views() -> None:
    net = network().train()
    rgb, tg = clips(8), clips(8, offset=5.0, seed=2)
    for _ in range(60):
        net(torch.cat([rgb, tg]))
    joint = net.eval()(rgb).detach()
    recalibrate_bn(net, [rgb])
    recalibrated = net(rgb).detach()
    assert recalibrated.mean(dim=(0, 2, 3, 4)).abs().max() < 0.01
    assert joint.mean(dim=(0, 2, 3, 4)).abs().max() > 0.1
    assert (joint - recalibrated).abs().mean() > 0.1


def test_recalibration_of_one_view_leaves_the_other() -> None:
    net = split_batchnorm(network(), VIEWS)
    before = net[1].norms["rgb"].running_mean.clone()
    recalibrate_bn(net, [clips(4, offset=2.0)], view="tg")
    assert torch.equal(net[1].norms["rgb"].running_mean, before)
    assert not torch.equal(net[1].norms["tg"].running_mean, before)


class Scaled(nn.BatchNorm3d):
    """A batch norm of another library: a constructor and a parameter of its own."""

    def __init__(self, name: str) -> None:
        super().__init__({"four channels": 4}[name])
        self.gain = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.gain


def test_subclasses_of_batch_norm_have_statistics_of_each_view_and_share_all_parameters() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv3d(3, 4, 1), Scaled("four channels"), nn.ReLU()).train()
    split, rgb, tg = split_batchnorm(copy.deepcopy(plain), VIEWS), clips(3), clips(2, offset=2.0, seed=2)
    alone = {view: copy.deepcopy(plain) for view in VIEWS}
    expected = torch.cat([alone["rgb"](rgb), alone["tg"](tg)])
    with views_in_batch(split, [("rgb", 3), ("tg", 2)]):
        found = split(torch.cat([rgb, tg]))
    assert torch.allclose(found, expected, atol=1e-6)
    assert len(list(split.parameters())) == len(list(plain.parameters()))
    split.load_state_dict(copy.deepcopy(split.state_dict()), assign=True)
    assert split[1].norms["tg"].gain is split[1].norms["rgb"].gain
    for view, batch in (("rgb", rgb), ("tg", tg)):
        recalibrate_bn(split, [batch], view=view)
    # Testing used the statistics of the view that was recalibrated last.
    assert split.eval()(rgb).mean().item() == pytest.approx(found[:3].mean().item(), rel=0.02)
    assert torch.allclose(split[1].norms["rgb"].running_mean, plain[0](rgb).mean(dim=(0, 2, 3, 4)), atol=1e-5)


def test_recalibration_needs_clips_and_norms() -> None:
    with pytest.raises(UserError, match="without clips"):
        recalibrate_bn(network(), [])
    assert recalibrate_bn(nn.Conv3d(3, 4, 1), [clips(2)]) == 0
