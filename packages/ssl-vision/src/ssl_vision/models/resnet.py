"""The official SimCLR encoders: ResNet 18 to 200, any width, with the options of SimCLRv2."""

from __future__ import annotations

import math
from typing import Literal, get_args

from torch import Tensor, nn
from torch.nn import functional as F

from ssl_vision.models.blocks import BasicBlock, Bottleneck

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

    Module names are torchvision's (``conv1``, ``bn1``, ``layer1`` ... ``layer4``) wherever the parts are the same.
    """

    def __init__(self, depth: int, *, width: float, stem: Stem, sk_ratio: float, variant: Variant) -> None:
        super().__init__()
        block, repeats = LAYOUTS[depth]
        channels = [round(64 * width * 2**group) for group in range(4)]
        self.conv1, self.pool = _stem(stem, channels[0], sk_ratio)
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
                # In the official code group 1 projects too, where nothing asks for it in ResNet-18 and -34.
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
        """``[N, 3, H, W]`` in [0, 1] to features ``h [N, feature_dim]``, the global average pool."""
        x: Tensor = self.pool(self.relu(self.bn1(self.conv1(images))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return x.mean(dim=(2, 3))


def _stem(stem: Stem, channels: int, sk_ratio: float) -> tuple[nn.Module, nn.Module]:
    if stem != "imagenet":
        return nn.Conv2d(3, channels, 3, padding=2 if stem == "cifar-pad2" else 1, bias=False), nn.Identity()
    if sk_ratio > 0:
        half = channels // 2
        conv: nn.Module = nn.Sequential(
            nn.Conv2d(3, half, 3, 2, padding=1, bias=False),
            nn.BatchNorm2d(half),
            nn.ReLU(inplace=True),
            nn.Conv2d(half, half, 3, padding=1, bias=False),
            nn.BatchNorm2d(half),
            nn.ReLU(inplace=True),
            nn.Conv2d(half, channels, 3, padding=1, bias=False),
        )
    else:
        conv = nn.Conv2d(3, channels, 7, 2, padding=3, bias=False)
    return conv, SameMaxPool()


def _truncated_normal(conv: nn.Conv2d) -> None:
    """TensorFlow's VarianceScaling: fan-in, scale 1, cut at two deviations and corrected for the cut."""
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
) -> ResNet:
    """Build the encoder of SimCLR (section 2.1, Appendix B.9) or SimCLRv2.

    Args:
        depth: 18, 34 (basic blocks), 50, 101, 152 or 200 (bottlenecks).
        width: multiplies every channel count; features have ``512 width`` (18, 34) or ``2048 width`` dimensions.
        stem: ``"imagenet"``: 7x7 stride 2 and max pool. ``"cifar"``: 3x3 stride 1, no pool, for images up to 32 px.
            For weights that come from elsewhere: ``"cifar-pad2"`` is padded by 2, as in solo-learn;
            ``"cifar-no-relu"`` has no ReLU after its batch norm, as lightly's networks in a Sequential.
        sk_ratio: 0.0625 switches on selective kernels and ResNet-D as in SimCLRv2; basic blocks have no selective
            kernels and take ResNet-D alone.
        variant: ``"simclr"``: the official code's. ``"torchvision"``: torchvision's, whose weights it takes.

    Details of the official code that torchvision does not share: a projection shortcut in the first block of group 1
    too, truncated normal fan-in initialisation of scale 1, the last scale of every residual branch starts at 0,
    TensorFlow's padding of the max pool. The running variance is PyTorch's (unbiased; TensorFlow's is biased).

    Raises:
        ValueError: depth, width, stem, sk_ratio or variant outside the above.
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
    return ResNet(depth, width=width, stem=stem, sk_ratio=sk_ratio, variant=variant)
