"""The paper's network: parameters, and a whole training graph against values of the released code."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from monai.networks.nets import DynUNet
from torch import Tensor, nn
from torch.nn import functional as F

from contrastive_core import local_contrastive
from contrastive_core.errors import UserError
from ssl_medseg.losses.segmentation import dice_loss
from ssl_medseg.models import ContrastHead, NetworkOptions, UNet, build_network

Golden = Callable[[str], np.lib.npyio.NpzFile]


def official_order(trunk: UNet, segment: nn.Module, contrast: nn.Module) -> list[tuple[nn.Parameter, bool]]:
    """Return parameters in the order of the released graph's variables, and whether each is a kernel."""
    parts: list[nn.Module] = [*trunk.down]
    for up, join in zip(trunk.up, trunk.join, strict=True):
        parts += [up, join]
    found: list[tuple[nn.Parameter, bool]] = []
    for part in [*parts, segment, contrast]:
        for module in part.modules():
            if isinstance(module, nn.Conv2d):
                found.append((module.weight, True))
                if module.bias is not None:
                    found.append((module.bias, False))
            elif isinstance(module, nn.BatchNorm2d):
                found += [(module.bias, False), (module.weight, False)]
    return found


def formula(number: int, shape: tuple[int, ...]) -> Tensor:
    """Return kernel `number`: 2 / sqrt(fan_in) * cos(1.7 j + 0.3 i) in the flat HWIO order, as OIHW."""
    out, inside, height, width = shape
    flat = torch.arange(math.prod(shape), dtype=torch.float64)
    values = 2 / math.sqrt(height * width * inside) * torch.cos(1.7 * flat + 0.3 * number)
    return values.reshape(height, width, inside, out).permute(3, 2, 0, 1)


def test_parameters_of_the_paper() -> None:
    network = build_network(NetworkOptions("unet", 16), classes=4)
    counts = [sum(p.numel() for p in part.parameters()) for part in (network.trunk, network.head, ContrastHead(16))]
    assert counts == [885_552 + 1_204_928, 5_280, 544]
    assert sum(counts) == 2_096_304


def test_whole_graph_against_the_released_code(golden: Golden) -> None:
    """Losses, probabilities, embeddings and the norm of every gradient, with batch norm in training mode."""
    recorded = golden("medseg")
    variables = json.loads(bytes(recorded["meta_json"]).decode())["net_variables"]
    network = build_network(NetworkOptions("unet", 16), classes=4).double()
    contrast = ContrastHead(16).double()
    assert isinstance(network.trunk, UNet)
    parameters = official_order(network.trunk, network.head, contrast)
    assert len(parameters) == len(variables) == 117
    with torch.no_grad():
        for number, ((parameter, is_kernel), (_, shape, _)) in enumerate(zip(parameters, variables, strict=True)):
            if is_kernel:
                assert tuple(parameter.permute(2, 3, 1, 0).shape) == tuple(shape)
                parameter.copy_(formula(number, tuple(parameter.shape)))

    x = torch.from_numpy(recorded["net/x"]).double().permute(0, 3, 1, 2)
    label = torch.from_numpy(recorded["net/label"]).long()
    features = network.features(x)
    logits = network.segment(features)[:2]
    embedding = contrast(features[2:])
    segmentation = dice_loss(logits, label[:2])
    contrastive = 0.1 * local_contrastive(
        embedding,
        label[2:],
        pairs=torch.tensor([[0, 1]]),
        anchors=torch.from_numpy(recorded["net/pos"]).long(),
        num_classes=4,
    )
    (segmentation + contrastive).backward()

    assert segmentation.item() == pytest.approx(float(recorded["net/seg_cost"]), abs=1e-4)
    assert contrastive.item() == pytest.approx(float(recorded["net/cont_cost_lambda01"]), abs=1e-3)
    probability = logits.softmax(1).permute(0, 2, 3, 1).detach().numpy()
    assert np.abs(probability - recorded["net/prob"]).max() < 1e-2
    assert np.abs(probability - recorded["net/prob"]).mean() < 5e-4
    sampled = embedding[:, :, ::4, ::4].permute(0, 2, 3, 1).detach().numpy()
    spread = recorded["net/emb_std_per_channel"].mean()
    assert np.abs(sampled - recorded["net/emb_ds4"]).mean() < 0.01 * spread
    # Batch norm over these nearly dependent kernels magnifies rounding: in the encoder the norms of float32 and float64
    # differ by a tenth. Biases before batch norm have no gradient; what is recorded for them is rounding.
    near_heads = ("seg_", "cont_", "dec_c1", "dec_dc2")
    for (parameter, _), norm, (name, *_) in zip(parameters, recorded["net/grad_norm"], variables, strict=True):
        assert parameter.grad is not None
        if not name.endswith("/b"):
            tolerance = 0.01 if name.startswith(near_heads) else 0.2
            assert float(parameter.grad.norm()) == pytest.approx(norm, rel=tolerance), name


def test_sizes_that_32_does_not_divide_are_padded_and_cut_back() -> None:
    network = build_network(NetworkOptions("unet", 2), classes=3).eval()
    x = torch.randn(2, 1, 50, 33)
    assert network.features(x).shape == (2, 2, 50, 33)
    assert network(x).shape == (2, 3, 50, 33)
    padded = F.pad(x, (0, 31, 0, 14))
    torch.testing.assert_close(network(x)[..., :40, :20], network(padded)[..., :40, :20])


def test_decoder_blocks_and_bottleneck_have_the_parents_sizes() -> None:
    trunk = UNet(width=4)
    maps = trunk.encode(torch.zeros(1, 1, 64, 96))
    assert maps[-1].shape == (1, 32, 2, 3)
    assert trunk.bottleneck_channels == 32
    assert trunk.decode(maps, blocks=3).shape == (1, 16, 16, 24)
    torch.testing.assert_close(trunk.decode(maps), trunk.decode(maps, blocks=5))


def test_layers_of_equal_shape_start_apart_with_the_variance_of_he() -> None:
    torch.manual_seed(0)
    trunk = UNet()
    first, second = (trunk.down[level][1][0].weight for level in (4, 5))
    assert first.shape == second.shape
    assert not torch.equal(first, second)
    assert float(first.detach().std()) == pytest.approx(math.sqrt(2 / (9 * 128)), rel=0.02)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": "resnet"}, "no network named 'resnet'"),
        ({"width": -1}, "network.width is -1"),
        ({"arguments": {"channels": [2]}}, "network.arguments"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        NetworkOptions(**options)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="classes is 1"):
        build_network(NetworkOptions("unet", 16), classes=1)


MONAI = ["UNet", "BasicUNet", "DynUNet", "FlexibleUNet", "AttentionUnet", "SegResNet"]


@pytest.mark.parametrize("name", MONAI)
def test_networks_of_monai_give_features(name: str) -> None:
    arguments = {"AttentionUnet": {"channels": [4, 8, 16], "strides": [2, 2]}}.get(name, {})
    network = build_network(NetworkOptions(f"monai:{name}", width=4, arguments=arguments), classes=3)
    x = torch.randn(2, 1, 64, 70)
    features = network.features(x)
    assert features.shape == (2, network.feature_channels, 64, 70) == (2, 4, 64, 70)
    network(x).square().mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("NoNet", {}, "no network named 'NoNet'"),
        ("UNet", {"kernel": 3}, "unexpected keyword"),
        ("BasicUNetPlusPlus", {}, "expected one feature map"),
    ],
)
def test_what_monai_cannot_give_is_said(name: str, arguments: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        build_network(NetworkOptions(f"monai:{name}", width=4, arguments=arguments), classes=2)


def test_the_plain_unet_is_monais_dynamic_unet_but_for_names() -> None:
    """Equal layers and parameter counts; a slice is segmented alike alone and in a batch."""
    ours = build_network(NetworkOptions("plain-unet", 8), 4)
    theirs = DynUNet(
        spatial_dims=2, in_channels=1, out_channels=4, kernel_size=[3] * 5, strides=[1, 2, 2, 2, 2],
        upsample_kernel_size=[2] * 4, filters=[8, 16, 32, 64, 64], norm_name=("INSTANCE", {"affine": True}),
    )  # fmt: skip
    biases = sum(layer.bias.numel() for layer in ours.trunk.up)  # the transposed convolutions have them here
    count = sum(p.numel() for p in ours.parameters()) - biases
    assert count == sum(p.numel() for p in theirs.parameters())
    slices = torch.rand(3, 1, 40, 56)
    together = ours(slices)
    assert together.shape == (3, 4, 40, 56)
    torch.testing.assert_close(ours(slices[1:2]), together[1:2], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours.eval()(slices), together)


def test_a_network_that_no_recipe_has_chosen_is_refused() -> None:
    with pytest.raises(UserError, match="the network is auto of width 0"):
        build_network(NetworkOptions("auto", 0), 4)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_plain_unet_computes_in_one_memory_format(channels: int) -> None:
    """In the other format, training on several channels in bfloat16 took more than three times as long."""
    torch.manual_seed(0)
    network = build_network(NetworkOptions("plain-unet", width=4), 2, channels=channels)
    formats: list[bool] = []
    for part in network.modules():
        if isinstance(part, nn.GroupNorm):
            part.register_forward_hook(lambda _, inputs, __: formats.append(inputs[0].is_contiguous()))
    x = torch.randn(2, channels, 32, 32)
    stored = network(x)
    torch.testing.assert_close(network(x.contiguous(memory_format=torch.channels_last)), stored, rtol=0, atol=0)
    assert formats
    assert all(formats)
