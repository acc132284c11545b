"""Encoders against values recorded from the official TensorFlow code."""

from __future__ import annotations

import subprocess
import sys
import types
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from contrastive_core.errors import UserError
from ssl_vision.models import EncoderOptions, build_encoder, resnet
from ssl_vision.models.resnet import Bottleneck, ResNetDPool, SameMaxPool, SelectiveKernel, shortcut


def load_official(module: nn.Module, values: Any, tag: str, order: list[str]) -> None:
    """Copy recorded weights; `order` lists our convolutions and norms in the official order of creation."""
    names = [str(name) for name in values[f"layer/{tag}/weight_names"]]
    weights = [torch.from_numpy(values[f"layer/{tag}/weight/{i:02d}"]) for i in range(len(names))]
    learned = [w for n, w in zip(names, weights, strict=True) if "moving" not in n]
    moving = [w for n, w in zip(names, weights, strict=True) if "moving" in n]
    with torch.no_grad():
        for path in order:
            part = module.get_submodule(path)
            if isinstance(part, nn.Conv2d):
                part.weight.copy_(learned.pop(0).permute(3, 2, 0, 1))
            else:
                part.weight.copy_(learned.pop(0))
                part.bias.copy_(learned.pop(0))
                part.running_mean.copy_(moving.pop(0))
                part.running_var.copy_(moving.pop(0))
    assert not learned
    assert not moving


def nchw(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array).permute(0, 3, 1, 2)


PLAIN = ["downsample.0", "downsample.1", "conv1", "bn1", "conv2", "bn2", "conv3", "bn3"]
SELECTIVE = [
    *("downsample.1", "downsample.2", "conv1", "bn1", "conv2.conv", "conv2.bn"),
    *("conv2.squeeze", "conv2.squeeze_bn", "conv2.attend", "conv3", "bn3"),
]


@pytest.mark.parametrize(
    ("tag", "module", "order"),
    [
        ("bottleneck_sk0_stride1", Bottleneck(6, 2, project=True), PLAIN),
        ("bottleneck_sk0.0625_stride2", Bottleneck(6, 2, stride=2, project=True, sk_ratio=0.0625), SELECTIVE),
        ("sk_stride1", SelectiveKernel(6, 4), ["conv", "bn", "squeeze", "squeeze_bn", "attend"]),
    ],
)
def test_layer_equals_official(golden: Any, tag: str, module: nn.Module, order: list[str]) -> None:
    values = golden("vision")
    load_official(module, values, tag, order)
    images = nchw(values[f"layer/{tag}/input"])
    torch.testing.assert_close(module.eval()(images), nchw(values[f"layer/{tag}/output_eval"]), rtol=1e-5, atol=2e-6)
    if f"layer/{tag}/output_train" in values:
        expected = nchw(values[f"layer/{tag}/output_train"])
        torch.testing.assert_close(module.train()(images), expected, rtol=1e-5, atol=2e-6)


def test_parameter_counts_are_official(golden: Any) -> None:
    for depth, width, sk, size, _, count, _, _, variables in golden("vision")["arch/param_counts"].tolist():
        with torch.device("meta"):
            model = resnet(
                depth, width=width, stem="cifar" if size <= 32 else "imagenet", sk_ratio=0.0625 if sk else 0.0
            )
        assert sum(p.numel() for p in model.parameters()) == count
        assert len(list(model.parameters())) == variables


def test_resnet18_shapes_are_official(golden: Any) -> None:
    values = golden("vision")
    official = [tuple(int(n) for n in str(s).strip("()[] ,").split(",")) for s in values["arch/r18_cifar/shapes"]]
    convs = sorted(tuple(m.weight.permute(2, 3, 1, 0).shape) for m in resnet(18, stem="cifar").modules()
                   if isinstance(m, nn.Conv2d))  # fmt: skip
    assert convs == sorted(shape for shape in official if len(shape) == 4)


def test_pooling_has_tensorflow_padding() -> None:
    even = torch.arange(16.0).view(1, 1, 4, 4)
    # 'SAME' on an even size looks only down and right: windows start at 0 and 2.
    assert SameMaxPool()(even).flatten().tolist() == [10, 11, 14, 15]
    assert SameMaxPool()(torch.arange(9.0).view(1, 1, 3, 3)).flatten().tolist() == [4, 5, 7, 8]
    # ResNet-D, stride 1: the mean of the pixels that exist.
    assert ResNetDPool(1)(torch.tensor([[[[1.0, 3.0], [5.0, 7.0]]]])).flatten().tolist() == [4, 5, 6, 7]


def test_initialisation_is_official() -> None:
    torch.manual_seed(0)
    model = resnet(50, width=0.5)
    for module in model.modules():
        if isinstance(module, Bottleneck):
            assert module.bn3.weight.abs().max() == 0
            assert module.bn1.weight.min() == 1
    weight = model.layer4[0].conv2.weight
    fan_in = weight[0].numel()
    assert weight.std().item() == pytest.approx(fan_in**-0.5, rel=0.01)
    assert weight.abs().max().item() <= 2.0001 * fan_in**-0.5 / 0.8796


@pytest.mark.parametrize(("depth", "features"), [(18, 64), (50, 256)])
def test_features_have_the_stated_size(depth: int, features: int) -> None:
    model = resnet(depth, width=0.125, stem="cifar")
    assert model.feature_dim == features
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, features)
    assert resnet(depth, width=0.125, sk_ratio=0.0625)(torch.rand(2, 3, 64, 64)).shape == (2, features)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 20}, "18, 34"),
        ({"width": 0}, "width"),
        ({"stem": "tiny"}, "stem"),
        ({"sk_ratio": -1}, "sk_ratio"),
        ({"variant": "mine"}, "variant"),
        ({"variant": "torchvision", "sk_ratio": 0.1}, "without selective"),
    ],
)
def test_bad_arguments_say_what_is_expected(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resnet(**arguments)


@pytest.mark.parametrize("depth", [18, 50])
def test_variant_of_torchvision_is_its_network(depth: int) -> None:
    theirs = torchvision.models.get_model(f"resnet{depth}")
    theirs.fc = nn.Identity()
    ours = resnet(depth, variant="torchvision")
    spreads = [net.layer4[0].conv2.weight.std().item() for net in (ours, theirs)]
    assert spreads[0] == pytest.approx(spreads[1], rel=0.02)
    assert all(block.last_bn.weight.min() == 1 for block in ours.layer1)
    ours.load_state_dict(theirs.state_dict())
    images = torch.rand(2, 3, 40, 40)
    torch.testing.assert_close(ours.eval()(images), theirs.eval()(images))


def test_normalisation_is_inside_the_encoder_and_not_in_its_state() -> None:
    options = EncoderOptions(width_multiplier=0.125, normalize="cifar10")
    encoder, plain = build_encoder(options).eval(), build_encoder(EncoderOptions(width_multiplier=0.125)).eval()
    plain.load_state_dict({name.removeprefix("net."): tensor for name, tensor in encoder.state_dict().items()})
    images = torch.rand(2, 3, 8, 8)
    red, green, blue = ((images[:, i] - mean) / std for i, (mean, std) in enumerate(
        [(0.4914, 0.2470), (0.4822, 0.2435), (0.4465, 0.2616)]))  # fmt: skip
    torch.testing.assert_close(encoder(images), plain(torch.stack([red, green, blue], dim=1)))


def test_torchvision_encoder_loses_its_classifier() -> None:
    encoder = build_encoder(EncoderOptions(name="torchvision:resnet18"))
    assert encoder.feature_dim == 512
    assert build_encoder(EncoderOptions(name="torchvision:mobilenet_v3_small"), image_size=64).feature_dim == 576


def test_own_encoder_by_import_path(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("my_nets")
    module.tiny = lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 5))  # type: ignore[attr-defined]
    module.map = lambda: nn.Conv2d(3, 4, 1)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_nets", module)
    assert build_encoder(EncoderOptions(name="my_nets:tiny"), image_size=16).feature_dim == 5
    with pytest.raises(UserError, match=r"expected a tensor \[2, features\]"):
        build_encoder(EncoderOptions(name="my_nets:map"))


class _Double(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.double().mean(dim=(2, 3))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda channels: nn.Conv2d(channels, 4, 1), "a function that needs no arguments"),
        (18, "a function that needs no arguments"),
        (_Double, r"returned features of torch\.float64 for float32 images; expected float32"),
    ],
)
def test_own_encoders_of_another_form_are_refused(make: object, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("my_nets")
    module.net = make  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_nets", module)
    with pytest.raises(UserError, match=message):
        build_encoder(EncoderOptions(name="my_nets:net"))


@pytest.mark.parametrize(
    "name", ["resnet19", "vit", "torchvision:resnet19", "torchvision:fcn_resnet50", "no_such_module:net"]
)
def test_unknown_encoder_names_what_is_known(name: str) -> None:
    with pytest.raises(UserError, match=name.removeprefix("torchvision:").split(":", maxsplit=1)[0]):
        build_encoder(EncoderOptions(name=name))


def test_features_of_torchvision_s_convnext_are_those_before_its_linear_layer() -> None:
    encoder = build_encoder(EncoderOptions(name="torchvision:convnext_tiny"), image_size=32).eval()
    whole = torchvision.models.convnext_tiny().eval()
    whole.load_state_dict(encoder.module.state_dict(), strict=False)
    whole.classifier[2] = torch.nn.Identity()
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(encoder(images), whole(images))


def test_narrow_networks_train_on_large_images() -> None:
    """In its own process: oneDNN's gradient of a strided 1x1 convolution with 8 channels has crashed there."""
    program = (
        "import torch; from ssl_vision.models import resnet; torch.set_num_threads(1); torch.manual_seed(0)\n"
        "net = resnet(18, width=0.125, stem='imagenet').to(memory_format=torch.channels_last)\n"
        "images = torch.rand(2, 3, 224, 224).contiguous(memory_format=torch.channels_last)\n"
        "net(images).square().sum().backward(); print('trained')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "trained\n"), done.stderr


def test_a_strided_convolution_of_few_channels_is_the_plain_one() -> None:
    torch.manual_seed(0)
    conv = shortcut(8, 16, 2, resnet_d=False)[0]
    images = torch.rand(2, 8, 15, 18, dtype=torch.float64)
    conv.double()
    expected = torch.nn.functional.conv2d(images, conv.weight, stride=2)
    torch.testing.assert_close(conv(images), expected, rtol=1e-12, atol=0)
