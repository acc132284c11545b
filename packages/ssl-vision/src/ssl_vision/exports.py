"""Export a model to ONNX, `torch.export` or torchvision's and timm's ResNets, and compare the file with the model."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import get_model

from contrastive_core.errors import UserError
from contrastive_core.training import load_model
from contrastive_core.training.export import Program
from contrastive_core.training.model_file import write_tensors
from ssl_vision.models import EncoderOptions
from ssl_vision.models.encoder import STATISTICS
from ssl_vision.models.model_folder import (
    CLASSIFIER_FORMAT,
    PIXELS,
    load_architecture,
    load_classifier,
    load_pretrained,
)


@dataclass(frozen=True)
class Exportable:
    """A model in inference mode on the CPU.

    Attributes:
        source: Folder that it was opened from.
        module: Module that maps images ``[N, 3, size, size]`` in [0, 1] to logits ``[N, C]`` or features ``[N, D]``.
        options: Options of its encoder.
        image_size: Side of the images in pixels.
        classes: Names of the classes in the order of the logits; None for an encoder, which outputs features.
        from_layer: Number of layers of a projection head between features and logits.
        bits: Significant bits of its 16-bit images, whose largest value is 1 in the input; 0: all 16.
    """

    source: str
    module: nn.Module
    options: EncoderOptions
    image_size: int
    classes: list[str] | None
    from_layer: int = 0
    bits: int = 0

    @property
    def output(self) -> str:
        """Output of the module: ``logits`` or ``features``."""
        return "features" if self.classes is None else "logits"

    def images(self, count: int) -> Tensor:
        """Return noise images for comparisons, the same for the same count."""
        generator = torch.Generator().manual_seed(count)
        return torch.rand(count, self.options.image_channels, self.image_size, self.image_size, generator=generator)

    @torch.no_grad()
    def card(self, file: Path, *, normalisation: object) -> dict[str, Any]:
        """Describe the input and output for other programs, in the file and beside it."""
        width = self.module(self.images(1)).shape[1]
        return {
            "format": "ssl-vision export 1",
            "file": file.name,
            "input": {
                "name": "images",
                "shape": ["batch", self.options.image_channels, self.image_size, self.image_size],
                "dtype": "float32",
                "channels": "RGB" if self.options.image_channels == 3 else "as stored",
                "range": [0.0, 1.0],
                "bits": self.bits,
                "normalisation": normalisation,
                "preparation": "central square of 0.875 of the shorter side, resized bicubically without antialiasing; "
                "images of at most 32 px whole (ssl_vision.augment.EvalTransform)",
            },
            "output": {"name": self.output, "shape": ["batch", width]},
            "classes": self.classes,
            "encoder": asdict(self.options),
            "model": self.source,
        }

    @property
    def program(self) -> Program:
        """Program for files that contain the computation."""
        return Program(
            self.module, self.source, self.options.name, "images", self.output, self.images, package="ssl_vision"
        )


def open_exportable(model: str) -> Exportable:
    """Open a run folder or a model folder, of an encoder or a classifier.

    Raises:
        UserError: There is no model, or a damaged one.
    """
    if model == PIXELS:
        raise UserError("pixels have no weights to export; give a run folder or a model folder")
    if load_model(model)[1].get("format") == CLASSIFIER_FORMAT:
        classifier, architecture = load_classifier(model, device="cpu"), load_architecture(model)
        return Exportable(
            model,
            _plain(classifier.model),
            architecture.encoder,
            classifier.image_size,
            classifier.classes,
            architecture.from_layer,
            classifier.bits,
        )
    pretrained = load_pretrained(model)
    return Exportable(
        model, _plain(pretrained.encoder.eval()), pretrained.options, pretrained.image_size, None, bits=pretrained.bits
    )


def _plain(module: nn.Module) -> nn.Module:
    return module.to(memory_format=torch.contiguous_format).requires_grad_(False)


_DEPTHS = (18, 34, 50, 101, 152)


def write_torchvision(model: Exportable, file: Path, *, approximate: bool = False) -> dict[str, Any]:
    """Write a safetensors file for torchvision's and timm's ResNet of the same depth, and compare it with the model.

    Args:
        model: Model to write.
        file: File to write.
        approximate: Whether to write networks for which torchvision pads the max pooling differently, so that features
            differ.

    Returns:
        The card, which is also in the file's metadata. It tells how to load the file and, if approximate, the size of
        the difference.

    Raises:
        UserError: torchvision has no such network, or one that differs although `approximate` is not set.
    """
    name, differs = _counterpart(model)
    if differs and not approximate:
        raise UserError(
            f"{model.source}: {name} of torchvision and timm has the same weights, but {differs}. "
            "--approximate writes them anyway (for example to train them further); .onnx and .pt2 are exact"
        )
    state = _state(model)
    classes = 0 if model.classes is None else len(model.classes)
    net = get_model(name, weights=None, num_classes=classes or 1)
    if not classes:
        net.fc = nn.Identity()
    net.load_state_dict(state)
    net.eval()
    mean, std = _statistics(model.options)

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
    # One entry alone: safetensors stores several in random order, and the file would not be reproducible.
    write_tensors(file, state, {"ssl_vision": json.dumps(card)})
    comparison: dict[str, object] = {"with": f"torchvision's {name}"}
    if differs:
        comparison |= {"differs": differs, "relative_difference": _relative(model, run)}
    else:
        comparison["largest_difference"] = model.program.compare(run, f"torchvision's {name}")
    return card | {"checked": comparison}


def _statistics(options: EncoderOptions) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and deviation by which the caller of torchvision's network must normalise images."""
    return (options.mean, options.std) if options.mean else STATISTICS[options.normalize]


def _counterpart(model: Exportable) -> tuple[str, str]:
    """Return the name of torchvision's network with the same weights, and its difference, if any."""
    options = model.options
    name = options.name.removeprefix("torchvision:")
    reason = _reason(options, name)
    if model.from_layer:
        reason = f"the classifier reads layer {model.from_layer} of a projection head"
    if reason:
        raise UserError(
            f"{model.source}: torchvision and timm have no such network: {reason}. "
            ".onnx and .pt2 support every network; the model folder's model.safetensors has the weights under our names"
        )
    same = options.variant == "torchvision" or options.name.startswith("torchvision:")
    return name, "" if same else (
        "it pads its max pooling as PyTorch, not as TensorFlow (no difference on images of 4n + 1 px, such as 225)"
    )


def _reason(options: EncoderOptions, name: str) -> str:
    """Return the reason why torchvision has no network with these weights, or nothing."""
    depth = name.removeprefix("resnet")
    if not depth.isdigit() or int(depth) not in _DEPTHS:
        return f"{options.name} is not one of ResNet-{', '.join(map(str, _DEPTHS))}"
    if options.name.startswith("torchvision:"):
        return ""
    reasons = {
        f"its width is {options.width_multiplier:g}": options.width_multiplier != 1,
        "it has selective kernels or ResNet-D": options.sk_ratio > 0,
        f"its images have {options.image_channels} channels": options.image_channels != 3,
        f"it has the stem {options.stem!r}": options.stem != "imagenet",
        "group 1 of the official ResNet-18 and -34 has a projection": options.variant == "simclr" and int(depth) < 50,
    }
    return "; ".join(reason for reason, holds in reasons.items() if holds)


def _state(model: Exportable) -> dict[str, Tensor]:
    encoder = model.module.get_submodule("encoder") if model.classes is not None else model.module
    if model.options.normalize != "none" or model.options.mean:
        encoder = encoder.get_submodule("net")
    if model.options.name.startswith("torchvision:"):
        encoder = encoder.get_submodule("module")
    state = {name: tensor.contiguous() for name, tensor in encoder.state_dict().items()}
    if model.classes is not None:
        state |= {f"fc.{name}": tensor for name, tensor in model.module.get_submodule("fc").state_dict().items()}
    return state


@torch.no_grad()
def _relative(model: Exportable, counterpart: Callable[[Tensor], Tensor]) -> float:
    images = model.images(8)
    expected = model.module(images)
    return float((counterpart(images) - expected).norm() / expected.norm())
