"""Weights under the names of torchvision's and timm's ResNets, where those compute the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torchvision.models import get_model

from contrastive_core.errors import UserError
from ssl_vision.exporting.exportable import Exportable
from ssl_vision.models import EncoderOptions
from ssl_vision.models.normalize import STATISTICS

_DEPTHS = (18, 34, 50, 101, 152)


def write_torchvision(model: Exportable, file: Path, *, approximate: bool = False) -> dict[str, Any]:
    """Write a safetensors file that torchvision's and timm's ResNet of the same depth loads, and compare it with ours.

    Args:
        model: to write.
        file: where to.
        approximate: also where torchvision pads the max pool differently, and features therefore differ.

    Returns:
        The card, which is also in the file's metadata. It says how to load the file, and, if approximate, how far off
        the result is.

    Raises:
        UserError: torchvision has no such network, or one that differs and `approximate` is not set.
    """
    name, differs = _counterpart(model)
    if differs and not approximate:
        raise UserError(
            f"{model.source}: {name} of torchvision and timm has the same weights, but {differs}. "
            "--approximate writes them all the same (to train them further, say); .onnx and .pt2 are exact"
        )
    state = _state(model)
    classes = 0 if model.classes is None else len(model.classes)
    net = get_model(name, weights=None, num_classes=classes or 1)
    if not classes:
        net.fc = nn.Identity()
    net.load_state_dict(state)
    net.eval()
    mean, std = STATISTICS[model.options.normalize]

    def run(images: Tensor) -> Tensor:
        out: Tensor = net((images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1))
        return out

    card = model.card(file, normalisation={"mean": mean, "std": std, "by": "the caller"})
    card["load"] = {
        "timm": f"timm.create_model({name!r}, num_classes={classes}).load_state_dict(state)",
        "torchvision": f"net = torchvision.models.{name}(num_classes={classes}); net.load_state_dict(state)"
        if classes
        else f"net = torchvision.models.{name}(); net.fc = torch.nn.Identity(); net.load_state_dict(state)",
    }
    safetensors.torch.save_file(state, file, metadata={"format": "pt", "ssl_vision": json.dumps(card)})
    checked: dict[str, object] = {"with": f"torchvision's {name}"}
    if differs:
        checked |= {"differs": differs, "relative_difference": _relative(model, run)}
    else:
        checked["largest_difference"] = model.program.compare(run, f"torchvision's {name}")
    return card | {"checked": checked}


def _counterpart(model: Exportable) -> tuple[str, str]:
    """The name of torchvision's network with the same weights, and how it differs, if it does."""
    options = model.options
    name = options.name.removeprefix("torchvision:")
    reason = _reason(options, name)
    if model.from_layer:
        reason = f"the classifier stands on layer {model.from_layer} of a projection head"
    if reason:
        raise UserError(
            f"{model.source}: torchvision and timm have no such network: {reason}. "
            ".onnx and .pt2 take every network; the model folder's model.safetensors holds the weights under our names"
        )
    same = options.variant == "torchvision" or options.name.startswith("torchvision:")
    return name, "" if same else (
        "pads its max pool as PyTorch does, not as TensorFlow (no difference on images of 4n + 1 px, such as 225)"
    )


def _reason(options: EncoderOptions, name: str) -> str:
    """Why torchvision has no network with these weights, or nothing."""
    depth = name.removeprefix("resnet")
    if not depth.isdigit() or int(depth) not in _DEPTHS:
        return f"{options.name} is not one of ResNet-{', '.join(map(str, _DEPTHS))}"
    if options.name.startswith("torchvision:"):
        return ""
    reasons = {
        f"its width is {options.width:g}": options.width != 1,
        "it has selective kernels or ResNet-D": options.sk_ratio > 0,
        f"it has the stem {options.stem!r}": options.stem != "imagenet",
        "group 1 of the official ResNet-18 and -34 has a projection": options.variant == "simclr" and int(depth) < 50,
    }
    return "; ".join(reason for reason, holds in reasons.items() if holds)


def _state(model: Exportable) -> dict[str, Tensor]:
    encoder = model.module.get_submodule("encoder") if model.classes is not None else model.module
    if model.options.normalize != "none":
        encoder = encoder.get_submodule("net")
    if model.options.name.startswith("torchvision:"):
        encoder = encoder.get_submodule("module")
    state = {name: tensor.contiguous() for name, tensor in encoder.state_dict().items()}
    if model.classes is not None:
        state |= {f"fc.{name}": tensor for name, tensor in model.module.get_submodule("fc").state_dict().items()}
    return state


@torch.no_grad()
def _relative(model: Exportable, theirs: Callable[[Tensor], Tensor]) -> float:
    images = model.images(8)
    ours = model.module(images)
    return float((theirs(images) - ours).norm() / ours.norm())
