"""Recognise the networks of mmaction2 by the names and shapes of their weights, and translate the names into ours."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

Shapes = Mapping[str, tuple[int, ...]]

_DEPTHS: dict[tuple[int, ...], int] = {(3, 4, 6, 3): 50, (3, 4, 23, 3): 101, (3, 8, 36, 3): 152, (2, 2, 2, 2): 18}
_STAGE = re.compile(r"(blocks|stages)\.(\d+)\.(?:multipathway_blocks\.\d\.)?res_blocks\.")  # of our networks
_LAYER = re.compile(r"layer(\d)\.(\d+)\.")
_X3D_S = (3, 5, 11, 7)  # blocks
_MVIT = {16: ("MViTv2-S", "mvit_v2_s"), 24: ("MViTv2-B", ""), 48: ("MViTv2-L", "")}  # by the number of blocks
_STEMS = {1: ("SlowOnly", "slow_r50"), 4: ("TSN or C2D", "slow_r50"), 5: ("I3D", "i3d_r50_mm")}
"""By the number of frames that the stem spans, 4 for the four dimensions of 2-D filters."""
_LATERAL = 7  # frames that a lateral connection of SlowFast 8x8 spans; 5 in SlowFast 4x16
_NAMES = re.compile(r"^backbone\.|^cls_head\.|^(slow_path\.|fast_path\.)?conv1(_[st])?\.conv\.|\.attn\.rel_pos_h$")

# Layers that none of our networks has, with the name of the network and the reason why it fits none.
_OTHERS = tuple(
    (re.compile(layer), name, reason)
    for layer, name, reason in (
        (r"non_local_block", "a network with non-local blocks", "none of them has non-local blocks"),
        (r"^(layer|features).*\.net\.", "TSM", "none of them shifts channels between frames"),
        (r"\.net\d\.|\.tam\.", "TIN or TANet", "none of them has their temporal layers"),
        (
            r"\.conv_s\.",
            "R(2+1)D with ResNet-34",
            "R(2+1)D of torchvision and PyTorchVideo has another stem and other blocks",
        ),
        (r"^conv1a\.", "C3D", "none of them is a network without batch norm"),
    )
)

# Parts of a residual block in mmaction2 -> in PyTorchVideo.
_BLOCK = (
    ("conv1.conv.", "branch2.conv_a."),
    ("conv1.bn.", "branch2.norm_a."),
    ("conv2.conv.", "branch2.conv_b."),
    ("conv2.bn.", "branch2.norm_b."),
    ("conv2.0.conv.", "branch2.conv_b."),
    ("conv2.0.bn.", "branch2.norm_b."),
    ("conv3.conv.", "branch2.conv_c."),
    ("conv3.bn.", "branch2.norm_c."),
    ("downsample.conv.", "branch1_conv."),
    ("downsample.bn.", "branch1_norm."),
)
_STEM = (("conv1.conv.", "conv."), ("conv1.bn.", "norm."))
_X3D = (
    ("conv1_s.conv.", "blocks.0.conv.conv_t."),
    ("conv1_t.conv.", "blocks.0.conv.conv_xy."),
    ("conv1_t.bn.", "blocks.0.norm."),
    ("conv5.conv.", "blocks.5.pool.pre_conv."),
    ("conv5.bn.", "blocks.5.pool.pre_norm."),
    ("cls_head.fc1.", "blocks.5.pool.post_conv."),
    ("cls_head.fc2.", "blocks.5.proj."),
)
_X3D_BLOCK = (
    ("conv2.bn.", "branch2.norm_b.0."),
    ("se_module.fc1.", "branch2.norm_b.1.block.0."),
    ("se_module.fc2.", "branch2.norm_b.1.block.2."),
    *_BLOCK,
)
# Names in mmaction2's MViT -> names in torchvision's.
_MVIT_NAMES = tuple(
    (re.compile(source), target)
    for source, target in (
        (r"^cls_token$", "pos_encoding.class_token"),
        (r"^patch_embed\.projection\.", "conv_proj."),
        (r"\.attn\.proj\.", ".attn.project.0."),
        (r"\.attn\.pool_([qkv])\.", r".attn.pool_\1.pool."),
        (r"\.attn\.norm_([qkv])\.", r".attn.pool_\1.norm_act.0."),
        (r"\.mlp\.fc1\.", ".mlp.0."),
        (r"\.mlp\.fc2\.", ".mlp.3."),
        (r"^(blocks\.\d+)\.proj\.", r"\1.project."),
        (r"^norm3\.", "norm."),
        (r"^cls_head\.fc_cls\.", "head.1."),
    )
)


@dataclass(frozen=True)
class MMActionNetwork:
    """Network of mmaction2 that a file of weights contains.

    Attributes:
        name: Name of the network, such as "SlowOnly with ResNet-50".
        fits: Name of our network that is equal to it; empty if there is none.
        reason: Why there is none.
    """

    name: str
    fits: str = ""
    reason: str = ""


def recognize(given: Mapping[str, Tensor]) -> MMActionNetwork | None:
    """Recognise a network of mmaction2; return None for names that are not known."""
    if not any(_NAMES.search(name) for name in given):
        return None
    shapes = {_plain(name): tuple(tensor.shape) for name, tensor in given.items()}
    for layer, name, reason in _OTHERS:
        if any(layer.search(each) for each in shapes):
            return MMActionNetwork(name, reason=reason)
    for recognizer in (_slowfast, _x3d, _csn, _mvit, _resnet):
        network = recognizer(shapes)
        if network:
            return network
    if any(name.startswith("patch_embed") for name in shapes):
        return MMActionNetwork("a transformer", reason="of its transformers, only MViTv2-S fits (mvit_v2_s)")
    return None


def _slowfast(shapes: Shapes) -> MMActionNetwork | None:
    if "slow_path.conv1.conv.weight" not in shapes:
        return None
    slow, fast = (_depth(_below(shapes, path)) for path in ("slow_path.", "fast_path."))
    lateral = shapes.get("slow_path.conv1_lateral.conv.weight", (0, 0, 0))[2]
    setting = {_LATERAL: " 8x8", 5: " 4x16"}.get(lateral, "")
    name = f"SlowFast{setting} with {slow}" + (f" and {fast}" if fast != slow else "")
    if (slow, fast, lateral) == ("ResNet-50", "ResNet-50", _LATERAL):
        return MMActionNetwork(name, fits="slowfast_r50_mm")
    return MMActionNetwork(name, reason="of SlowFast, only 8x8 with ResNet-50 fits (slowfast_r50_mm)")


def _x3d(shapes: Shapes) -> MMActionNetwork | None:
    if "conv1_s.conv.weight" not in shapes:
        return None
    if _blocks(shapes) == _X3D_S:
        return MMActionNetwork("X3D-S or X3D-M", fits="x3d_s")
    return MMActionNetwork("X3D", reason="of X3D, only S and M fit (x3d_s)")


def _csn(shapes: Shapes) -> MMActionNetwork | None:
    filters = shapes.get("layer1.0.conv2.0.conv.weight")
    if filters is None:
        return None
    depth = _depth(shapes)
    if filters[1:] != (1, 3, 3, 3):
        return MMActionNetwork(f"ip-CSN with {depth}", reason="of CSN, only ir-CSN fits")
    fits = {"ResNet-50": "csn_r50_mm", "ResNet-152": "csn_r152_mm"}.get(depth, "")
    return MMActionNetwork(f"ir-CSN with {depth}", fits=fits, reason="ir-CSN fits with ResNet-50 or 152 only")


def _mvit(shapes: Shapes) -> MMActionNetwork | None:
    if "blocks.0.attn.rel_pos_h" not in shapes:
        return None
    number = 1 + max(int(name.split(".")[1]) for name in shapes if re.match(r"blocks\.\d+\.", name))
    name, fits = _MVIT.get(number, ("MViTv2", ""))
    return MMActionNetwork(name, fits=fits, reason="of MViTv2, only S fits (mvit_v2_s)")


def _resnet(shapes: Shapes) -> MMActionNetwork | None:
    """Recognise networks that differ in their filters alone."""
    stem = shapes.get("conv1.conv.weight", ())
    network = _STEMS.get(stem[2] if len(stem) == 5 else len(stem))
    if network is None:
        return None
    name, fits, depth = *network, _depth(shapes)
    return MMActionNetwork(
        f"{name} with {depth}", fits=fits if depth == "ResNet-50" else "", reason="it fits with ResNet-50 only"
    )


def translate(given: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, head: str) -> dict[str, Tensor]:
    """Name the weights of a network of mmaction2 as in one of ours.

    Weights without a counterpart keep their names. In X3D, the batch norm of the first shortcut, which PyTorchVideo's
    X3D does not have, becomes part of the convolution before it and of the batch norm that its output is added to;
    features in evaluation mode are the same.

    Args:
        given: Weights of a network that `recognize` knows.
        expected: Weights of our network.
        head: Name of the last layer of our network, such as ``blocks.6.proj.``.
    """
    plain = {_plain(name): tensor for name, tensor in given.items()}
    if "pos_encoding.class_token" in expected:
        return {_mvit_name(name): t.flatten() if name == "cls_token" else t for name, t in plain.items()}
    if "conv1_s.conv.weight" in plain:
        return {
            _x3d_name(name): _fit_shape(t, expected.get(_x3d_name(name))) for name, t in _without_norm(plain).items()
        }
    stages = sorted({(match[1], int(match[2])) for name in expected if (match := _STAGE.match(name))})
    tensors = {_resnet_name(name, stages, head): tensor for name, tensor in plain.items()}
    if "slow_path.conv1.conv.weight" in plain and f"{head}weight" in tensors:
        # The classifier sees the fast pathway first in mmaction2, the slow one first in PyTorchVideo.
        weight = tensors[f"{head}weight"]
        fast = weight.shape[1] // 9  # an eighth of the channels of the slow one
        tensors[f"{head}weight"] = weight.roll(-fast, dims=1)
    return tensors


def _resnet_name(name: str, stages: list[tuple[str, int]], head: str) -> str:
    if name.startswith("cls_head.fc_cls."):
        return f"{head}{name.removeprefix('cls_head.fc_cls.')}"
    if not stages:
        return name
    room = stages[0][0]
    lateral = re.fullmatch(r"slow_path\.(?:conv1|layer(\d))_lateral\.conv\.(.+)", name)
    if lateral:
        return f"{room}.{lateral[1] or 0}.multipathway_fusion.conv_fast_to_slow.{lateral[2]}"
    path, suffix = "", name
    for number, prefix in enumerate(("slow_path.", "fast_path.")):
        if name.startswith(prefix):
            path, suffix = f"multipathway_blocks.{number}.", name.removeprefix(prefix)
    layer = _LAYER.match(suffix)
    if layer and int(layer[1]) <= len(stages):
        block = f"{room}.{stages[int(layer[1]) - 1][1]}.{path}res_blocks.{layer[2]}."
        return _replace_prefix(suffix[layer.end() :], _BLOCK, block) or name
    return _replace_prefix(suffix, _STEM, f"{room}.0.{path}") or name


def _x3d_name(name: str) -> str:
    layer = _LAYER.match(name)
    if layer:
        return _replace_prefix(name[layer.end() :], _X3D_BLOCK, f"blocks.{layer[1]}.res_blocks.{layer[2]}.") or name
    return _replace_prefix(name, _X3D, "") or name


def _mvit_name(name: str) -> str:
    for pattern, ours in _MVIT_NAMES:
        name = pattern.sub(ours, name)
    return name


def _replace_prefix(name: str, pairs: Iterable[tuple[str, str]], prefix: str) -> str | None:
    for source, target in pairs:
        if name.startswith(source):
            return f"{prefix}{target}{name.removeprefix(source)}"
    return None


def _fit_shape(tensor: Tensor, reference: Tensor | None) -> Tensor:
    """Give the weights of a linear layer the shape of a convolution of size 1."""
    if reference is not None and tensor.ndim == 2 and reference.ndim == 5 and tensor.numel() == reference.numel():
        return tensor.reshape(reference.shape)
    return tensor


def _without_norm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Make the batch norm of the first shortcut of X3D part of its neighbours."""
    shortcut, last = "layer1.0.downsample.", "layer1.0.conv3.bn."
    norm = {name: state.get(f"{shortcut}bn.{name}") for name in ("weight", "bias", "running_mean", "running_var")}
    weight, bias, mean, variance = norm.values()
    tensors = {name: tensor for name, tensor in state.items() if not name.startswith(f"{shortcut}bn.")}
    if weight is None or bias is None or mean is None or variance is None:
        return tensors
    scale = weight.double() / (variance.double() + 1e-5).sqrt()
    filters, shift = tensors[f"{shortcut}conv.weight"], tensors[f"{last}bias"]
    tensors[f"{shortcut}conv.weight"] = (filters.double() * scale[:, None, None, None, None]).to(filters.dtype)
    tensors[f"{last}bias"] = (shift.double() + bias.double() - mean.double() * scale).to(shift.dtype)
    return tensors


def _plain(name: str) -> str:
    return name.removeprefix("backbone.")


def _below(shapes: Shapes, prefix: str) -> Shapes:
    return {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}


def _blocks(names: Iterable[str]) -> tuple[int, ...]:
    """Return the number of blocks of every layer."""
    numbers: dict[int, int] = {}
    for name in names:
        match = _LAYER.match(name)
        if match:
            numbers[int(match[1])] = max(numbers.get(int(match[1]), 0), int(match[2]) + 1)
    return tuple(numbers[layer] for layer in sorted(numbers))


def _depth(names: Iterable[str]) -> str:
    depth = _DEPTHS.get(_blocks(names))
    return f"ResNet-{depth}" if depth else "another backbone"
