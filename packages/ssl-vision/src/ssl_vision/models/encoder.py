"""Encoders by name: the official ResNets, networks of torchvision and timm, custom modules; and input normalisation."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from contrastive_core.errors import UserError
from contrastive_core.training.model_code import import_function
from ssl_vision.models.resnet import LAYOUTS, Stem, Variant, resnet

Normalization = Literal["none", "imagenet", "cifar10", "cifar100", "data"]

STATISTICS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}
"""Mean and standard deviation of red, green and blue, as commonly used."""


class Normalized(nn.Module):
    """``net((images - mean) / std)``, for weights that were trained on normalised images.

    Args:
        net: Maps ``[N, C, H, W]`` to ``[N, net.feature_dim]``.
        mean: Mean of every channel.
        std: Standard deviation of every channel.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.net = net
        self.feature_dim = net.feature_dim
        for name, values in (("mean", mean), ("std", std)):
            # Not in the state dict: the options hold them.
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.net((images - self.mean) / self.std)
        return features


@dataclass(frozen=True)
class EncoderOptions:
    """Network that maps images to features.

    Attributes:
        name: Network: ``resnet18`` ... ``resnet200`` (the official encoders), ``torchvision:NAME`` or ``timm:NAME``
            (without their classifier; timm is an extra), or ``package.module:function`` for a function without
            arguments that returns a module mapping ``[N, 3, H, W]`` images in [0, 1] to ``[N, D]`` features.
        weights: File of weights for the network, ``.safetensors`` or written by `torch.save`; nothing is downloaded. By
            default weights are random.
        width_multiplier: Channel multiplier of the official encoders.
        stem: First layers: ``imagenet``, ``cifar`` (3x3, no pooling, for images up to 32 px), ``cifar-pad2`` (as in
            solo-learn) or ``cifar-no-relu`` (as in lightly).
        sk_ratio: Ratio of selective kernels; 0.0625 gives those of SimCLRv2, and ResNet-D.
        variant: Variant of the official encoders: ``simclr``, or ``torchvision`` (no projection in group 1 of ResNet-18
            and -34, torchvision's padding of the pooling and initialisation).
        normalize: Statistics that normalise images in [0, 1]: ``none``, ``imagenet``, ``cifar10``, ``cifar100``, or
            ``data`` for those of the pre-training images, measured before training. ``data`` is always used if the
            number of channels is not 3.
        image_channels: Number of channels of the images, which the first convolution is built for.
        mean: Mean of every channel; by default that of `normalize`.
        std: Standard deviation of every channel; by default that of `normalize`.
    """

    name: str = "resnet18"
    width_multiplier: float = 1.0
    stem: Stem = "cifar"
    sk_ratio: float = 0.0
    variant: Variant = "simclr"
    normalize: Normalization = "none"
    image_channels: int = 3
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    weights: Path | None = None

    def __post_init__(self) -> None:
        if self.image_channels < 1:
            raise UserError(f"encoder.image_channels is {self.image_channels}; expected at least 1")
        for name in ("mean", "std"):
            object.__setattr__(self, name, tuple(float(value) for value in getattr(self, name)))
            if getattr(self, name) and len(getattr(self, name)) != self.image_channels:
                raise UserError(
                    f"encoder.{name} has {len(getattr(self, name))} values; expected {self.image_channels}, one per "
                    "channel"
                )

    @property
    def needs_statistics(self) -> bool:
        """Whether mean and deviation of the images must still be measured."""
        return not self.mean and (self.normalize == "data" or (self.image_channels != 3 and self.normalize == "none"))


class _Features(nn.Module):
    """Wrapper of any module, which finds the number of features by one forward pass."""

    def __init__(self, module: nn.Module, name: str, image_size: int, channels: int) -> None:
        super().__init__()
        self.module = module
        was_training = module.training
        with torch.no_grad():
            features = module.eval()(torch.zeros(2, channels, image_size, image_size))
        module.train(was_training)
        if not isinstance(features, Tensor) or features.ndim != 2:
            kind = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise UserError(
                f"encoder {name!r} returned {kind} for two images of {image_size} px; "
                "expected a tensor [2, features]. Wrap it in a module that pools and flattens."
            )
        if features.dtype != torch.float32:  # the layers on top of it are float32
            raise UserError(
                f"encoder {name!r} returned features of {features.dtype} for float32 images; expected float32. Build "
                "it in float32 (run.precision selects mixed precision), or convert its output."
            )
        self.feature_dim = features.shape[1]

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.module(images)
        return features


def build_encoder(options: EncoderOptions, *, image_size: int = 32) -> nn.Module:
    """Build the encoder; it maps ``[N, 3, H, W]`` images in [0, 1] to ``[N, encoder.feature_dim]``.

    Raises:
        UserError: There is no encoder of that name, a setting is out of range, or it does not return vectors.
    """
    net = _build(options, image_size)
    if options.mean:
        return Normalized(net, options.mean, options.std)
    if options.normalize in ("none", "data"):
        return net
    if options.image_channels != 3:
        raise UserError(
            f"encoder.normalize is {options.normalize}, whose statistics are for 3 channels, but the images have "
            f"{options.image_channels}; expected data or none"
        )
    return Normalized(net, *STATISTICS[options.normalize])


def _build(options: EncoderOptions, image_size: int) -> nn.Module:
    name = options.name
    if name.startswith("torchvision:"):
        net = _torchvision(name.removeprefix("torchvision:"))
        return _Features(fit_first_convolution(net, options.image_channels), name, image_size, options.image_channels)
    if name.startswith("timm:"):
        net = _timm(name.removeprefix("timm:"), options.image_channels, image_size)
        return _Features(net, name, image_size, options.image_channels)
    if ":" in name:
        return _Features(_own(name), name, image_size, options.image_channels)
    depth = name.removeprefix("resnet")
    if not depth.isdigit() or int(depth) not in LAYOUTS:
        choices = ", ".join(f"resnet{depth}" for depth in LAYOUTS)
        raise UserError(
            f"no encoder named {name!r}; use {choices}, torchvision:NAME, timm:NAME or package.module:function"
        )
    try:
        return resnet(
            int(depth),
            width=options.width_multiplier,
            stem=options.stem,
            sk_ratio=options.sk_ratio,
            variant=options.variant,
            channels=options.image_channels,
        )
    except ValueError as error:
        raise UserError(f"encoder: {error}") from error


def _torchvision(name: str) -> nn.Module:
    from torchvision import models  # noqa: PLC0415 - takes half a second

    # Other modules than the one for classification have networks that download the weights of their backbone.
    if name not in models.list_models(module=models):
        raise UserError(
            f"torchvision has no classification model named {name!r}; "
            "torchvision.models.list_models(module=torchvision.models) lists them"
        )
    model: nn.Module = models.get_model(name, weights=None)
    # torchvision calls its classifier fc, classifier, head or heads; removing its linear layers leaves the features.
    for classifier in ("fc", "classifier", "head", "heads"):
        if hasattr(model, classifier):
            setattr(model, classifier, _before_linear(getattr(model, classifier)))
            return model
    raise UserError(f"torchvision's {name} has no classifier to remove; wrap it in a custom module")


def _before_linear(classifier: nn.Module) -> nn.Module:
    """Return the layers of a classifier before its first linear layer, such as ConvNeXt's norm and flattening."""
    layers: list[nn.Module] = []
    for layer in classifier if isinstance(classifier, nn.Sequential) else ():
        if isinstance(layer, nn.Linear):
            break
        if not isinstance(layer, nn.Dropout):
            layers.append(layer)
    return nn.Sequential(*layers) if layers else nn.Identity()


def _timm(name: str, channels: int, image_size: int) -> nn.Module:
    timm = _import_timm()
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"; did you mean {', '.join(close)}?" if close else "; timm.list_models() lists them"
        raise UserError(f"timm has no model named {name!r}{hint}")
    settings = {"pretrained": False, "num_classes": 0, "in_chans": channels}
    try:
        try:
            model: nn.Module = timm.create_model(name, img_size=image_size, **settings)
        except TypeError:  # convolutional networks accept any size
            model = timm.create_model(name, **settings)
    except (AssertionError, ValueError, RuntimeError) as error:
        raise UserError(f"timm's {name} cannot be built for images of {image_size} px: {error}") from error
    return model


def _import_timm() -> Any:
    try:
        import timm  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise UserError("encoders of timm need timm, which is not installed; pip install 'ssl-vision[timm]'") from error
    return timm


def timm_statistics(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and standard deviation that a model of timm was trained with."""
    config = _import_timm().get_pretrained_cfg(name)
    if config is None:
        return STATISTICS["imagenet"]
    return tuple(config.mean), tuple(config.std)


def default_image_size(options: EncoderOptions) -> int:
    """Return the side in pixels of the images that a network was designed for."""
    if options.name.startswith("timm:"):
        config = _import_timm().get_pretrained_cfg(options.name.removeprefix("timm:"))
        return 224 if config is None else int(config.input_size[-1])
    return 224 if ":" in options.name or options.stem == "imagenet" else 32


def core_network(encoder: nn.Module) -> nn.Module:
    """Return the network inside an encoder, without normalisation."""
    net = encoder.net if isinstance(encoder, Normalized) else encoder
    return net.module if isinstance(net, _Features) else net


def _own(name: str) -> nn.Module:
    make = import_function(name, setting="encoder.name")
    try:
        inspect.signature(make).bind()
    except TypeError as error:
        raise UserError(f"{name}() fails ({error}); expected a function that needs no arguments") from error
    module = make()
    if not isinstance(module, nn.Module):
        raise UserError(f"encoder {name!r} returned {type(module).__name__}, expected a torch.nn.Module")
    return module


_SHAPE = ("kernel_size", "stride", "padding", "dilation", "padding_mode")


def fit_first_convolution(module: nn.Module, channels: int) -> nn.Module:
    """Replace the first convolution of a network by one for a number of channels other than 3.

    Its weights repeat those for red, green and blue, scaled so that their sum over channels, and thus the scale of the
    outputs, stays the same, as in timm.
    """
    if channels == 3:
        return module
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Conv2d):
            if layer.in_channels != 3 or layer.groups != 1:
                break
            arguments = {name: getattr(layer, name) for name in _SHAPE}
            new = nn.Conv2d(channels, layer.out_channels, bias=layer.bias is not None, **arguments)
            repeats = -(-channels // 3)
            with torch.no_grad():
                new.weight.copy_(layer.weight.repeat(1, repeats, 1, 1)[:, :channels] * (3 / channels))
                if layer.bias is not None and new.bias is not None:
                    new.bias.copy_(layer.bias)
            parent, _, last = name.rpartition(".")
            setattr(module.get_submodule(parent), last, new)
            return module
    raise UserError(f"{type(module).__name__} does not begin with a convolution of 3 channels; use a custom module")
