"""The official SimCLR encoders: ResNet-18 to -200 of any width, with SimCLRv2's selective kernels and ResNet-D."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SelectiveKernel(nn.Module):
    """Two streams of 3x3 convolution, mixed per channel with attention over the streams.

    ``U1, U2 = split(relu(bn(conv3x3(x))))``, ``g = mean over space of (U1 + U2)``,
    ``a1, a2 = softmax over the streams of conv1x1(relu(bn(conv1x1(g))))``, output ``a1 U1 + a2 U2``.

    Shapes: ``[N, in_channels, H, W] -> [N, channels, ceil(H / stride), ceil(W / stride)]``.

    As in the official code both streams are plain 3x3 (SKNet's dilated second stream is not used) and the attention's
    hidden width is ``max(int(channels * ratio), 32)``. SimCLRv2, section "Selective kernel networks"; tf2/resnet.py.
    """

    def __init__(self, in_channels: int, channels: int, *, stride: int = 1, ratio: float = 0.0625) -> None:
        super().__init__()
        hidden = max(int(channels * ratio), 32)
        self.conv = nn.Conv2d(in_channels, 2 * channels, 3, stride, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(2 * channels)
        self.squeeze = nn.Conv2d(channels, hidden, 1, bias=False)
        self.squeeze_bn = nn.BatchNorm2d(hidden)
        self.attend = nn.Conv2d(hidden, 2 * channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        streams = self.bn(self.conv(x)).relu()
        first, second = streams.chunk(2, dim=1)
        squeezed = self.squeeze_bn(self.squeeze((first + second).mean(dim=(2, 3), keepdim=True))).relu()
        weight_first, weight_second = torch.stack(self.attend(squeezed).chunk(2, dim=1)).softmax(dim=0)
        mixed: Tensor = weight_first * first + weight_second * second
        return mixed


class ResNetDPool(nn.Module):
    """The 2x2 average pool before ResNet-D's 1x1 shortcut.

    With stride 1, the official code still pools ('SAME'), averaging only the pixels inside the picture; repeating the
    last row and column gives that average. With stride 2, it first appends one row and column of zeros.
    """

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(x, (0, 1, 0, 1), mode="replicate") if self.stride == 1 else F.pad(x, (0, 1, 0, 1))
        return F.avg_pool2d(padded, 2, self.stride)


_FEWEST_CHANNELS = 16


class _StridedPointwise(nn.Conv2d):
    """A 1x1 convolution with a stride that first selects every n-th pixel.

    oneDNN 3.12, used by torch 2.14, writes outside its memory in the gradient of the weights of a strided 1x1
    convolution with fewer than 16 input channels, stored channels-last, from about 50 pixels on: training crashes.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name in the parent class
        rows, columns = self.stride
        return F.conv2d(input[:, :, ::rows, ::columns], self.weight)


def shortcut(in_channels: int, out_channels: int, stride: int, *, resnet_d: bool) -> nn.Sequential:
    """Build the projection shortcut: 1x1 convolution and batch norm, after an average pool in ResNet-D."""
    if resnet_d:
        conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        return nn.Sequential(ResNetDPool(stride), conv, nn.BatchNorm2d(out_channels))
    kind = _StridedPointwise if stride > 1 and in_channels < _FEWEST_CHANNELS else nn.Conv2d
    conv = kind(in_channels, out_channels, 1, stride, bias=False)
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
            # Its output is a positive mixture of ReLUs, which the ReLU in forward does not change.
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


Stem = Literal["imagenet", "cifar", "cifar-pad2", "cifar-no-relu"]
Variant = Literal["simclr", "torchvision"]

LAYOUTS: dict[int, tuple[type[BasicBlock | Bottleneck], tuple[int, int, int, int]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
    200: (Bottleneck, (3, 24, 36, 3)),
}


class SameMaxPool(nn.Module):
    """3x3 max pool with stride 2 and TensorFlow's 'SAME' padding: for even sizes bottom and right only."""

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = (2 if size % 2 else 1 for size in x.shape[-2:])
        pad = (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)
        return F.max_pool2d(F.pad(x, pad, value=float("-inf")), 3, 2)


class ResNet(nn.Module):
    """ResNet v1 as in google-research/simclr (tf2/resnet.py); see :func:`resnet`.

    Module names are torchvision's (``conv1``, ``bn1``, ``layer1`` ... ``layer4``) if the parts are the same.
    """

    def __init__(
        self, depth: int, *, width: float, stem: Stem, sk_ratio: float, variant: Variant, image_channels: int = 3
    ) -> None:
        super().__init__()
        block, repeats = LAYOUTS[depth]
        channels = [round(64 * width * 2**group) for group in range(4)]
        self.conv1, self.pool = _stem(stem, channels[0], sk_ratio, image_channels)
        if variant == "torchvision" and stem == "imagenet":
            self.pool = nn.MaxPool2d(3, 2, padding=1)
        self.bn1 = nn.BatchNorm2d(channels[0])
        self.relu = nn.Identity() if stem == "cifar-no-relu" else nn.ReLU(inplace=True)
        in_channels = channels[0]
        groups = []
        for group, count in enumerate(repeats):
            blocks = []
            for index in range(count):
                stride = 2 if group > 0 and index == 0 else 1
                # In the official code group 1 projects too, although ResNet-18 and -34 do not need it there.
                changes = stride > 1 or in_channels != channels[group] * block.expansion
                project = index == 0 and (variant == "simclr" or changes)
                blocks.append(block(in_channels, channels[group], stride=stride, project=project, sk_ratio=sk_ratio))
                in_channels = channels[group] * block.expansion
            groups.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = groups
        self.feature_dim = in_channels
        self._initialise(variant)

    def _initialise(self, variant: Variant) -> None:
        for module in self.modules():
            if variant == "torchvision":
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.Conv2d):
                _truncated_normal(module)
            elif isinstance(module, (BasicBlock, Bottleneck)):
                nn.init.zeros_(module.last_bn.weight)

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``[N, 3, H, W]`` in [0, 1] to features ``h [N, feature_dim]``, the global average pool."""
        x: Tensor = self.pool(self.relu(self.bn1(self.conv1(images))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return x.mean(dim=(2, 3))


def _stem(stem: Stem, channels: int, sk_ratio: float, image_channels: int) -> tuple[nn.Module, nn.Module]:
    if stem != "imagenet":
        return nn.Conv2d(
            image_channels, channels, 3, padding=2 if stem == "cifar-pad2" else 1, bias=False
        ), nn.Identity()
    if sk_ratio > 0:
        half = channels // 2
        conv: nn.Module = nn.Sequential(
            nn.Conv2d(image_channels, half, 3, 2, padding=1, bias=False),
            nn.BatchNorm2d(half),
            nn.ReLU(inplace=True),
            nn.Conv2d(half, half, 3, padding=1, bias=False),
            nn.BatchNorm2d(half),
            nn.ReLU(inplace=True),
            nn.Conv2d(half, channels, 3, padding=1, bias=False),
        )
    else:
        conv = nn.Conv2d(image_channels, channels, 7, 2, padding=3, bias=False)
    return conv, SameMaxPool()


def _truncated_normal(conv: nn.Conv2d) -> None:
    """Initialise as TensorFlow's VarianceScaling: fan-in, scale 1, truncated at two deviations and corrected for it."""
    fan_in = conv.weight[0].numel()
    deviation = 1 / math.sqrt(fan_in) / 0.87962566103423978
    nn.init.trunc_normal_(conv.weight, std=deviation, a=-2 * deviation, b=2 * deviation)


def resnet(
    depth: int = 18,
    *,
    width: float = 1.0,
    stem: Stem = "imagenet",
    sk_ratio: float = 0.0,
    variant: Variant = "simclr",
    channels: int = 3,
) -> ResNet:
    """Build the encoder of SimCLR (section 2.1, Appendix B.9) or SimCLRv2.

    Args:
        depth: Depth: 18, 34 (basic blocks), 50, 101, 152 or 200 (bottlenecks).
        width: Multiplier of all channel counts; features have ``512 width`` (18, 34) or ``2048 width`` dimensions.
        stem: ``"imagenet"``: 7x7 with stride 2, and max pooling. ``"cifar"``: 3x3 with stride 1, no pooling, for images
            up to 32 px. For imported weights: ``"cifar-pad2"`` is padded by 2, as in solo-learn; ``"cifar-no-relu"``
            has no ReLU after its batch norm, as in lightly's networks in a Sequential.
        sk_ratio: 0.0625 enables selective kernels and ResNet-D as in SimCLRv2; basic blocks have no selective kernels
            and use only ResNet-D.
        variant: ``"simclr"``: as in the official code. ``"torchvision"``: as in torchvision, for its weights.
        channels: Number of channels of the images.

    Details of the official code that differ from torchvision: a projection shortcut in the first block of group 1 too,
    truncated normal fan-in initialisation of scale 1, the last scale of every residual branch starts at 0,
    TensorFlow's padding of the max pooling. The running variance is PyTorch's (unbiased; TensorFlow's is biased).

    Raises:
        ValueError: An argument is out of range.
    """
    if depth not in LAYOUTS:
        raise ValueError(f"depth must be one of {', '.join(map(str, LAYOUTS))}, got {depth}")
    if stem not in get_args(Stem):
        raise ValueError(f"stem must be one of {', '.join(get_args(Stem))}, got {stem!r}")
    if not width > 0 or round(64 * width) < 1:
        raise ValueError(f"width must leave at least one channel (width >= 1/64), got {width}")
    if not 0 <= sk_ratio <= 1:
        raise ValueError(f"sk_ratio must lie in [0, 1] (SimCLRv2 uses 0.0625), got {sk_ratio}")
    if variant not in get_args(Variant) or (variant == "torchvision" and sk_ratio > 0):
        raise ValueError(
            f"variant must be simclr, or torchvision without selective kernels; got {variant!r}, sk_ratio {sk_ratio}"
        )
    return ResNet(depth, width=width, stem=stem, sk_ratio=sk_ratio, variant=variant, image_channels=channels)
