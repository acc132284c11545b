"""The networks that a recipe can name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import nn

from contrastive_core.errors import UserError
from ssl_video.models.small import SmallSlow

NetworkName = Literal["slow_r50", "small_slow", "x3d_xs", "x3d_s", "r3d_18"]
NETWORKS: tuple[NetworkName, ...] = get_args(NetworkName)

_X3D = {"x3d_xs": (4, 160), "x3d_s": (13, 160)}


@dataclass(frozen=True)
class NetworkOptions:
    """A network by name.

    Attributes:
        name: ``slow_r50``: the Slow pathway of SlowFast with ResNet-50, as PyTorchVideo builds it, for clips of any
            length and size; ``small_slow``: the same idea in 10 layers, for CPUs; ``x3d_xs``, ``x3d_s``: PyTorchVideo's
            X3D; ``r3d_18``: torchvision's 3-D ResNet-18.
        width: channels after the stem of ``slow_r50`` (64 in the paper) and ``small_slow``; 0: 64 and 16.
        dropout: before the last layer.
    """

    name: NetworkName = "slow_r50"
    width: int = 0
    dropout: float = 0.5

    def __post_init__(self) -> None:
        if self.name not in NETWORKS:
            raise UserError(f"network.name is {self.name!r}; expected one of {', '.join(NETWORKS)}")
        if self.width < 0 or (self.width and self.name not in ("slow_r50", "small_slow")):
            raise UserError(
                f"network.width is {self.width} for {self.name}; expected 0, or channels for slow_r50 or small_slow"
            )
        if not 0 <= self.dropout < 1:
            raise UserError(f"network.dropout is {self.dropout}; expected at least 0 and less than 1")


def build_network(options: NetworkOptions, classes: int) -> nn.Module:
    """The network, randomly initialised: ``[N, 3, T, H, W]`` -> logits ``[N, classes]``, in both modes.

    The last layer starts at N(0, 0.01), and the last batch norm of every residual branch at 0, as in SlowFast.
    """
    if options.name == "slow_r50":
        return _slow_r50(options, classes)
    makers = {"small_slow": _small_slow, "r3d_18": _r3d_18}
    network = makers.get(options.name, _x3d)(options, classes)
    # A training step of these takes a sixth to a third less time on a CPU so; Slow R50's takes no less.
    return network.to(memory_format=torch.channels_last_3d)


def _small_slow(options: NetworkOptions, classes: int) -> nn.Module:
    return SmallSlow(classes, width=options.width or 16, dropout=options.dropout)


def _r3d_18(options: NetworkOptions, classes: int) -> nn.Module:
    from torchvision.models.video import r3d_18  # noqa: PLC0415 - heavy

    network: nn.Module = r3d_18(weights=None)
    network.fc = nn.Sequential(nn.Dropout(options.dropout), _last(network.fc.in_features, classes))  # type: ignore[union-attr, arg-type]
    return network


def _slow_r50(options: NetworkOptions, classes: int) -> nn.Module:
    from pytorchvideo.models.resnet import create_resnet  # noqa: PLC0415 - heavy

    network: nn.Module = create_resnet(
        model_depth=50,
        model_num_class=classes,
        dropout_rate=options.dropout,
        stem_dim_out=options.width or 64,
        stem_conv_kernel_size=(1, 7, 7),
        head_pool=_global_pool,  # PyTorchVideo's own ties the network to one size of clip
    )
    return network


def _x3d(options: NetworkOptions, classes: int) -> nn.Module:
    from pytorchvideo.models.x3d import create_x3d  # noqa: PLC0415 - heavy

    frames, side = _X3D[options.name]
    network: nn.Module = create_x3d(
        model_num_class=classes,
        dropout_rate=options.dropout,
        input_clip_length=frames,
        input_crop_size=side,
        head_activation=None,  # by default it gives probabilities in one mode and in the other
    )
    for part in network.modules():
        if isinstance(part, nn.Module) and type(part).__name__ == "ProjectedPool":
            part.pool = nn.AdaptiveAvgPool3d(1)
    return network


def _global_pool(**_: object) -> nn.Module:
    return nn.AdaptiveAvgPool3d(1)


def _last(features: int, classes: int) -> nn.Linear:
    layer = nn.Linear(features, classes)
    with torch.no_grad():
        layer.weight.normal_(0, 0.01)
        layer.bias.zero_()
    return layer
