"""Import ResNets from PyTorch programs as encoders: torchvision, timm, lightly, solo-learn, VISSL, MoCo, suncet.

All of them are torchvision's ResNet under some prefix (``module.``, ``backbone.``, ``encoder_q.``); lightly numbers its
parts. Weights are read as one flat mapping of names to tensors, and no code in a file is run. Weights show neither the
normalisation of the input nor the padding of a stem: if names identify the program that wrote a file, its convention is
assumed and reported; otherwise the user must state them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from contrastive_core.errors import UserError
from contrastive_core.training.weights import plain_name, read_tensors
from ssl_vision.importing.imported import Imported
from ssl_vision.models import EncoderOptions, resnet
from ssl_vision.models.encoder import Normalization
from ssl_vision.models.pretrained import SECOND, integers_for_floats, second_network, teacher_hint
from ssl_vision.models.resnet import LAYOUTS, BasicBlock, Stem

ImportedNormalization = Literal["auto", "none", "imagenet", "cifar10", "cifar100"]
"""Statistics that normalised the images of a network in training; ``auto`` infers them from the file."""

_NAMED = (
    "Name any other network, such as a transformer or a wide, grouped, ResNet-D or squeeze-and-excitation ResNet, as "
    "in --architecture timm:wide_resnet50_2"
)
_GROUPS = ("layer1", "layer2", "layer3", "layer4")


@dataclass
class Net:
    """A ResNet found among tensors.

    Attributes:
        prefix: Prefix of its names.
        names: torchvision's names -> names in the file.
        activations: Whether the numbers in a Sequential count the activation and pool of the stem.
    """

    prefix: str
    names: dict[str, str] = field(default_factory=dict)
    activations: bool = True

    @property
    def parent(self) -> str:
        """Prefix of the modules beside it."""
        return self.prefix[: self.prefix[:-1].rfind(".") + 1]


def read_resnet(
    source: Path,
    *,
    prefix: str = "",
    stem: Stem | Literal["auto"] = "auto",
    normalize: ImportedNormalization = "auto",
) -> Imported:
    """Read a ResNet from a ``.safetensors`` file or a file written by `torch.save`.

    Args:
        source: File.
        prefix: Prefix of the network's names, if the file contains several networks.
        stem: Padding of a stem with a 3x3 convolution; see `resnet`.
        normalize: Statistics that normalised its images in training.

    Raises:
        UserError: The file cannot be read safely, contains no such ResNet or several, or does not determine a setting.
    """
    tensors = read_tensors(source)
    nets = _nets(tensors)
    net = _choose(nets, plain_name(prefix), tensors, source)
    weights = {layer_name: tensors[name] for layer_name, name in net.names.items()}
    depth, width = _size(weights, source)
    others = [other.prefix for other in nets if other is not net]
    notes = [second_network(net.prefix, others)] if others and not prefix else []
    padding = _stem(net, tensors, stem, notes=notes, source=source)
    options = EncoderOptions(
        name=f"resnet{depth}",
        width_multiplier=width,
        stem=padding,
        variant="torchvision",
        normalize=_normalization(net, tensors, normalize, stem=padding, notes=notes, source=source),
    )
    options = for_channels(options, weights["conv1.weight"].shape[1])
    state = _state(weights, options, source)
    imported = Imported(options, 224 if options.stem == "imagenet" else 32, state, notes=notes)
    features = 512 * width * LAYOUTS[depth][0].expansion
    classifier = _classifier(net, tensors, round(features))
    if classifier is not None:
        imported.classifier, imported.classifier_names = (tensors[classifier[0]], tensors[classifier[1]]), classifier
    tensor_names = {*net.names.values(), *(classifier or ())}
    imported.left_out = sorted(set(tensors) - tensor_names)
    return imported


def _nets(tensors: Mapping[str, Tensor]) -> list[Net]:
    nets = []
    for name in tensors:
        if re.search(r"(^|\.)conv1\.weight$", name):
            prefix = name.removesuffix("conv1.weight")
            if f"{prefix}layer1.0.conv1.weight" in tensors:
                nets.append(_net(tensors, prefix, {part: part for part in ("conv1", "bn1", *_GROUPS)}))
        elif re.search(r"(^|\.)0\.weight$", name):
            # A network without its classifier: Sequential(conv, bn, [relu, pool,] group 1, ... group 4).
            prefix = name.removesuffix("0.weight")
            first = next((k for k in (2, 3, 4) if f"{prefix}{k}.0.conv1.weight" in tensors), None)
            if first is not None:
                groups = {str(first + index): group for index, group in enumerate(_GROUPS)}
                nets.append(_net(tensors, prefix, {"0": "conv1", "1": "bn1", **groups}))
                nets[-1].activations = first > 2
    return nets


def _net(tensors: Mapping[str, Tensor], prefix: str, parts: Mapping[str, str]) -> Net:
    net = Net(prefix)
    for name in tensors:
        part, _, rest = name.removeprefix(prefix).partition(".")
        if name.startswith(prefix) and part in parts:
            net.names[f"{parts[part]}.{rest}".replace(".shortcut.", ".downsample.")] = name
    return net


def _choose(nets: list[Net], prefix: str, tensors: Mapping[str, Tensor], source: Path) -> Net:
    if not nets:
        names = ", ".join(list(tensors)[:3])
        raise UserError(
            f"{source}: found no ResNet as in torchvision (conv1.weight, layer1.0.conv1.weight, ... under some "
            f"prefix) among {len(tensors)} tensors: {names}, ... {_NAMED}"
        )
    prefixes = ", ".join(repr(net.prefix) for net in nets)
    if prefix:
        matches = [net for net in nets if net.prefix in (prefix, f"{prefix}.")]
        if not matches:
            raise UserError(f"{source}: no network under --prefix {prefix!r}; networks are under {prefixes}")
        return matches[0]
    first = [net for net in nets if not SECOND.search(net.prefix)] or nets
    if len(first) > 1:
        hint = teacher_hint([net.prefix for net in first])
        raise UserError(f"{source} contains several networks, under {prefixes}; choose one with --prefix{hint}")
    return first[0]


def _size(weights: Mapping[str, Tensor], source: Path) -> tuple[int, float]:
    repeats = tuple(len({name.split(".")[1] for name in weights if name.startswith(f"{group}.")}) for group in _GROUPS)
    bottleneck = "layer1.0.conv3.weight" in weights
    for depth, (block, layout) in LAYOUTS.items():
        if layout == repeats and (block is not BasicBlock) == bottleneck:
            return depth, weights["conv1.weight"].shape[0] / 64
    kind = "bottlenecks" if bottleneck else "basic blocks"
    raise UserError(
        f"{source}: a ResNet of {'-'.join(map(str, repeats))} {kind}; "
        f"expected one of ResNet-{', '.join(map(str, LAYOUTS))}"
    )


def _state(weights: Mapping[str, Tensor], options: EncoderOptions, source: Path) -> dict[str, Tensor]:
    depth = int(options.name.removeprefix("resnet"))
    with torch.device("meta"):
        expected = resnet(
            depth,
            width=options.width_multiplier,
            stem=options.stem,
            variant="torchvision",
            channels=options.image_channels,
        ).state_dict()
    counters = {name: torch.zeros((), dtype=torch.int64) for name in expected if name.endswith("num_batches_tracked")}
    state = counters | dict(weights)
    problems = [f"{name} is missing" for name in expected if name not in state]
    problems += [f"{name} is unexpected" for name in state if name not in expected]
    problems += [
        f"{name} is {list(state[name].shape)}, expected {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    problems += integers_for_floats(state, expected)
    if problems:
        raise UserError(
            f"{source}: this is not torchvision's {options.name} at width {options.width_multiplier:g}: "
            + "; ".join(problems[:3])
            + (f" and {len(problems) - 3} more" if len(problems) > 3 else "")
            + f". {_NAMED}"
        )
    return state


def _stem(
    net: Net, tensors: Mapping[str, Tensor], stem: Stem | Literal["auto"], *, notes: list[str], source: Path
) -> Stem:
    kernel = tensors[net.names["conv1.weight"]].shape[-1]
    if kernel == 7:
        if stem not in ("auto", "imagenet"):
            raise UserError(f"{source}: --stem {stem}, but its first convolution is 7x7, as in the imagenet stem")
        return "imagenet"
    if stem == "imagenet":
        raise UserError(f"{source}: --stem imagenet, but its first convolution is {kernel}x{kernel}, not 7x7")
    if stem != "auto":
        return stem
    if any(name.startswith(f"{net.parent}projector.") for name in tensors):
        notes.append("the 3x3 stem is assumed to pad by 2, as in solo-learn; if it pads by 1, set --stem cifar")
        return "cifar-pad2"
    if not net.activations:
        notes.append("the stem has no ReLU, as in lightly's ResNetGenerator; if it has one, set --stem cifar")
        return "cifar-no-relu"
    notes.append("the 3x3 stem is assumed to have stride 1, padding 1 and no pooling after it")
    return "cifar"


def _normalization(
    net: Net,
    tensors: Mapping[str, Tensor],
    normalization: ImportedNormalization,
    *,
    stem: Stem,
    notes: list[str],
    source: Path,
) -> Normalization:
    channels = tensors[net.names["conv1.weight"]].shape[1]
    if channels != 3:
        return require_unnormalized(normalization, channels, source)
    if normalization != "auto":
        return normalization
    if f"{net.prefix}fc.fc1.weight" in tensors and f"{net.prefix}fc.fc3.weight" not in tensors:
        notes.append("images were not normalised, as in the first release of suncet; otherwise set --normalize")
        return "none"
    if stem == "imagenet":
        notes.append(
            "images are assumed to be normalised with ImageNet's mean and deviation; otherwise set --normalize"
        )
        return "imagenet"
    raise UserError(
        f"{source}: a network for small images, whose weights do not show how its images were normalised; "
        "set --normalize none, imagenet, cifar10 or cifar100 (lightly uses imagenet, solo-learn the data set's)"
    )


def for_channels(options: EncoderOptions, channels: int) -> EncoderOptions:
    """Return the options for images of a number of channels, which are not normalised if there are other than three."""
    if channels == 3:
        return options
    return replace(options, image_channels=channels, mean=(0.0,) * channels, std=(1.0,) * channels)


def require_unnormalized(normalization: ImportedNormalization, channels: int, source: Path) -> Literal["none"]:
    """Return ``none``, the only normalisation that can be stated for images of other than three channels.

    Raises:
        UserError: Another one is stated, or none.
    """
    if normalization == "none":
        return "none"
    raise UserError(
        f"{source}: a network for images of {channels} channels, "
        + (
            "whose weights do not show how its images were normalised"
            if normalization == "auto"
            else f"but --normalize {normalization} is for 3 channels"
        )
        + "; set --normalize none if it takes images in [0, 1]"
    )


def _classifier(net: Net, tensors: Mapping[str, Tensor], features: int) -> tuple[str, str] | None:
    """Find a linear classifier: torchvision's and timm's ``fc``, solo-learn's ``classifier`` beside the network."""
    prefixes = [f"{net.parent}classifier"]
    if "encoder_q" not in net.prefix:  # MoCo stores its projection there
        prefixes.append(f"{net.prefix}fc")
    for prefix in prefixes:
        weight, bias = tensors.get(f"{prefix}.weight"), tensors.get(f"{prefix}.bias")
        if weight is not None and bias is not None and weight.ndim == 2 and weight.shape[1] == features:
            return f"{prefix}.weight", f"{prefix}.bias"
    return None
