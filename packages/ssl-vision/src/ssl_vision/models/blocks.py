"""Residual blocks of the official SimCLR encoders (post-activation, ResNet v1)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from ssl_vision.models.selective_kernel import SelectiveKernel


class ResNetDPool(nn.Module):
    """The 2x2 average pool before ResNet-D's 1x1 shortcut.

    With stride 1 the official code still pools, 'SAME', averaging only the pixels inside the picture; repeating the
    last row and column gives that average. With stride 2 it first appends one row and column of zeros.
    """

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(x, (0, 1, 0, 1), mode="replicate") if self.stride == 1 else F.pad(x, (0, 1, 0, 1))
        return F.avg_pool2d(padded, 2, self.stride)


def shortcut(in_channels: int, out_channels: int, stride: int, *, resnet_d: bool) -> nn.Sequential:
    """The projection shortcut: 1x1 convolution and batch norm, after an average pool in ResNet-D."""
    if resnet_d:
        conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        return nn.Sequential(ResNetDPool(stride), conv, nn.BatchNorm2d(out_channels))
    conv = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions (ResNet-18 and -34). ``channels`` in, ``channels`` out; it has no selective kernels."""

    expansion = 1

    def __init__(
        self, in_channels: int, channels: int, *, stride: int = 1, project: bool = False, sk_ratio: float = 0.0
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = shortcut(in_channels, channels, stride, resnet_d=sk_ratio > 0) if project else None

    @property
    def last_bn(self) -> nn.BatchNorm2d:
        """The batch norm whose scale starts at zero."""
        return self.bn2

    def forward(self, x: Tensor) -> Tensor:
        identity: Tensor = x if self.downsample is None else self.downsample(x)
        out: Tensor = self.bn1(self.conv1(x)).relu_()
        out = self.bn2(self.conv2(out))
        out += identity
        return out.relu_()


class Bottleneck(nn.Module):
    """1x1, 3x3 (carrying the stride), 1x1 (ResNet-50 and deeper). ``channels`` inside, ``4 * channels`` out.

    ``sk_ratio`` above 0 replaces the 3x3 by selective kernels and the shortcut by ResNet-D's.
    """

    expansion = 4

    def __init__(
        self, in_channels: int, channels: int, *, stride: int = 1, project: bool = False, sk_ratio: float = 0.0
    ) -> None:
        super().__init__()
        out_channels = channels * self.expansion
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2: nn.Module
        self.bn2: nn.Module
        if sk_ratio > 0:
            # Its output is a positive mixture of ReLUs, so that forward's ReLU changes nothing.
            self.conv2, self.bn2 = SelectiveKernel(channels, channels, stride=stride, ratio=sk_ratio), nn.Identity()
        else:
            self.conv2 = nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False)
            self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample = shortcut(in_channels, out_channels, stride, resnet_d=sk_ratio > 0) if project else None

    @property
    def last_bn(self) -> nn.BatchNorm2d:
        """The batch norm whose scale starts at zero."""
        return self.bn3

    def forward(self, x: Tensor) -> Tensor:
        identity: Tensor = x if self.downsample is None else self.downsample(x)
        out: Tensor = self.bn1(self.conv1(x)).relu_()
        out = self.bn2(self.conv2(out)).relu_()
        out = self.bn3(self.conv3(out))
        out += identity
        return out.relu_()
