"""Initialise training with weights from PyTorchVideo, torchvision, mmaction2, and 2-D ResNets trained on ImageNet."""

from __future__ import annotations

import re
from pathlib import Path

from torch import Tensor, nn

from contrastive_core.errors import UserError
from contrastive_core.text import some_of
from contrastive_core.training.weights import read_state_dict
from ssl_video.models.mmaction import recognize, translate
from ssl_video.models.model_folder import load_recognizer
from ssl_video.models.networks import join_batchnorm, last_layer

# Parts of a bottleneck, named as in PyTorchVideo and in torchvision's 2-D ResNet.
_BLOCK = (
    ("branch2.conv_a.", "conv1."),
    ("branch2.norm_a.", "bn1."),
    ("branch2.conv_b.", "conv2."),
    ("branch2.norm_b.", "bn2."),
    ("branch2.conv_c.", "conv3."),
    ("branch2.norm_c.", "bn3."),
    ("branch1_conv.", "downsample.0."),
    ("branch1_norm.", "downsample.1."),
)
_STEM = (("blocks.0.conv.", "conv1."), ("blocks.0.norm.", "bn1."))
_LAYER = re.compile(r"layer(\d)\.(\d+)\.(.+)")
# Names in torchvision's MViT -> names in PyTorchVideo's.
_MVIT = tuple(
    (re.compile(source), target)
    for source, target in (
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
_PAGE = "docs/ssl-video/kinetics-weights.md"
_HEADS = ("fc.", "cls_head.", "head.", "classifier.")


def begin_from(network: nn.Module, init: Path) -> str:
    """Load weights into a network in place, except its last layer if the number of classes differs.

    ====================================  ===================================================================
    a run or model folder                 of `ssl-video train`, with the batch norm of its first view
    weights of PyTorchVideo               into ``slow_r50``, ``slowfast_r50``, ``x3d_xs``, ``x3d_s``, ``r2plus1d_r50``,
                                          ``csn_r101``, ``mvit_b``
    weights of torchvision                ``r3d_18``, ``r2plus1d_18``, ``mvit_v1_b`` and ``mvit_v2_s`` of
                                          torchvision.models.video into ``r3d_18``, ``r2plus1d_18``, ``mvit_b`` and
                                          ``mvit_v2_s``
    weights of mmaction2                  SlowOnly, SlowFast 8x8 and I3D with ResNet-50, ir-CSN with ResNet-50 or 152,
                                          X3D-S and X3D-M, and MViTv2-S into ``slow_r50``, ``slowfast_r50_mm``,
                                          ``i3d_r50_mm``, ``csn_r50_mm``, ``csn_r152_mm``, ``x3d_s`` and ``mvit_v2_s``;
                                          TSN with ResNet-50 (2-D), as in the next row
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
        recognizer = load_recognizer(init, device="cpu")
        source = dict(join_batchnorm(recognizer.network, recognizer.recipe.views[0]).state_dict())
    else:
        source = read_state_dict(init)
    state = network.state_dict()
    head = last_layer(network)
    trunk = [name for name in state if not name.startswith(head) and not name.endswith("num_batches_tracked")]
    mmaction_network = None if all(name in source for name in trunk) else recognize(source)
    if mmaction_network and not mmaction_network.fits:
        raise UserError(
            f"{init} contains {mmaction_network.name} of mmaction2, which fits none of the networks of ssl-video: "
            f"{mmaction_network.reason}. Choose other weights, or let mmaction2 build the network, with --network.name "
            f"package.module:function ({_PAGE} shows how)"
        )
    if mmaction_network:
        source = translate(source, state, head=head)
    elif "cls_positional_encoding.cls_token" in state:
        source = _pytorchvideo_mvit(source, state)
    tensors = {_our_name(name, state): tensor for name, tensor in source.items()}
    tensors = {name: _inflate(tensor, state.get(name)) for name, tensor in tensors.items()}
    matches = {
        name: tensors[name] for name, tensor in state.items() if name in tensors and tensors[name].shape == tensor.shape
    }
    missing = [name for name in trunk if name not in matches]
    unused = [name for name in tensors if name not in matches and not name.startswith((head, *_HEADS))]
    if missing:
        name = next((name for name in missing if name in tensors), missing[0])
        detail = f"{name} {list(state[name].shape)} is missing"
        if name in tensors:
            detail = f"{name} is {list(tensors[name].shape)}, expected {list(state[name].shape)}"
        fits = ""
        if any(name.startswith("s1.pathway0_stem.") for name in source):
            fits = (
                ". The names are those of PySlowFast; PyTorchVideo publishes such weights with the names that are read"
            )
        if mmaction_network:
            fits = (
                f". It contains {mmaction_network.name} of mmaction2, which fits --network.name {mmaction_network.fits}"
            )
        raise UserError(
            f"{init}: {len(missing)} of the {len(state)} tensors of the network are missing from it or have another "
            f"shape ({detail}); expected weights of the same network, see --network.name and --network.width{fits}"
        )
    places = {_place(name) for name in trunk}
    # Other tensors may be buffers of another version of the library, such as masks.
    weights = [name for name in unused if name.endswith((".weight", ".bias"))]
    further = [name for name in weights if _LAYER.fullmatch(name) or _place(name) in places]
    if further:
        raise UserError(
            f"{init}: its network has layers that the given network does not have ({some_of(further, 3)}), so it is a "
            "deeper or another one; expected weights of the same network, see --network.name"
        )
    network.load_state_dict({**state, **matches})
    has_head = any(name.startswith(head) for name in matches)
    text = f"initialised from {init}: {len(matches)} of {len(state)} tensors"
    if not has_head:
        text += "; the last layer is new, because the classes differ"
    return f"{text}; {len(unused)} tensors of the file are not used ({unused[0]})" if unused else text


def _place(name: str) -> str:
    """Return the part of a network that a tensor belongs to, such as ``blocks.3``."""
    return ".".join(name.split(".")[:2])


def _our_name(name: str, state: dict[str, Tensor]) -> str:
    """Return the name of a tensor in our networks."""
    if name in state:
        return name
    plain = name.removeprefix("backbone.")
    layer = _LAYER.fullmatch(plain)
    if layer:
        for target, source in _BLOCK:
            if layer[3].startswith(source):
                candidate = f"blocks.{layer[1]}.res_blocks.{layer[2]}.{target}{layer[3].removeprefix(source)}"
                if candidate in state:
                    return candidate
    for target, source in _STEM:
        if plain.startswith(source) and f"{target}{plain.removeprefix(source)}" in state:
            return f"{target}{plain.removeprefix(source)}"
    return name


def _pytorchvideo_mvit(source: dict[str, Tensor], state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename torchvision's MViT weights to PyTorchVideo's names, whose queries, keys and values are separate."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in source.items():
        new = name
        for pattern, target in _MVIT:
            new = pattern.sub(target, new)
        if ".attn.qkv." in new:
            for letter, third in zip("qkv", tensor.chunk(3), strict=True):
                tensors[new.replace(".qkv.", f".{letter}.")] = third
        elif new in state and tensor.numel() == state[new].numel():
            tensors[new] = tensor.reshape(state[new].shape)
        else:
            tensors[new] = tensor
    return tensors


def _inflate(tensor: Tensor, reference: Tensor | None) -> Tensor:
    """Turn a 2-D filter into the middle frame of a 3-D filter."""
    if reference is None or tensor.ndim != 4 or reference.ndim != 5:
        return tensor
    result = tensor.new_zeros(*tensor.shape[:2], reference.shape[2], *tensor.shape[2:])
    result[:, :, reference.shape[2] // 2] = tensor
    return result
