"""Initialise training with weights from PyTorchVideo, torchvision, mmaction2, and 2-D ResNets trained on ImageNet."""

from __future__ import annotations

import re
from pathlib import Path

from torch import Tensor, nn

from contrastive_core.errors import UserError
from contrastive_core.training.weights import read_state_dict
from ssl_video.models.model_folder import load_recognizer
from ssl_video.models.networks import join_batchnorm, last_layer

# Parts of a bottleneck, named as in PyTorchVideo, in torchvision's 2-D ResNet and in mmaction2.
_BLOCK = (
    ("branch2.conv_a.", "conv1.", "conv1.conv."),
    ("branch2.norm_a.", "bn1.", "conv1.bn."),
    ("branch2.conv_b.", "conv2.", "conv2.conv."),
    ("branch2.norm_b.", "bn2.", "conv2.bn."),
    ("branch2.conv_c.", "conv3.", "conv3.conv."),
    ("branch2.norm_c.", "bn3.", "conv3.bn."),
    ("branch1_conv.", "downsample.0.", "downsample.conv."),
    ("branch1_norm.", "downsample.1.", "downsample.bn."),
)
_STEM = (("blocks.0.conv.", "conv1.", "conv1.conv."), ("blocks.0.norm.", "bn1.", "conv1.bn."))
_LAYER = re.compile(r"layer(\d)\.(\d+)\.(.+)")
# Names in torchvision's MViT -> names in PyTorchVideo's.
_MVIT = tuple(
    (re.compile(theirs), ours)
    for theirs, ours in (
        (r"^conv_proj\.", "patch_embed.patch_model."),
        (r"^pos_encoding\.class_token$", "cls_positional_encoding.cls_token"),
        (r"^pos_encoding\.(spatial|temporal)_pos$", r"cls_positional_encoding.pos_embed_\1"),
        (r"^pos_encoding\.class_pos$", "cls_positional_encoding.pos_embed_class"),
        (r"\.attn\.project\.0\.", ".attn.proj."),
        (r"\.attn\.pool_([qkv])\.pool\.", r".attn.pool_\1."),
        (r"\.attn\.pool_([qkv])\.norm_act\.0\.", r".attn.norm_\1."),
        (r"\.mlp\.0\.", ".mlp.fc1."),
        (r"\.mlp\.3\.", ".mlp.fc2."),
        (r"^(blocks\.\d+)\.project\.", r"\1.proj."),
        (r"^norm\.", "norm_embed."),
        (r"^head\.1\.", "head.proj."),
    )
)
_MMACTION = re.compile(r"^cls_head\.|\.conv\.(conv_[st]\.|net\.)?weight$")
_HEADS = ("fc.", "cls_head.", "head.", "classifier.")


def begin_from(network: nn.Module, init: Path) -> str:
    """Load weights into a network in place, except its last layer if the number of classes differs.

    ====================================  ===================================================================
    a run or model folder                 of `ssl-video train`, with the batch norm of its first view
    weights of PyTorchVideo               into ``slow_r50``, ``slowfast_r50``, ``x3d_xs``, ``x3d_s``, ``r2plus1d_r50``,
                                          ``csn_r101``, ``mvit_b``
    weights of torchvision                ``r3d_18``, ``r2plus1d_18`` and ``mvit_v1_b`` of torchvision.models.video into
                                          ``r3d_18``, ``r2plus1d_18`` and ``mvit_b``
    weights of mmaction2                  SlowOnly with ResNet-50 into ``slow_r50``; TSN with ResNet-50 (2-D),
                                          as in the next row
    a 2-D ResNet-50 of torchvision        into ``slow_r50``: every filter becomes the middle frame of a 3-D filter,
                                          so that a still clip gives the features of the picture
    ====================================  ===================================================================

    Args:
        network: Network from `build_network`.
        init: Folder, or file of weights: .safetensors, or a PyTorch file with tensors only.

    Returns:
        Message with the loaded and the unused tensors.

    Raises:
        UserError: There are no such weights, or they belong to another network; the network is left unchanged.
    """
    if init.is_dir():
        opened = load_recognizer(init, device="cpu")
        given = dict(join_batchnorm(opened.network, opened.recipe.views[0]).state_dict())
    else:
        given = read_state_dict(init)
    expected = network.state_dict()
    head = last_layer(network)
    if "cls_positional_encoding.cls_token" in expected:
        given = _pytorchvideo_mvit(given, expected)
    found = {_our_name(name, expected): tensor for name, tensor in given.items()}
    found = {name: _inflated(tensor, expected.get(name)) for name, tensor in found.items()}
    taken: dict[str, Tensor] = {}
    for name, tensor in expected.items():
        if name in found and found[name].shape == tensor.shape:
            taken[name] = found[name]
    missing = [name for name in expected if name not in taken and not name.startswith(head)]
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing:
        name = next((name for name in missing if name in found), missing[0])
        detail = f"{name} {list(expected[name].shape)} is missing"
        if name in found:
            detail = f"{name} is {list(found[name].shape)}, expected {list(expected[name].shape)}"
        supported = ""
        if any(_MMACTION.search(name) for name in given):
            supported = (
                ". The names are those of mmaction2, of which SlowOnly and TSN, with ResNet-50, can be loaded, both "
                "into slow_r50; its other networks differ from those of PyTorchVideo in layers that names do not show"
            )
        raise UserError(
            f"{init}: {len(missing)} of the {len(expected)} tensors of the network are missing from it or have another "
            f"shape ({detail}); expected weights of the same network, see --network.name and --network.width{supported}"
        )
    unused = [name for name in found if name not in taken and not name.startswith((head, *_HEADS))]
    network.load_state_dict({**expected, **taken})
    kept = any(name.startswith(head) for name in taken)
    told = f"initialised from {init}: {len(taken)} of {len(expected)} tensors"
    if not kept:
        told += "; the last layer is new, because the classes differ"
    return f"{told}; {len(unused)} tensors of the file are not used ({unused[0]})" if unused else told


def _our_name(name: str, expected: dict[str, Tensor]) -> str:
    """Return the name of a tensor in our networks."""
    if name in expected:
        return name
    plain = name.removeprefix("backbone.")
    layer = _LAYER.fullmatch(plain)
    if layer:
        for ours, two_d, mm in _BLOCK:
            for theirs in (mm, two_d):
                if layer[3].startswith(theirs):
                    candidate = f"blocks.{layer[1]}.res_blocks.{layer[2]}.{ours}{layer[3].removeprefix(theirs)}"
                    if candidate in expected:
                        return candidate
    for ours, two_d, mm in _STEM:
        for theirs in (mm, two_d):
            if plain.startswith(theirs) and f"{ours}{plain.removeprefix(theirs)}" in expected:
                return f"{ours}{plain.removeprefix(theirs)}"
    return name


def _pytorchvideo_mvit(given: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename torchvision's MViT weights to PyTorchVideo's names, whose queries, keys and values are separate."""
    found: dict[str, Tensor] = {}
    for name, tensor in given.items():
        new = name
        for pattern, ours in _MVIT:
            new = pattern.sub(ours, new)
        if ".attn.qkv." in new:
            for part, third in zip("qkv", tensor.chunk(3), strict=True):
                found[new.replace(".qkv.", f".{part}.")] = third
        elif new in expected and tensor.numel() == expected[new].numel():
            found[new] = tensor.reshape(expected[new].shape)
        else:
            found[new] = tensor
    return found


def _inflated(tensor: Tensor, expected: Tensor | None) -> Tensor:
    """Turn a 2-D filter into the middle frame of a 3-D filter."""
    if expected is None or tensor.ndim != 4 or expected.ndim != 5:
        return tensor
    result = tensor.new_zeros(*tensor.shape[:2], expected.shape[2], *tensor.shape[2:])
    result[:, :, expected.shape[2] // 2] = tensor
    return result
