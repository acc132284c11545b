"""Encoders by name: the official ResNets, torchvision's classifiers, the user's own modules; input normalisation."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from contrastive_core.errors import UserError
from ssl_vision.models.resnet import LAYOUTS, Stem, Variant, resnet

Normalization = Literal["none", "imagenet", "cifar10", "cifar100"]

STATISTICS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}
"""Mean and standard deviation of red, green and blue, as they are passed on from code to code."""


class Normalized(nn.Module):
    """``net((images - mean) / std)``: for weights that were trained on normalised images.

    Args:
        net: maps ``[N, 3, H, W]`` to ``[N, net.feature_dim]``.
        statistics: whose mean and standard deviation; see `STATISTICS`.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, statistics: Normalization) -> None:
        super().__init__()
        self.net = net
        self.feature_dim = net.feature_dim
        for name, values in zip(("mean", "std"), STATISTICS[statistics], strict=True):
            # Not in the state dict: the options say which they are.
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.net((images - self.mean) / self.std)
        return features


@dataclass(frozen=True)
class EncoderOptions:
    """Which network turns images into features.

    Attributes:
        name: ``resnet18`` ... ``resnet200`` (the official encoders), ``torchvision:NAME`` (randomly initialised, its
            classifier removed) or ``package.module:function``, a function without arguments that returns a module
            mapping ``[N, 3, H, W]`` images in [0, 1] to ``[N, D]`` features.
        width: channel multiplier of the official encoders.
        stem: ``imagenet``, ``cifar`` (3x3, no pooling: images up to 32 px), ``cifar-pad2`` (solo-learn's) or
            ``cifar-no-relu`` (lightly's).
        sk_ratio: 0.0625 gives SimCLRv2's selective kernels and ResNet-D.
        variant: ``simclr``, or ``torchvision`` for the official encoders' shape in torchvision (no projection in group
            1 of ResNet-18 and -34, its padding of the pool, its initialisation).
        normalize: what the encoder subtracts from and divides images in [0, 1] by: ``none``, or the statistics of
            ``imagenet``, ``cifar10``, ``cifar100``.
    """

    name: str = "resnet18"
    width: float = 1.0
    stem: Stem = "cifar"
    sk_ratio: float = 0.0
    variant: Variant = "simclr"
    normalize: Normalization = "none"


class _Features(nn.Module):
    """Any module, with the size of its features found by one forward pass."""

    def __init__(self, module: nn.Module, name: str, image_size: int) -> None:
        super().__init__()
        self.module = module
        was_training = module.training
        with torch.no_grad():
            features = module.eval()(torch.zeros(2, 3, image_size, image_size))
        module.train(was_training)
        if not isinstance(features, Tensor) or features.ndim != 2:
            found = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise UserError(
                f"encoder {name!r} returned {found} for two images of {image_size} px; "
                "expected a tensor [2, features]. Wrap it in a module that pools and flattens."
            )
        self.feature_dim = features.shape[1]

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.module(images)
        return features


def build_encoder(options: EncoderOptions, *, image_size: int = 32) -> nn.Module:
    """Build the encoder; it maps ``[N, 3, H, W]`` images in [0, 1] to ``[N, encoder.feature_dim]``.

    Raises:
        UserError: no encoder of that name, a setting out of its range, or no vector per image.
    """
    net = _build(options, image_size)
    return net if options.normalize == "none" else Normalized(net, options.normalize)


def _build(options: EncoderOptions, image_size: int) -> nn.Module:
    name = options.name
    if name.startswith("torchvision:"):
        return _Features(_torchvision(name.removeprefix("torchvision:")), name, image_size)
    if ":" in name:
        return _Features(_own(name), name, image_size)
    depth = name.removeprefix("resnet")
    if not depth.isdigit() or int(depth) not in LAYOUTS:
        known = ", ".join(f"resnet{depth}" for depth in LAYOUTS)
        raise UserError(f"no encoder named {name!r}; use {known}, torchvision:NAME or package.module:function")
    try:
        return resnet(
            int(depth), width=options.width, stem=options.stem, sk_ratio=options.sk_ratio, variant=options.variant
        )
    except ValueError as error:
        raise UserError(f"encoder: {error}") from error


def _torchvision(name: str) -> nn.Module:
    from torchvision.models import get_model, list_models  # noqa: PLC0415 - half a second, and only some need it

    if name not in list_models():
        raise UserError(f"torchvision has no model named {name!r}; torchvision.models.list_models() lists them")
    model: nn.Module = get_model(name, weights=None)
    # torchvision calls its classifier fc, classifier, head or heads; an Identity there leaves the features.
    for classifier in ("fc", "classifier", "head", "heads"):
        if hasattr(model, classifier):
            setattr(model, classifier, nn.Identity())
            return model
    raise UserError(f"torchvision's {name} has no classifier to remove; wrap it in a module of your own")


def _own(name: str) -> nn.Module:
    module_name, _, function = name.partition(":")
    try:
        module = getattr(importlib.import_module(module_name), function)()
    except (ImportError, AttributeError) as error:
        raise UserError(f"encoder {name!r}: {error}. Expected package.module:function that can be imported") from error
    if not isinstance(module, nn.Module):
        raise UserError(f"encoder {name!r} returned {type(module).__name__}, expected a torch.nn.Module")
    return module
