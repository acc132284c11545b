"""Weights of mmaction2's networks: ours compute the same from them, and networks that differ are refused by name.

The references compute the networks from their descriptions, layer by layer, under the names that mmaction2 gives to its
layers, and draw every weight where it is first used.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from contrastive_core.errors import UserError
from ssl_video.models import NetworkOptions, build_network
from ssl_video.models.pretrained import begin_from

CLASSES = 7
Numbers = tuple[int, int, int]


class Weights:
    """Random weights by name, made when a layer first uses them."""

    def __init__(self, seed: int = 0) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._draws = torch.Generator().manual_seed(seed)

    def get(self, name: str, *shape: int, low: float = -1.0, high: float = 1.0) -> Tensor:
        if name not in self.tensors:
            self.tensors[name] = torch.rand(shape, generator=self._draws) * (high - low) + low
        return self.tensors[name]

    def conv(
        self, name: str, x: Tensor, to: int, size: Numbers, stride: Numbers = (1, 1, 1), *, groups: int = 1
    ) -> Tensor:
        per_group = x.shape[1] // groups
        edge = (per_group * size[0] * size[1] * size[2]) ** -0.5
        weight = self.get(f"{name}.conv.weight", to, per_group, *size, low=-edge, high=edge)
        padding = [side // 2 for side in size]
        return F.conv3d(x, weight, stride=stride, padding=padding, groups=groups)

    def norm(self, name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
        size = x.shape[1]
        weight, bias = self.get(f"{name}.bn.weight", size, low=0.5, high=1.5), self.get(f"{name}.bn.bias", size)
        mean = self.get(f"{name}.bn.running_mean", size)
        variance = self.get(f"{name}.bn.running_var", size, low=0.5, high=2.0)
        return F.batch_norm(x, mean, variance, weight, bias, eps=eps)

    def head(self, name: str, x: Tensor, to: int = CLASSES) -> Tensor:
        edge = x.shape[1] ** -0.5
        weight = self.get(f"{name}.weight", to, x.shape[1], low=-edge, high=edge)
        return F.linear(x, weight, self.get(f"{name}.bias", to))


def pool(x: Tensor, size: Numbers, stride: Numbers) -> Tensor:
    return F.max_pool3d(x, size, stride, padding=[side // 2 if side == 3 else 0 for side in size])


def stage(
    w: Weights, path: str, x: Tensor, width: int, times: list[int], stride: Numbers, *, ir: bool = False
) -> Tensor:
    """A stage of bottlenecks, with the number of frames that the first convolution of each spans."""
    eps = 1e-3 if ir else 1e-5
    for number, time in enumerate(times):
        name, step, shortcut = f"{path}.{number}", stride if number == 0 else (1, 1, 1), x
        y = w.norm(f"{name}.conv1", w.conv(f"{name}.conv1", x, width, (time, 1, 1)), eps).relu()
        middle, size = (f"{name}.conv2.0", (3, 3, 3)) if ir else (f"{name}.conv2", (1, 3, 3))
        y = w.norm(middle, w.conv(middle, y, width, size, step, groups=width if ir else 1), eps).relu()
        y = w.norm(f"{name}.conv3", w.conv(f"{name}.conv3", y, 4 * width, (1, 1, 1)), eps)
        if number == 0:
            shortcut = w.norm(f"{name}.downsample", w.conv(f"{name}.downsample", x, 4 * width, (1, 1, 1), step), eps)
        x = (y + shortcut).relu()
    return x


BLOCKS = (3, 4, 6, 3)


def slow_only(w: Weights, x: Tensor) -> Tensor:
    x = w.norm("backbone.conv1", w.conv("backbone.conv1", x, 64, (1, 7, 7), (1, 2, 2))).relu()
    x = pool(x, (1, 3, 3), (1, 2, 2))
    for i, blocks in enumerate(BLOCKS):
        stride = (1, 1, 1) if i == 0 else (1, 2, 2)
        x = stage(w, f"backbone.layer{i + 1}", x, 64 << i, [1 if i < 2 else 3] * blocks, stride)
    return w.head("cls_head.fc_cls", x.mean(dim=(2, 3, 4)))


def i3d(w: Weights, x: Tensor) -> Tensor:
    x = w.norm("backbone.conv1", w.conv("backbone.conv1", x, 64, (5, 7, 7), (2, 2, 2))).relu()
    x = pool(x, (1, 3, 3), (2, 2, 2))
    times = ([3, 3, 3], [3, 1, 3, 1], [3, 1, 3, 1, 3, 1], [1, 3, 1])
    for i, in_stage in enumerate(times):
        x = stage(w, f"backbone.layer{i + 1}", x, 64 << i, in_stage, (1, 1, 1) if i == 0 else (1, 2, 2))
        if i == 0:
            x = pool(x, (2, 1, 1), (2, 1, 1))
    return w.head("cls_head.fc_cls", x.mean(dim=(2, 3, 4)))


def ir_csn(w: Weights, x: Tensor, blocks_of: tuple[int, ...] = BLOCKS) -> Tensor:
    x = w.norm("backbone.conv1", w.conv("backbone.conv1", x, 64, (3, 7, 7), (1, 2, 2)), 1e-3).relu()
    x = pool(x, (1, 3, 3), (1, 2, 2))
    for i, blocks in enumerate(blocks_of):
        x = stage(w, f"backbone.layer{i + 1}", x, 64 << i, [1] * blocks, (1, 1, 1) if i == 0 else (2, 2, 2), ir=True)
    return w.head("cls_head.fc_cls", x.mean(dim=(2, 3, 4)))


def slow_fast(w: Weights, x: Tensor, *, lateral: int = 7) -> Tensor:
    slow, fast = "backbone.slow_path", "backbone.fast_path"
    s = w.norm(f"{slow}.conv1", w.conv(f"{slow}.conv1", x[:, :, ::4], 64, (1, 7, 7), (1, 2, 2))).relu()
    f = w.norm(f"{fast}.conv1", w.conv(f"{fast}.conv1", x, 8, (5, 7, 7), (1, 2, 2))).relu()
    s, f = pool(s, (1, 3, 3), (1, 2, 2)), pool(f, (1, 3, 3), (1, 2, 2))
    s = torch.cat([s, w.conv(f"{slow}.conv1_lateral", f, 16, (lateral, 1, 1), (4, 1, 1))], dim=1)
    for i, blocks in enumerate(BLOCKS):
        stride = (1, 1, 1) if i == 0 else (1, 2, 2)
        s = stage(w, f"{slow}.layer{i + 1}", s, 64 << i, [1 if i < 2 else 3] * blocks, stride)
        f = stage(w, f"{fast}.layer{i + 1}", f, 8 << i, [3] * blocks, stride)
        if i < 3:
            joined = w.conv(f"{slow}.layer{i + 1}_lateral", f, 2 * f.shape[1], (lateral, 1, 1), (4, 1, 1))
            s = torch.cat([s, joined], dim=1)
    features = torch.cat([f.mean(dim=(2, 3, 4)), s.mean(dim=(2, 3, 4))], dim=1)  # the fast pathway first
    return w.head("cls_head.fc_cls", features)


def x3d(w: Weights, x: Tensor) -> Tensor:
    """X3D-S and X3D-M. The first shortcut has a batch norm here, but not in PyTorchVideo."""
    x = w.conv("backbone.conv1_s", x, 24, (1, 3, 3), (1, 2, 2))
    x = w.norm("backbone.conv1_t", w.conv("backbone.conv1_t", x, 24, (5, 1, 1), groups=24)).relu()
    for i, (blocks, out) in enumerate(zip((3, 5, 11, 7), (24, 48, 96, 192), strict=True)):
        for number in range(blocks):
            name, width = f"backbone.layer{i + 1}.{number}", int(2.25 * out)
            step, shortcut = (1, 2, 2) if number == 0 else (1, 1, 1), x
            y = w.norm(f"{name}.conv1", w.conv(f"{name}.conv1", x, width, (1, 1, 1))).relu()
            y = w.norm(f"{name}.conv2", w.conv(f"{name}.conv2", y, width, (3, 3, 3), step, groups=width))
            if number % 2 == 0:
                y = y * excitation(w, f"{name}.se_module", y)
            y = w.norm(f"{name}.conv3", w.conv(f"{name}.conv3", F.silu(y), out, (1, 1, 1)))
            if number == 0:
                shortcut = w.norm(f"{name}.downsample", w.conv(f"{name}.downsample", x, out, (1, 1, 1), step))
            x = (y + shortcut).relu()
    x = w.norm("backbone.conv5", w.conv("backbone.conv5", x, 432, (1, 1, 1))).relu()
    edge = 432**-0.5
    hidden = F.linear(x.mean(dim=(2, 3, 4)), w.get("cls_head.fc1.weight", 2048, 432, low=-edge, high=edge)).relu()
    return w.head("cls_head.fc2", hidden)


def excitation(w: Weights, name: str, x: Tensor) -> Tensor:
    channels = x.shape[1]
    few = max(8, int(channels / 16 + 4) // 8 * 8)
    few += 8 if few < 0.9 * channels / 16 else 0
    y = x.mean(dim=(2, 3, 4), keepdim=True)
    y = F.conv3d(y, w.get(f"{name}.fc1.weight", few, channels, 1, 1, 1), w.get(f"{name}.fc1.bias", few)).relu()
    y = F.conv3d(y, w.get(f"{name}.fc2.weight", channels, few, 1, 1, 1), w.get(f"{name}.fc2.bias", channels))
    return y.sigmoid()


Reference = Callable[[Weights, Tensor], Tensor]
REFERENCES: dict[str, tuple[Reference, tuple[int, ...]]] = {
    "slow_r50": (slow_only, (1, 3, 8, 48, 48)),
    "i3d_r50_mm": (i3d, (1, 3, 16, 48, 48)),
    "csn_r50_mm": (ir_csn, (1, 3, 8, 48, 48)),
    "slowfast_r50_mm": (slow_fast, (1, 3, 32, 32, 32)),
    "x3d_s": (x3d, (1, 3, 6, 64, 64)),
}


def saved(state: dict[str, Tensor], file: Path) -> Path:
    torch.save({"meta": {"epoch": 1}, "state_dict": state}, file)
    return file


@pytest.mark.parametrize("name", REFERENCES)
def test_networks_of_mmaction2_give_the_same_logits(name: str, tmp_path: Path) -> None:
    reference, shape = REFERENCES[name]
    weights, clips = Weights(), torch.rand(shape, generator=torch.Generator().manual_seed(1))
    expected = reference(weights, clips)
    ours = build_network(NetworkOptions(name), CLASSES)
    told = begin_from(ours, saved(weights.tensors, tmp_path / "mmaction2.pth"))
    assert "last layer is new" not in told
    assert "not used" not in told
    with torch.no_grad():
        assert torch.allclose(ours.eval()(clips), expected, rtol=1e-4, atol=1e-4)
    other = build_network(NetworkOptions(name), CLASSES + 1)
    assert "the last layer is new" in begin_from(other, tmp_path / "mmaction2.pth")


def test_mvit_v2_of_torchvision_and_of_mmaction2(tmp_path: Path) -> None:
    from torchvision.models.video import mvit_v2_s

    torch.manual_seed(1)
    source = mvit_v2_s(weights=None).eval()
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape))  # what starts at 0 or 1 is told apart too
    theirs = {}
    for name, tensor in source.state_dict().items():
        new = name.replace("pos_encoding.class_token", "cls_token").replace("conv_proj.", "patch_embed.projection.")
        new = re.sub(r"attn\.pool_([qkv])\.norm_act\.0", r"attn.norm_\1", new)
        new = re.sub(r"attn\.pool_([qkv])\.pool", r"attn.pool_\1", new).replace("attn.project.0", "attn.proj")
        new = new.replace(".project.", ".proj.").replace("mlp.0.", "mlp.fc1.").replace("mlp.3.", "mlp.fc2.")
        new = re.sub(r"^norm\.", "norm3.", new)
        new = f"cls_head.fc_cls.{new.removeprefix('head.1.')}" if new.startswith("head.") else f"backbone.{new}"
        theirs[new] = tensor.reshape(1, 1, -1) if new.endswith("cls_token") else tensor
    clip = torch.rand(1, 3, 16, 224, 224)
    ours = build_network(NetworkOptions("mvit_v2_s"), 400)
    assert "397 of 397" in begin_from(ours, saved(dict(source.state_dict()), tmp_path / "torchvision.pth"))
    with torch.no_grad():
        assert torch.equal(ours.eval()(clip), source(clip))
        for parameter in ours.parameters():
            parameter.zero_()
    assert "397 of 397" in begin_from(ours, saved(theirs, tmp_path / "mmaction2.pth"))
    assert all(torch.equal(tensor, ours.state_dict()[name]) for name, tensor in source.state_dict().items())


REFUSED = {
    "ip-CSN with ResNet-50": lambda w: w.get("layer1.0.conv2.0.conv.weight", 64, 64, 1, 1, 1),
    "ir-CSN with ResNet-101": lambda w: [
        w.get("layer1.0.conv2.0.conv.weight", 64, 1, 3, 3, 3),
        w.get("layer3.22.conv1.conv.weight", 1),
    ],
    "TSM": lambda w: w.get("layer1.0.conv1.conv.net.weight", 1),
    "TIN or TANet": lambda w: w.get("layer1.0.tam.G.0.weight", 1),
    r"R\(2\+1\)D with ResNet-34": lambda w: w.get("layer1.0.conv1.conv.conv_s.weight", 1),
    "a network with non-local blocks": lambda w: w.get("layer2.1.non_local_block.g.conv.weight", 1),
    "SlowOnly with ResNet-101": lambda w: w.get("layer3.22.conv1.conv.weight", 1),
    "SlowFast 4x16 with ResNet-50": lambda w: [
        *(w.get(f"slow_path.layer{i + 1}.{n - 1}.conv1.conv.weight", 1) for i, n in enumerate(BLOCKS)),
        *(w.get(f"fast_path.layer{i + 1}.{n - 1}.conv1.conv.weight", 1) for i, n in enumerate(BLOCKS)),
        w.get("slow_path.conv1.conv.weight", 64, 3, 1, 7, 7),
        w.get("slow_path.conv1_lateral.conv.weight", 16, 8, 5, 1, 1),
    ],
    "X3D": lambda w: [w.get("conv1_s.conv.weight", 1), w.get("conv5.conv.weight", 1)],
    "MViTv2-B": lambda w: [w.get("blocks.0.attn.rel_pos_h", 111, 96), w.get("blocks.23.norm1.weight", 1)],
    "C3D": lambda w: w.get("conv1a.conv.weight", 1),
    "a transformer": lambda w: w.get("patch_embed.projection.weight", 1),
}  # fmt: skip


@pytest.mark.parametrize("prefix", ["backbone.", ""])
@pytest.mark.parametrize("name", REFUSED)
def test_networks_that_differ_are_refused_by_name(name: str, prefix: str, tmp_path: Path) -> None:
    weights = Weights()
    if name == "a transformer" and not prefix:
        pytest.skip("without the prefix, it could be of any library")
    if name not in ("a transformer", "SlowFast 4x16 with ResNet-50"):
        for layer, blocks in enumerate(BLOCKS):
            weights.get(f"layer{layer + 1}.{blocks - 1}.conv3.conv.weight", 1)
        weights.get("conv1.conv.weight", 64, 3, 1, 7, 7)
    REFUSED[name](weights)
    file = saved({f"{prefix}{key}": tensor for key, tensor in weights.tensors.items()}, tmp_path / "theirs.pth")
    with pytest.raises(UserError, match=rf"theirs\.pth contains {name} of mmaction2, which fits none of the networks"):
        begin_from(build_network(NetworkOptions("small_slow", width=4), CLASSES), file)


def test_the_network_that_fits_is_named(tmp_path: Path) -> None:
    weights = Weights()
    i3d(weights, torch.zeros(1, 3, 8, 32, 32))
    file = saved(weights.tensors, tmp_path / "i3d.pth")
    with pytest.raises(UserError, match=r"I3D with ResNet-50 of mmaction2, which fits --network\.name i3d_r50_mm"):
        begin_from(build_network(NetworkOptions("small_slow", width=4), CLASSES), file)


def test_names_of_pyslowfast_are_recognised(tmp_path: Path) -> None:
    file = saved({"s1.pathway0_stem.conv.weight": torch.zeros(64, 3, 1, 7, 7)}, tmp_path / "pyslowfast.pyth")
    with pytest.raises(UserError, match=r"The names are those of PySlowFast; PyTorchVideo publishes such weights"):
        begin_from(build_network(NetworkOptions("small_slow", width=4), CLASSES), file)


def test_a_network_that_the_user_builds_with_mmaction2_takes_its_names(tmp_path: Path) -> None:
    """A custom network with the names of the file needs no translation, whatever it is."""

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = nn.ModuleDict({"conv1a": nn.ModuleDict({"conv": nn.Conv3d(3, 4, 3)})})
            self.cls_head = nn.ModuleDict({"fc_cls": nn.Linear(4, CLASSES)})

    source, ours = Own(), Own()
    assert "4 of 4 tensors" in begin_from(ours, saved(dict(source.state_dict()), tmp_path / "own.pth"))
    assert all(torch.equal(a, b) for a, b in zip(source.state_dict().values(), ours.state_dict().values(), strict=True))


@pytest.mark.parametrize("library", ["pytorchvideo", "torchvision"])
def test_a_deeper_network_is_not_loaded_in_part(library: str, tmp_path: Path) -> None:
    if library == "pytorchvideo":
        from pytorchvideo.models.resnet import create_resnet

        deep: nn.Module = create_resnet(model_depth=101, stem_conv_kernel_size=(1, 7, 7))
    else:
        from torchvision.models import resnet101

        deep = resnet101(weights=None)
    file = saved(dict(deep.state_dict()), tmp_path / "r101.pth")
    ours = build_network(NetworkOptions("slow_r50"), CLASSES)
    before = ours.state_dict()["blocks.0.conv.weight"].clone()
    with pytest.raises(UserError, match=r"layers that the given network does not have .*deeper or another one"):
        begin_from(ours, file)
    assert torch.equal(ours.state_dict()["blocks.0.conv.weight"], before)
