"""Which variables of an official SimCLR checkpoint are which: by name (TensorFlow 1), by the tree of objects (2)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from contrastive_core.errors import UserError
from ssl_vision.checkpoints.object_graph import Node, ObjectGraph


@dataclass(frozen=True)
class Norm:
    """Names of a batch norm's tensors; the last one of a projection head has no beta."""

    gamma: str
    beta: str | None
    mean: str
    variance: str

    def names(self) -> list[str]:
        """Those that exist."""
        return [self.gamma, *([self.beta] if self.beta else []), self.mean, self.variance]


@dataclass
class Variables:
    """Names in the checkpoint, each kind in the order in which the official code creates them."""

    kernels: list[str] = field(default_factory=list)
    norms: list[Norm] = field(default_factory=list)
    head: list[tuple[str, Norm]] = field(default_factory=list)
    classifier: tuple[str, str] | None = None

    def names(self) -> set[str]:
        """All of them."""
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
    """The variables of a checkpoint of the TensorFlow 1 code, of which all that count begin with `prefix`.

    Raises:
        UserError: it holds no official encoder, or not the whole of one.
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
    found = Variables([own[name] for name in kernels], [_norm(own, gamma, source) for gamma in gammas])
    for kernel in _numbered(own, _HEAD, 2, source):
        layer = kernel[: kernel.index("/dense")]
        gamma = next((n for n in own if n.startswith(f"{layer}/batch_normalization") and n.endswith("/gamma")), None)
        if gamma is None:
            raise UserError(f"{source}: {own[kernel]} has no batch norm beside it; this is no official projection head")
        found.head.append((own[kernel], _norm(own, gamma, source, beta=False)))
    classifier = "head_supervised/linear_layer/dense"
    if f"{classifier}/kernel" in own and f"{classifier}/bias" in own:
        found.classifier = own[f"{classifier}/kernel"], own[f"{classifier}/bias"]
    return found


def _numbered(own: Mapping[str, str], pattern: re.Pattern[str], group: int, source: object) -> list[str]:
    """Names of a pattern in the order of their number, which counts from 0; none is missing."""
    found = sorted((int(match[group] or 0), name) for name in own if (match := pattern.fullmatch(name)))
    numbers = [number for number, _ in found]
    if numbers != list(range(len(numbers))):
        gap = next(i for i, number in enumerate(numbers) if i != number)
        raise UserError(f"{source}: the variable before {own[found[gap][1]]} is missing; the checkpoint is incomplete")
    return [name for _, name in found]


def _norm(own: Mapping[str, str], gamma: str, source: object, *, beta: bool = True) -> Norm:
    scope = gamma.removesuffix("gamma")
    missing = [name for name in _STATISTICS if scope + name not in own and (beta or name != "beta")]
    if missing:
        raise UserError(f"{source}: {own[gamma]} has no {missing[0]} beside it; the checkpoint is incomplete")
    shift = own.get(f"{scope}beta")
    return Norm(own[gamma], shift, own[f"{scope}moving_mean"], own[f"{scope}moving_variance"])


# The attributes that lead to layers, in the order in which the official constructors make them.
_PARTS = (
    *("initial_conv_relu_max_pool", "block_groups", "layers", "shortcut_layers", "projection_layers"),
    *("conv2d_bn_layers", "conv_relu_dropblock_layers"),
    *("conv2d_fixed_padding", "batch_norm_relu", "conv2d_0", "batch_norm_relu_1", "conv2d_1", "conv2d", "bn"),
)


def by_objects(graph: ObjectGraph, source: object) -> Variables:
    """The variables of a checkpoint or SavedModel of the TensorFlow 2 code.

    Raises:
        UserError: it holds no official encoder, or one with squeeze-and-excitation.
    """
    model = graph.with_child("resnet_model")
    if model is None:
        raise UserError(f"{source}: none of its objects has a resnet_model, as the TensorFlow 2 code's model has")
    found = Variables()
    for layer in _layers(graph, graph.nodes[model.children["resnet_model"]]):
        if {"se_reduce", "se_layer"} & set(layer.children):
            raise UserError(f"{source}: has squeeze-and-excitation layers, which our encoders do not have")
        if kernel := graph.tensor(layer, "kernel"):
            found.kernels.append(kernel)
        elif "gamma" in layer.children:
            found.norms.append(_norm_of(graph, layer, source))
    head = graph.child(model, "_projection_head", "linear_layers") or Node()
    for layer in _children(graph, head):
        kernel, norm = graph.tensor(layer, "dense", "kernel"), graph.child(layer, "bn_relu", "bn")
        if kernel is None or norm is None:
            raise UserError(f"{source}: a layer of its projection head lacks its weights; it was saved before it ran")
        found.head.append((kernel, _norm_of(graph, norm, source)))
    classifier = graph.child(model, "supervised_head", "linear_layer", "dense") or Node()
    weights = graph.tensor(classifier, "kernel"), graph.tensor(classifier, "bias")
    if weights[0] and weights[1]:
        found.classifier = weights[0], weights[1]
    return found


def _layers(graph: ObjectGraph, node: Node, seen: set[int] | None = None) -> Iterator[Node]:
    """Every layer under a node, once, the node first."""
    seen = set() if seen is None else seen
    if id(node) in seen:  # a damaged tree may lead back to itself
        return
    seen.add(id(node))
    yield node
    for name in _PARTS:
        if name in node.children:
            yield from _layers(graph, graph.nodes[node.children[name]], seen)
    for child in _children(graph, node):
        yield from _layers(graph, child, seen)


def _children(graph: ObjectGraph, node: Node) -> list[Node]:
    """The items of a node that is a list."""
    numbers = sorted(int(name) for name in node.children if name.isdigit())
    return [graph.nodes[node.children[str(number)]] for number in numbers]


def _norm_of(graph: ObjectGraph, layer: Node, source: object) -> Norm:
    gamma, beta, mean, variance = (graph.tensor(layer, name) for name in ("gamma", *_STATISTICS))
    if gamma is None or mean is None or variance is None:
        raise UserError(f"{source}: a batch norm lacks its statistics; the checkpoint is incomplete")
    return Norm(gamma, beta, mean, variance)
