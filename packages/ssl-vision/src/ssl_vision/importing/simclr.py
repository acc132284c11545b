"""Import official SimCLR and SimCLRv2 checkpoints as encoder, head and classifier.

Variables are found by name in checkpoints of the TensorFlow 1 code, and by the object graph in those of TensorFlow 2.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from contrastive_core.errors import UserError
from ssl_vision.importing.imported import Imported
from ssl_vision.importing.tensorflow import KEY, Node, ObjectGraph, TensorBundle
from ssl_vision.models import EncoderOptions, resnet
from ssl_vision.models.pretrained import second_network
from ssl_vision.models.resnet import LAYOUTS, BasicBlock, ResNet, Stem


@dataclass(frozen=True)
class Norm:
    """Names of a batch norm's tensors; the last one of a projection head has no beta."""

    gamma: str
    beta: str | None
    mean: str
    variance: str

    def names(self) -> list[str]:
        """Return the names that exist."""
        return [self.gamma, *([self.beta] if self.beta else []), self.mean, self.variance]


@dataclass
class Variables:
    """Names in the checkpoint, each kind in the order in which the official code creates them."""

    kernels: list[str] = field(default_factory=list)
    norms: list[Norm] = field(default_factory=list)
    head: list[tuple[str, Norm]] = field(default_factory=list)
    classifier: tuple[str, str] | None = None

    def names(self) -> set[str]:
        """Return all names."""
        in_head = [name for kernel, norm in self.head for name in (kernel, *norm.names())]
        return {
            *self.kernels,
            *(name for norm in self.norms for name in norm.names()),
            *in_head,
            *(self.classifier or ()),
        }


_KERNEL = re.compile(r"base_model/conv2d(?:_(\d+))?/kernel")
_NORM = re.compile(r"base_model/(batch_normalization(?:_(\d+))?)/gamma")
_HEAD = re.compile(r"(head_contrastive/n?l_(\d+))/dense(?:_\d+)?/kernel")
_STATISTICS = ("beta", "moving_mean", "moving_variance")


def by_name(shapes: Mapping[str, tuple[int, ...]], prefix: str, source: object) -> Variables:
    """Find the variables of a checkpoint of the TensorFlow 1 code, whose names begin with `prefix`.

    Raises:
        UserError: It contains no official encoder, or an incomplete one.
    """
    own = {name.removeprefix(prefix): name for name in shapes if name.startswith(prefix)}
    kernels = _numbered(own, _KERNEL, 1, source)
    if not kernels:
        starts = sorted({name.partition("/")[0] for name in shapes})
        raise UserError(
            f"{source}: expected variables named as in google-research/simclr ({prefix}base_model/conv2d/kernel, ...); "
            f"found {len(shapes)} that begin with {', '.join(starts[:6]) or 'nothing'}"
        )
    gammas = _numbered(own, _NORM, 2, source)
    variables = Variables([own[name] for name in kernels], [_norm(own, gamma, source) for gamma in gammas])
    for kernel in _numbered(own, _HEAD, 2, source):
        layer = kernel[: kernel.index("/dense")]
        gamma = next((n for n in own if n.startswith(f"{layer}/batch_normalization") and n.endswith("/gamma")), None)
        if gamma is None:
            raise UserError(
                f"{source}: {own[kernel]} has no batch norm beside it; this is not an official projection head"
            )
        variables.head.append((own[kernel], _norm(own, gamma, source, beta=False)))
    classifier = "head_supervised/linear_layer/dense"
    if f"{classifier}/kernel" in own and f"{classifier}/bias" in own:
        variables.classifier = own[f"{classifier}/kernel"], own[f"{classifier}/bias"]
    return variables


def _numbered(own: Mapping[str, str], pattern: re.Pattern[str], group: int, source: object) -> list[str]:
    """Return the names that match a pattern, in the order of their numbers, which count from 0 without gaps."""
    matches = sorted((int(match[group] or 0), name) for name in own if (match := pattern.fullmatch(name)))
    numbers = [number for number, _ in matches]
    if numbers != list(range(len(numbers))):
        gap = next(i for i, number in enumerate(numbers) if i != number)
        raise UserError(
            f"{source}: the variable before {own[matches[gap][1]]} is missing; the checkpoint is incomplete"
        )
    return [name for _, name in matches]


def _norm(own: Mapping[str, str], gamma: str, source: object, *, beta: bool = True) -> Norm:
    scope = gamma.removesuffix("gamma")
    missing = [name for name in _STATISTICS if scope + name not in own and (beta or name != "beta")]
    if missing:
        raise UserError(f"{source}: {own[gamma]} has no {missing[0]} ; the checkpoint is incomplete")
    shift = own.get(f"{scope}beta")
    return Norm(own[gamma], shift, own[f"{scope}moving_mean"], own[f"{scope}moving_variance"])


# The attributes that lead to layers, in the order of the official constructors.
_PARTS = (
    *("initial_conv_relu_max_pool", "block_groups", "layers", "shortcut_layers", "projection_layers"),
    *("conv2d_bn_layers", "conv_relu_dropblock_layers"),
    *("conv2d_fixed_padding", "batch_norm_relu", "conv2d_0", "batch_norm_relu_1", "conv2d_1", "conv2d", "bn"),
)


def by_objects(graph: ObjectGraph, source: object) -> Variables:
    """Find the variables of a checkpoint or SavedModel of the TensorFlow 2 code.

    Raises:
        UserError: It contains no official encoder, or one with squeeze-and-excitation.
    """
    model = graph.with_child("resnet_model")
    if model is None:
        raise UserError(f"{source}: found no object with a resnet_model, which the TensorFlow 2 code writes")
    variables = Variables()
    for layer in _layers(graph, graph.nodes[model.children["resnet_model"]]):
        if {"se_reduce", "se_layer"} & set(layer.children):
            raise UserError(f"{source}: has squeeze-and-excitation layers, which are not supported")
        if kernel := graph.tensor(layer, "kernel"):
            variables.kernels.append(kernel)
        elif "gamma" in layer.children:
            variables.norms.append(_norm_of(graph, layer, source))
    head = graph.child(model, "_projection_head", "linear_layers") or Node()
    for layer in _children(graph, head):
        kernel, norm = graph.tensor(layer, "dense", "kernel"), graph.child(layer, "bn_relu", "bn")
        if kernel is None or norm is None:
            raise UserError(
                f"{source}: a layer of its projection head lacks its weights; it was saved before its first use"
            )
        variables.head.append((kernel, _norm_of(graph, norm, source)))
    classifier = graph.child(model, "supervised_head", "linear_layer", "dense") or Node()
    weights = graph.tensor(classifier, "kernel"), graph.tensor(classifier, "bias")
    if weights[0] and weights[1]:
        variables.classifier = weights[0], weights[1]
    return variables


def _layers(graph: ObjectGraph, node: Node, seen: set[int] | None = None) -> Iterator[Node]:
    """List every layer under a node once, the node first."""
    seen = set() if seen is None else seen
    if id(node) in seen:  # a damaged graph may lead back to itself
        return
    seen.add(id(node))
    yield node
    for name in _PARTS:
        if name in node.children:
            yield from _layers(graph, graph.nodes[node.children[name]], seen)
    for child in _children(graph, node):
        yield from _layers(graph, child, seen)


def _children(graph: ObjectGraph, node: Node) -> list[Node]:
    """Return the items of a node that is a list."""
    numbers = sorted(int(name) for name in node.children if name.isdigit())
    return [graph.nodes[node.children[str(number)]] for number in numbers]


def _norm_of(graph: ObjectGraph, layer: Node, source: object) -> Norm:
    gamma, beta, mean, variance = (graph.tensor(layer, name) for name in ("gamma", *_STATISTICS))
    if gamma is None or mean is None or variance is None:
        raise UserError(f"{source}: a batch norm lacks its statistics; the checkpoint is incomplete")
    return Norm(gamma, beta, mean, variance)


_SK_RATIO = 0.0625


def read_simclr(source: Path, *, prefix: str = "") -> Imported:
    """Read an official checkpoint: a file or folder of `tf.train.Saver` or `tf.train.Checkpoint`, or a SavedModel.

    Args:
        source: Checkpoint, see `TensorBundle`.
        prefix: Prefix before ``base_model/`` in the names of a TensorFlow 1 checkpoint; ``ema_model/`` selects the
            moving average of a checkpoint that has one.

    Raises:
        UserError: There is no such checkpoint, it is damaged, or it is not one of these networks.
    """
    bundle = TensorBundle(source)
    shapes = {name: entry.shape for name, entry in bundle.entries.items() if name != KEY}
    objects = KEY in bundle.entries
    if objects and prefix:
        raise UserError(f"--prefix {prefix}: {bundle.prefix} names its variables by objects, not by prefixes")
    variables = by_objects(ObjectGraph(bundle), bundle.prefix) if objects else by_name(shapes, prefix, bundle.prefix)
    options = _architecture([bundle.shape(name) for name in variables.kernels], bundle.prefix)
    block, _ = LAYOUTS[int(options.name.removeprefix("resnet"))]
    if options.sk_ratio > 0 and block is BasicBlock and not objects:
        raise UserError(
            f"{bundle.prefix}: found {options.name} with ResNet-D of the TensorFlow 1 code, which is not supported: "
            "its basic blocks also pool the main branch, so that the features would differ"
        )
    imported = Imported(options, 224 if options.stem == "imagenet" else 32, _encoder(bundle, variables, options))
    if options.stem == "cifar" and block is BasicBlock:
        imported.notes.append(
            "ResNet-D shortcuts are assumed to be off, because this network's weights do not show them"
        )
    if not prefix and any(name.startswith("ema_model/") for name in shapes):
        imported.notes.append(second_network("base_model/", ["ema_model/"]))
    imported.head = _head(bundle, variables)
    if variables.classifier is not None:
        kernel, bias = (bundle.tensor(name).float() for name in variables.classifier)
        imported.classifier, imported.classifier_names = (kernel.T.contiguous(), bias), variables.classifier
    imported.left_out = sorted(set(shapes) - variables.names())
    return imported


def _architecture(kernels: list[tuple[int, ...]], source: Path) -> EncoderOptions:
    """Derive depth, width, stem and selective kernels from the shapes of the convolutions, in their order."""
    for depth, (block, repeats) in LAYOUTS.items():
        blocks = sum(repeats)
        plain = 4 + blocks * (2 if block is BasicBlock else 3)
        selective = plain + (0 if block is BasicBlock else 2 * blocks)
        small_stem = kernels[0][:2] == (3, 3)
        stem: Stem
        if len(kernels) == plain + 1:
            stem, ratio = "cifar" if small_stem else "imagenet", 0.0
        elif small_stem and len(kernels) == selective + 3:
            stem, ratio = "imagenet", _sk_ratio(kernels, block is BasicBlock)
        elif small_stem and len(kernels) == selective + 1:
            stem, ratio = "cifar", _sk_ratio(kernels, block is BasicBlock)
        else:
            continue
        width = kernels[-1][-1] / (512 * block.expansion)
        return EncoderOptions(name=f"resnet{depth}", width_multiplier=width, stem=stem, sk_ratio=ratio)
    raise UserError(
        f"{source}: an encoder of {len(kernels)} convolutions; expected one of ResNet-"
        f"{', '.join(map(str, LAYOUTS))} as in the official code (no squeeze-and-excitation)"
    )


def _sk_ratio(kernels: list[tuple[int, ...]], basic: bool) -> float:
    """Derive the ratio from the last block (..., squeeze, attend, 1x1); narrow networks have a minimum width of 32."""
    if basic:
        return _SK_RATIO
    channels, hidden = kernels[-3][-2:]
    return _SK_RATIO if hidden == max(int(channels * _SK_RATIO), 32) else hidden / max(channels, 1)


def _encoder(bundle: TensorBundle, variables: Variables, options: EncoderOptions) -> dict[str, Tensor]:
    with torch.device("meta"):
        net = resnet(
            int(options.name.removeprefix("resnet")),
            width=options.width_multiplier, stem=options.stem, sk_ratio=options.sk_ratio,
        )  # fmt: skip
    kernels, norms = iter(variables.kernels), iter(variables.norms)
    state: dict[str, Tensor] = {}
    layers = list(_in_order(net))
    num_norms = sum(isinstance(layer, nn.BatchNorm2d) for _, layer in layers)
    if len(variables.norms) != num_norms:
        raise UserError(f"{bundle.prefix}: {len(variables.norms)} batch norms, but {options.name} has {num_norms}")
    for name, layer in layers:
        if isinstance(layer, nn.Conv2d):
            kernel = next(kernels)
            height, width, inputs, outputs = (*bundle.shape(kernel), 0, 0, 0, 0)[:4]
            _compare(bundle, kernel, (outputs, inputs, height, width), layer.weight.shape, name)
            state[f"{name}.weight"] = bundle.tensor(kernel).float().permute(3, 2, 0, 1).contiguous()
        else:
            norm = next(norms)
            _compare(bundle, norm.gamma, bundle.shape(norm.gamma), layer.weight.shape, name)
            state |= {f"{name}.{key}": tensor for key, tensor in _norm_state(bundle, norm).items()}
    return state


def _in_order(net: ResNet) -> Iterator[tuple[str, nn.Conv2d | nn.BatchNorm2d]]:
    """List the layers with weights in the order in which the official code creates them: a block's shortcut first."""
    parts: list[tuple[str, nn.Module]] = [("conv1", net.conv1), ("bn1", net.bn1)]
    for group in ("layer1", "layer2", "layer3", "layer4"):
        for index, block in net.get_submodule(group).named_children():
            names = ("downsample", "conv1", "bn1", "conv2", "bn2", "conv3", "bn3")
            children = dict(block.named_children())
            parts += [(f"{group}.{index}.{name}", children[name]) for name in names if name in children]
    for prefix, part in parts:
        for name, layer in part.named_modules(prefix=prefix):
            if isinstance(layer, (nn.Conv2d, nn.BatchNorm2d)):
                yield name, layer


def _head(bundle: TensorBundle, variables: Variables) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for index, (kernel, norm) in enumerate(variables.head):
        last = index == len(variables.head) - 1
        inputs, outputs = (*bundle.shape(kernel), 0, 0)[:2]
        if (norm.beta is None) != last or (not last and inputs != outputs):
            raise UserError(
                f"{bundle.prefix}: {kernel} of shape {[inputs, outputs]} is not a layer of an official projection head "
                "(hidden layers as wide as the features, a beta in every batch norm but the last)"
            )
        state[f"layers.{index}.linear.weight"] = bundle.tensor(kernel).float().T.contiguous()
        state |= {f"layers.{index}.norm.{key}": tensor for key, tensor in _norm_state(bundle, norm).items()}
    return state


def _norm_state(bundle: TensorBundle, norm: Norm) -> dict[str, Tensor]:
    state = {"weight": norm.gamma, "running_mean": norm.mean, "running_var": norm.variance}
    if norm.beta is not None:
        state["bias"] = norm.beta
    tensors = {key: bundle.tensor(name).float() for key, name in state.items()}
    return tensors | {"num_batches_tracked": torch.zeros((), dtype=torch.int64)}


def _compare(bundle: TensorBundle, name: str, shape: tuple[int, ...], expected: torch.Size, layer_name: str) -> None:
    if tuple(shape) != tuple(expected):
        raise UserError(
            f"{bundle.prefix}: {name} has shape {list(shape)}, but {layer_name} has {list(expected)}; "
            "the network is not an official encoder"
        )
