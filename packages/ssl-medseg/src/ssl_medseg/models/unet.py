"""2-D U-Nets without a head: the paper's, and a plain one as nnU-Net builds it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BLOCKS = 5
"""Decoder blocks of the U-Net."""

_MOMENTUM = 0.01
_SLOPE = 0.01


class ConvBlock(nn.Sequential):
    """3x3 convolution with bias, batch norm, ReLU; zero padding keeps the size.

    Batch norm as in the released code: epsilon 1e-3, running averages with decay 0.99.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 3, padding=1),
            batch_norm(out_channels),
            nn.ReLU(inplace=True),
        )


class UpBlock(nn.Module):
    """Nearest-neighbour upsampling by 2 and a 2x2 convolution, batch norm, ReLU.

    Zeros are padded below and to the right only, where TensorFlow's "same" puts them for an even kernel.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 2)
        self.norm = batch_norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=2, mode="nearest")
        return F.relu(self.norm(self.conv(F.pad(x, (0, 1, 0, 1)))), inplace=True)


class UNet(nn.Module):
    """Encoder of six levels and decoder of five blocks; the output is the last decoder feature map.

    [N, in_channels, H, W] -> [N, width, H, W], H and W multiples of 32. Channels by level are width times
    1, 2, 4, 8, 8, 8; a decoder block upsamples, joins the encoder's map of the same size behind its own, and has two
    convolution blocks, the last one only one. Weights start normal with variance 2 / fan_in, each layer drawn anew (the
    released code seeds every layer alike, so that layers of equal shape start equal), biases at 0.

    With width 16 and four classes, network and heads have the paper's 2,096,304 parameters.

    Args:
        in_channels: 1 for a slice of one channel.
        width: channels at full resolution; 16 in the paper.

    Attributes:
        feature_channels: channels of the output.
        stride: what H and W must be multiples of.
        bottleneck_channels: channels of the deepest map, at 1/32 of the resolution.

    Reference: Chaitanya et al. 2023, Medical Image Analysis 87, 102792, as in the released code.
    """

    stride = 2**BLOCKS

    def __init__(self, in_channels: int = 1, width: int = 16) -> None:
        super().__init__()
        channels = [width * factor for factor in (1, 2, 4, 8, 8, 8)]
        self.feature_channels, self.bottleneck_channels = width, channels[-1]
        self.down = nn.ModuleList(
            nn.Sequential(ConvBlock(inside, outside), ConvBlock(outside, outside))
            for inside, outside in zip([in_channels, *channels], channels, strict=False)
        )
        skips = channels[-2::-1]
        self.up = nn.ModuleList(UpBlock(below, skip) for below, skip in zip(channels[:0:-1], skips, strict=True))
        self.join = nn.ModuleList(
            nn.Sequential(ConvBlock(2 * skip, skip), *([ConvBlock(skip, skip)] if number < BLOCKS - 1 else []))
            for number, skip in enumerate(skips)
        )
        he_init(self)

    def encode(self, x: Tensor) -> list[Tensor]:
        """The encoder's maps from full resolution to the bottleneck."""
        maps: list[Tensor] = []
        for level in self.down:
            x = level(F.max_pool2d(x, 2) if maps else x)
            maps.append(x)
        return maps

    def decode(self, maps: Sequence[Tensor], *, blocks: int = BLOCKS) -> Tensor:
        """The map after the first `blocks` decoder blocks; of all five by default, at full resolution.

        Block l is at 1 / 2^(5 - l) of the resolution; block 3, the parent paper's local loss, has 4 widths of channels.
        """
        x = maps[-1]
        for number in range(blocks):
            x = self.join[number](torch.cat([self.up[number](x), maps[-2 - number]], 1))
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))


class PlainUNet(nn.Module):
    """U-Net of five levels with instance norm and leaky ReLU; the output is the last decoder feature map.

    [N, in_channels, H, W] -> [N, width, H, W], H and W multiples of 16. Channels by level are width times 1, 2, 4, 8,
    8. Each level has two 3x3 convolutions; the first of every level but the top one has stride 2, and a transposed 2x2
    convolution leads back up. Slices do not influence each other: training and inference compute the same.

    Args:
        in_channels: 1 for a slice of one channel.
        width: channels at full resolution.

    Attributes:
        feature_channels: channels of the output.
        stride: what H and W must be multiples of.

    Reference: Isensee et al. 2021, "nnU-Net", Nature Methods 18, 203-211: its plain 2-D network, with fewer channels.
    """

    stride = 16

    def __init__(self, in_channels: int = 1, width: int = 16) -> None:
        super().__init__()
        channels = [width * factor for factor in (1, 2, 4, 8, 8)]
        self.feature_channels = width
        self.down = nn.ModuleList(
            nn.Sequential(
                _InstanceNormBlock(inside, outside, stride=2 if level else 1), _InstanceNormBlock(outside, outside)
            )
            for level, (inside, outside) in enumerate(zip([in_channels, *channels], channels, strict=False))
        )
        skips = channels[-2::-1]
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(below, skip, 2, stride=2) for below, skip in zip(channels[:0:-1], skips, strict=True)
        )
        self.join = nn.ModuleList(
            nn.Sequential(_InstanceNormBlock(2 * skip, skip), _InstanceNormBlock(skip, skip)) for skip in skips
        )
        for part in self.modules():
            if isinstance(part, (nn.Conv2d, nn.ConvTranspose2d)):
                nn.init.kaiming_normal_(part.weight, a=_SLOPE)
                if part.bias is not None:
                    nn.init.zeros_(part.bias)

    def forward(self, x: Tensor) -> Tensor:
        maps: list[Tensor] = []
        for level in self.down:
            x = level(x)
            maps.append(x)
        for up, join, skip in zip(self.up, self.join, maps[-2::-1], strict=True):
            x = join(torch.cat([up(x), skip], 1))
        return x


class _InstanceNormBlock(nn.Sequential):
    """3x3 convolution, instance norm with scale and shift, leaky ReLU."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1) -> None:
        # A group per channel is instance norm; group norm is the faster of the two on a CPU, and has no buffers.
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False),
            nn.GroupNorm(out_channels, out_channels),
            nn.LeakyReLU(_SLOPE, inplace=True),
        )


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """Batch norm with the released code's epsilon and decay of the running averages."""
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=_MOMENTUM)


def settle_statistics(network: nn.Module, *, steps: int) -> None:
    """Let the running averages of batch norm settle within a tenth of a run, however short it is.

    At the released code's decay of 0.99 they take some 300 steps to leave their start, so that a run of 100 steps would
    be scored and kept with averages that fit nothing. Runs of 1,000 steps and more keep 0.99.

    Args:
        network: its batch norms that have the released code's decay are changed; those of MONAI's networks are not.
        steps: of the run.
    """
    for part in network.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.momentum == _MOMENTUM:
            part.momentum = min(1.0, max(_MOMENTUM, 10 / steps))


def he_init(module: nn.Module) -> None:
    """Normal weights with variance 2 / fan_in for every convolution, biases 0."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_in", nonlinearity="relu")
            if part.bias is not None:
                nn.init.zeros_(part.bias)
