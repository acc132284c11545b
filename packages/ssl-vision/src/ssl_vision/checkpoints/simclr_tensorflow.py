"""Official SimCLR and SimCLRv2 checkpoints of TensorFlow 1 and 2 as our encoders, head and classifier."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from contrastive_core.errors import UserError
from ssl_vision.checkpoints.imported import Imported
from ssl_vision.checkpoints.object_graph import KEY, ObjectGraph
from ssl_vision.checkpoints.simclr_names import Norm, Variables, by_name, by_objects
from ssl_vision.checkpoints.tensor_bundle import TensorBundle
from ssl_vision.models import EncoderOptions, resnet
from ssl_vision.models.blocks import BasicBlock
from ssl_vision.models.resnet import LAYOUTS, ResNet, Stem

_SK_RATIO = 0.0625


def read_simclr(source: Path, *, prefix: str = "") -> Imported:
    """Read an official checkpoint: a file or folder of `tf.train.Saver` or `tf.train.Checkpoint`, or a SavedModel.

    Args:
        source: see `TensorBundle`.
        prefix: what stands before ``base_model/`` in the names of a TensorFlow 1 checkpoint; ``ema_model/`` takes the
            moving average of a checkpoint that has one.

    Raises:
        UserError: there is no such checkpoint, it is damaged, or it is not one of these networks.
    """
    bundle = TensorBundle(source)
    shapes = {name: entry.shape for name, entry in bundle.entries.items() if name != KEY}
    objects = KEY in bundle.entries
    if objects and prefix:
        raise UserError(f"--prefix {prefix}: {bundle.prefix} names its variables by objects, not by prefixes")
    found = by_objects(ObjectGraph(bundle), bundle.prefix) if objects else by_name(shapes, prefix, bundle.prefix)
    options = _architecture([bundle.shape(name) for name in found.kernels], bundle.prefix)
    block, _ = LAYOUTS[int(options.name.removeprefix("resnet"))]
    if options.sk_ratio > 0 and block is BasicBlock and not objects:
        raise UserError(
            f"{bundle.prefix}: {options.name} with ResNet-D of the TensorFlow 1 code, whose basic blocks pool the main "
            "branch too; no other code does, and the features would differ"
        )
    imported = Imported(options, 224 if options.stem == "imagenet" else 32, _encoder(bundle, found, options))
    if options.stem == "cifar" and block is BasicBlock:
        imported.notes.append("ResNet-D shortcuts, which leave no trace in this network's weights, are taken to be off")
    imported.head = _head(bundle, found)
    if found.classifier is not None:
        kernel, bias = (bundle.tensor(name).float() for name in found.classifier)
        imported.classifier, imported.classifier_names = (kernel.T.contiguous(), bias), found.classifier
    imported.left_out = sorted(set(shapes) - found.names())
    return imported


def _architecture(kernels: list[tuple[int, ...]], source: Path) -> EncoderOptions:
    """Depth, width, stem and selective kernels from the shapes of the convolutions, in their order."""
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
        return EncoderOptions(name=f"resnet{depth}", width=width, stem=stem, sk_ratio=ratio)
    raise UserError(
        f"{source}: an encoder of {len(kernels)} convolutions; expected one of ResNet-"
        f"{', '.join(map(str, LAYOUTS))} as the official code builds them (no squeeze-and-excitation)"
    )


def _sk_ratio(kernels: list[tuple[int, ...]], basic: bool) -> float:
    """From the last block: ..., squeeze, attend, 1x1. Narrow networks do not show it: the width is at least 32."""
    if basic:
        return _SK_RATIO
    channels, hidden = kernels[-3][-2:]
    return _SK_RATIO if hidden == max(int(channels * _SK_RATIO), 32) else hidden / max(channels, 1)


def _encoder(bundle: TensorBundle, found: Variables, options: EncoderOptions) -> dict[str, Tensor]:
    with torch.device("meta"):
        net = resnet(
            int(options.name.removeprefix("resnet")),
            width=options.width, stem=options.stem, sk_ratio=options.sk_ratio,
        )  # fmt: skip
    kernels, norms = iter(found.kernels), iter(found.norms)
    state: dict[str, Tensor] = {}
    layers = list(_in_order(net))
    wanted = sum(isinstance(layer, nn.BatchNorm2d) for _, layer in layers)
    if len(found.norms) != wanted:
        raise UserError(f"{bundle.prefix}: {len(found.norms)} batch norms; {options.name} has {wanted}")
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
    """The layers with weights in the order in which the official code creates them: a block's shortcut first."""
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


def _head(bundle: TensorBundle, found: Variables) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for index, (kernel, norm) in enumerate(found.head):
        last = index == len(found.head) - 1
        inputs, outputs = (*bundle.shape(kernel), 0, 0)[:2]
        if (norm.beta is None) != last or (not last and inputs != outputs):
            raise UserError(
                f"{bundle.prefix}: {kernel} of shape {[inputs, outputs]} is no layer of an official projection head "
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


def _compare(bundle: TensorBundle, name: str, found: tuple[int, ...], wanted: torch.Size, ours: str) -> None:
    if tuple(found) != tuple(wanted):
        raise UserError(
            f"{bundle.prefix}: {name} gives shape {list(found)}, our {ours} has {list(wanted)}; "
            "the network is none of the official encoders"
        )
