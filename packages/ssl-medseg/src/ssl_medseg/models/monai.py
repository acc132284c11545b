"""Use MONAI's networks as trunks."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from contrastive_core.errors import UserError
from contrastive_core.training.model_code import check_model_code

if TYPE_CHECKING:
    from ssl_medseg.models.network import NetworkOptions

# Arguments of networks without suitable defaults, for `width` channels at full resolution.
_MONAI_DEFAULTS: dict[str, Callable[[int], dict[str, Any]]] = {
    "UNet": lambda w: {"channels": [w, 2 * w, 4 * w, 8 * w, 8 * w], "strides": [2] * 4, "num_res_units": 2},
    "BasicUNet": lambda w: {"features": [w, w, 2 * w, 4 * w, 8 * w, w]},
    "DynUNet": lambda w: {
        "kernel_size": [3] * 6,
        "strides": [1] + [2] * 5,
        "upsample_kernel_size": [2] * 5,
        "filters": [w, 2 * w, 4 * w, 8 * w, 8 * w, 8 * w],
    },
    "FlexibleUNet": lambda w: {"backbone": "resnet18", "decoder_channels": [16 * w, 8 * w, 4 * w, 2 * w, w]},
}


# Arguments with which networks of MONAI download weights or load them from a file.
_FETCHING = re.compile(r"pretrained|url|repo|filename|weights?$|^path")


def opened_options(options: NetworkOptions, *, model: object) -> NetworkOptions:
    """Return the options of a model folder, with which building the network neither downloads nor opens a file.

    The weights are those of the folder, so that ``pretrained`` is not needed.

    Args:
        options: Options according to model.json.
        model: Model folder, for the error message.

    Raises:
        UserError: An argument names other weights, and the call is not inside `trust_model_code`.
    """
    arguments = {name: value for name, value in options.arguments.items() if name != "pretrained"}
    for name, value in arguments.items():
        if value and _FETCHING.search(name):
            network = options.name.removeprefix("monai:")
            check_model_code(f"monai.networks.nets.{network}({name}={value!r:.200})", model=model)
    return replace(options, arguments=arguments)


class MonaiTrunk(nn.Module):
    """Trunk made of a MONAI segmentation network that outputs `width` feature maps instead of class scores.

    MONAI's networks end in a linear layer with a configurable number of outputs. With `width` outputs, any of them
    returns a feature map at full resolution, which both heads can use.

    Input: ``[N, in_channels, H, W]``. Output: ``[N, width, H, W]``. H and W must be multiples of 32.

    Args:
        options: Name ``monai:NAME``, width, and further arguments of the MONAI class.
        in_channels: Number of channels of a slice.

    Attributes:
        feature_channels: Number of output channels.
        stride: Required divisor of H and W.

    Raises:
        UserError: MONAI has no network of this name, its arguments are invalid, or its output is not one feature map of
            the size of the input.
    """

    stride = 32

    def __init__(self, options: NetworkOptions, in_channels: int = 1) -> None:
        super().__init__()
        self.feature_channels = options.width
        self.net = _build_monai(options, in_channels)
        _check_feature_map(self.net, options, in_channels)

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.net(x)
        return features


def _build_monai(options: NetworkOptions, in_channels: int) -> nn.Module:
    from monai.networks import nets  # noqa: PLC0415 - takes seconds to import

    name = options.name.removeprefix("monai:")
    kind = getattr(nets, name, None)
    if not (inspect.isclass(kind) and issubclass(kind, nn.Module)):
        names = sorted(key for key, value in vars(nets).items() if inspect.isclass(value) and key in _MONAI_DEFAULTS)
        raise UserError(
            f"MONAI has no network named {name!r}; expected a class of monai.networks.nets, such as {', '.join(names)}"
        )
    parameters = inspect.signature(kind).parameters
    arguments = {"spatial_dims": 2} if "spatial_dims" in parameters else {}
    arguments |= {"in_channels": in_channels, "out_channels": options.width}
    arguments |= {"pretrained": False} if "pretrained" in parameters else {}  # some download weights by default
    arguments |= (_MONAI_DEFAULTS[name](options.width) if name in _MONAI_DEFAULTS else {}) | options.arguments
    try:
        network: nn.Module = kind(**arguments)
    except Exception as error:
        call = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        raise UserError(
            f"monai.networks.nets.{name}({call}) cannot be created: {error}. Set its arguments with network.arguments"
        ) from error
    return network


def _check_feature_map(network: nn.Module, options: NetworkOptions, in_channels: int) -> None:
    expected = (1, options.width, 96, 64)
    training = network.training
    try:
        with torch.no_grad():
            output = network.eval()(torch.zeros(1, in_channels, 96, 64))
        result = tuple(output.shape) if isinstance(output, Tensor) else f"a {type(output).__name__}"
    except Exception as error:  # noqa: BLE001 - networks raise errors of many classes
        result = f"an error ({error})"
    network.train(training)
    if result != expected:
        raise UserError(
            f"{options.name} returned {result} for a slice of 96 x 64 pixels; expected one feature map {expected}. "
            "Choose another network or other network.arguments, without deep supervision and for sizes that are "
            "multiples of 32"
        )
