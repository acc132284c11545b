"""Segmentation networks and their class probabilities.

A network consists of a trunk (the paper's U-Net, a plain U-Net as in nnU-Net, or a MONAI network) and heads that use
the features of the trunk: the segmentation head and, in training, the head of the contrastive loss.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from contrastive_core.errors import UserError
from ssl_medseg.models.monai import MonaiTrunk

OWN = ("unet", "plain-unet")
"""Names of the networks that this package implements."""


@dataclass(frozen=True)
class NetworkOptions:
    """Options of the segmentation network, which maps slices to class scores.

    Attributes:
        name: ``plain-unet``, five levels with instance norm and leaky ReLU as in nnU-Net; ``unet``, the paper's, six
            levels with batch norm; ``monai:NAME``, a network of ``monai.networks.nets`` such as ``monai:DynUNet``; or
            ``auto``, set by the recipe; `pretrain` trains ``unet``.
        width: Channels at full resolution; deeper levels have multiples of it. Half the width takes about a third of
            the time on a CPU. 0 leaves the choice to recipe and effort.
        arguments: Further arguments of MONAI's network, by name; BasicUNet, DynUNet, FlexibleUNet and UNet need none.
    """

    name: str = "auto"
    width: int = 0
    arguments: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.width, bool) or not isinstance(self.width, int) or self.width < 0:
            raise UserError(
                f"network.width is {self.width!r}; expected a whole number of at least 1, or 0 to let the recipe choose"
            )
        if self.name not in (*OWN, "auto") and not self.name.startswith("monai:"):
            raise UserError(
                f"there is no network named {self.name!r}; use plain-unet, unet, or monai:NAME such as monai:DynUNet"
            )
        if self.arguments and not self.name.startswith("monai:"):
            raise UserError(
                f"network.arguments ({', '.join(self.arguments)}) are for monai:NAME; {self.name} accepts only a width"
            )


BLOCKS = 5
"""Number of decoder blocks of the U-Net."""

ChannelDrop = Callable[[list[Tensor]], list[Tensor]]
"""What happens to an encoder's maps [N, C, H, W], from full resolution down, before the decoder reads them."""

Norm = Literal["joint", "trunk", "apart"]
"""Which images share batch statistics with the contrastive ones."""

_MOMENTUM = 0.01
_SLOPE = 0.01


class ConvBlock(nn.Sequential):
    """3x3 convolution with bias, batch norm and ReLU; zero padding preserves the size.

    Batch norm is that of the released code: epsilon 1e-3, running averages with decay 0.99.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 3, padding=1),
            batch_norm(out_channels),
            nn.ReLU(inplace=True),
        )


class UpBlock(nn.Module):
    """Nearest-neighbour upsampling by 2, followed by a 2x2 convolution, batch norm and ReLU.

    Zeros are padded at the bottom and at the right only, as in TensorFlow's "same" padding for an even kernel.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 2)
        self.norm = batch_norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=2, mode="nearest")
        return F.relu(self.norm(self.conv(F.pad(x, (0, 1, 0, 1)))), inplace=True)


class UNet(nn.Module):
    """U-Net of the paper, with an encoder of six levels and a decoder of five blocks.

    The levels have 1, 2, 4, 8, 8 and 8 times `width` channels. A decoder block upsamples, appends the feature map of
    the encoder of the same size, and applies two convolution blocks (the last decoder block applies one). The output is
    the last feature map of the decoder. Initial weights are normal with variance 2 / fan_in, and biases are 0; each
    layer is drawn independently, whereas the released code gives layers of the same shape the same initial weights.

    With width 16 and four classes, network and heads have 2,096,304 parameters, as in the released code.

    Input: ``[N, in_channels, H, W]``. Output: ``[N, width, H, W]``. H and W must be multiples of 32.

    Args:
        in_channels: Number of channels of a slice.
        width: Number of channels at full resolution; 16 in the paper.

    Attributes:
        feature_channels: Number of output channels.
        stride: Required divisor of H and W.
        bottleneck_channels: Number of channels of the deepest feature map, at 1/32 of the resolution.

    References:
        Chaitanya et al., Medical Image Analysis 87 (2023), 102792, and its released code.
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
        """Return the feature maps of the encoder, from full resolution to the bottleneck."""
        maps: list[Tensor] = []
        for level in self.down:
            x = level(F.max_pool2d(x, 2) if maps else x)
            maps.append(x)
        return maps

    def decode(self, maps: Sequence[Tensor], *, blocks: int = BLOCKS) -> Tensor:
        """Return the feature map after the first decoder blocks.

        Args:
            maps: Feature maps of the encoder, from `encode`.
            blocks: Number of decoder blocks, 1 to 5. Block l has 1 / 2^(5 - l) of the resolution. The local loss of
                pre-training uses 3, with 4 times `width` channels.
        """
        x = maps[-1]
        for number in range(blocks):
            x = self.join[number](torch.cat([self.up[number](x), maps[-2 - number]], 1))
        return x

    def forward(self, x: Tensor, drop: ChannelDrop | None = None) -> Tensor:
        maps = self.encode(x)
        return self.decode(maps if drop is None else drop(maps))


class PlainUNet(nn.Module):
    """U-Net of five levels with instance norm and leaky ReLU, the plain 2-D network of nnU-Net with fewer channels.

    The levels have 1, 2, 4, 8 and 8 times `width` channels and two 3x3 convolutions each. The first convolution of
    every level below the top has stride 2, and the decoder upsamples with transposed 2x2 convolutions. The output is
    the last feature map of the decoder. Slices of a batch do not influence each other, so training and inference
    compute the same function.

    Input: ``[N, in_channels, H, W]``. Output: ``[N, width, H, W]``. H and W must be multiples of 16.

    Args:
        in_channels: Number of channels of a slice.
        width: Number of channels at full resolution.

    Attributes:
        feature_channels: Number of output channels.
        stride: Required divisor of H and W.

    References:
        Isensee et al., "nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation",
        Nature Methods 18 (2021), 203-211.
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

    def forward(self, x: Tensor, drop: ChannelDrop | None = None) -> Tensor:
        # Batches are channels last. With several channels, convolutions would keep this format, in which group norm in
        # bfloat16 takes several times as long.
        x = x.contiguous()
        maps: list[Tensor] = []
        for level in self.down:
            x = level(x)
            maps.append(x)
        maps = maps if drop is None else drop(maps)
        x = maps[-1]
        for up, join, skip in zip(self.up, self.join, maps[-2::-1], strict=True):
            x = join(torch.cat([up(x), skip], 1))
        return x


class _InstanceNormBlock(nn.Sequential):
    """3x3 convolution, instance norm with scale and shift, leaky ReLU."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1) -> None:
        # Group norm with one group per channel is instance norm; it is faster on a CPU and has no buffers.
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False),
            nn.GroupNorm(out_channels, out_channels),
            nn.LeakyReLU(_SLOPE, inplace=True),
        )


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """Create a batch norm with the epsilon and the decay of running averages of the released code."""
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=_MOMENTUM)


def settle_statistics(network: nn.Module, *, steps: int) -> None:
    """Adapt the decay of the running averages of batch norm to the length of a run.

    With the decay of the released code, 0.99, the averages take about 300 steps to converge, so a run of 100 steps
    would be evaluated with wrong statistics. In runs of fewer than 1,000 steps, the decay is reduced so that the
    averages converge within a tenth of the run.

    Args:
        network: Network whose batch norms with the decay of the released code are changed; those of MONAI's networks
            are not.
        steps: Number of training steps.
    """
    for part in network.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.momentum == _MOMENTUM:
            part.momentum = min(1.0, max(_MOMENTUM, 10 / steps))


def he_init(module: nn.Module) -> None:
    """Initialise convolutions with normal weights of variance 2 / fan_in and zero biases."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_in", nonlinearity="relu")
            if part.bias is not None:
                nn.init.zeros_(part.bias)


class SegmentationHead(nn.Module):
    """Segmentation head of the paper (g_xi): two convolution blocks and a 3x3 convolution without bias.

    Input: features ``[N, F, H, W]``. Output: logits ``[N, C, H, W]``.
    """

    def __init__(self, feature_channels: int, classes: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            ConvBlock(feature_channels, feature_channels), ConvBlock(feature_channels, feature_channels)
        )
        self.classify = nn.Conv2d(feature_channels, classes, 3, padding=1, bias=False)
        he_init(self)

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.classify(self.blocks(features))
        return logits


class PlainHead(nn.Sequential):
    """Segmentation head of nnU-Net: a 1x1 convolution with bias.

    Input: features ``[N, F, H, W]``. Output: logits ``[N, C, H, W]``.
    """

    def __init__(self, feature_channels: int, classes: int) -> None:
        super().__init__(nn.Conv2d(feature_channels, classes, 1))
        he_init(self)


class ContrastHead(nn.Sequential):
    """Head of the contrastive loss (h_phi in the paper), which is used in training only.

    It consists of a 1x1 convolution, batch norm, ReLU and a second 1x1 convolution, without biases.

    Input: features ``[N, F, H, W]``. Output: embeddings ``[N, E, H, W]``, not normalised.

    Args:
        feature_channels: Number of feature channels, F.
        embedding: Dimension of the embeddings, E; 16 in the paper.
    """

    def __init__(self, feature_channels: int, embedding: int = 16) -> None:
        super().__init__(
            nn.Conv2d(feature_channels, embedding, 1, bias=False),
            batch_norm(embedding),
            nn.ReLU(inplace=True),
            nn.Conv2d(embedding, embedding, 1, bias=False),
        )
        he_init(self)


class SegmentationNetwork(nn.Module):
    """Segmentation network: a trunk and a segmentation head, for slices of any size.

    If H or W is not a multiple of the stride of the trunk, slices are padded with zeros at the bottom and the right,
    and the features are cropped again.

    Input: slices ``[N, in_channels, H, W]``. Output: logits ``[N, C, H, W]``.

    Args:
        trunk: Module that returns the feature map of the decoder, with the attributes `feature_channels` and `stride`.
        classes: Number of classes C, including the background.

    Attributes:
        feature_channels: Number of channels of the feature map, which both heads use.
    """

    def __init__(self, trunk: UNet | PlainUNet | MonaiTrunk, classes: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = (
            PlainHead(trunk.feature_channels, classes)
            if isinstance(trunk, PlainUNet)
            else SegmentationHead(trunk.feature_channels, classes)
        )
        self.feature_channels = trunk.feature_channels

    def features(self, x: Tensor, drop: ChannelDrop | None = None) -> Tensor:
        """Return the feature map of the decoder, ``[N, feature_channels, H, W]``.

        Args:
            x: Slices ``[N, in_channels, H, W]``.
            drop: Function that changes the feature maps of the encoder before the decoder uses them; not supported by
                MONAI's networks.
        """
        height, width = x.shape[-2:]
        below, right = -height % self.trunk.stride, -width % self.trunk.stride
        padded = F.pad(x, (0, right, 0, below)) if below or right else x
        features: Tensor = self.trunk(padded) if drop is None else self.trunk(padded, drop)
        return features[..., :height, :width] if below or right else features

    def segment(self, features: Tensor) -> Tensor:
        """Return the logits [N, C, H, W] of a feature map."""
        logits: Tensor = self.head(features)
        return logits

    def forward(self, x: Tensor) -> Tensor:
        return self.segment(self.features(x))


class JointNetwork(nn.Module):
    """A segmentation network with an additional head for the contrastive loss.

    Args:
        network: Trunk and segmentation head.
        embedding: Dimension of the embeddings; 0 for no contrastive head.
        norm: Images that batch norm sees together. ``joint``: all images of the step, as in the released code;
            ``trunk``: the same, except in the segmentation head, which sees the segmented images only; ``apart``: the
            contrastive images pass separately, and their statistics do not enter the running averages.
    """

    def __init__(self, network: SegmentationNetwork, *, embedding: int, norm: Norm = "joint") -> None:
        super().__init__()
        self.network = network
        self.contrast = ContrastHead(network.feature_channels, embedding) if embedding else None
        self.norm = norm

    def forward(
        self, images: Tensor, segmented: int, *, shared: bool = False, drop: ChannelDrop | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return logits [segmented, C, H, W] of the first images and embeddings [N - segmented, E, H, W] of the others.

        With `shared`, return logits and embeddings of all images, computed from the same features. `drop` modifies the
        feature maps of the encoder; no method combines it with separate images for the contrastive loss.
        """
        if shared and self.contrast is not None:
            features = self.network.features(images, drop)
            return self.network.segment(features), self.contrast(features)
        if self.contrast is None or segmented == len(images):
            return self.network.segment(self.network.features(images, drop))[:segmented], None
        if self.norm == "apart":
            logits = self.network(images[:segmented])
            with _unremembered(self.network):
                return logits, self.contrast(self.network.features(images[segmented:]))
        features = self.network.features(images)
        logits = self.network.segment(features if self.norm == "joint" else features[:segmented])[:segmented]
        return logits, self.contrast(features[segmented:])


@contextlib.contextmanager
def _unremembered(network: nn.Module) -> Iterator[None]:
    """Let batch norm use the statistics of its batch without updating the running averages."""
    norms = [part for part in network.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    momenta = [part.momentum for part in norms]
    for part in norms:
        part.momentum = 0.0
    try:
        yield
    finally:
        for part, momentum in zip(norms, momenta, strict=True):
            part.momentum = momentum


def build_network(options: NetworkOptions, classes: int, *, channels: int = 1) -> SegmentationNetwork:
    """Create a segmentation network with random weights from torch's global generator, in its fastest memory format.

    Args:
        options: Name, width and arguments of the trunk.
        classes: Number of classes, including the background.
        channels: Number of channels of a slice.

    Raises:
        UserError: There are fewer than two classes, or MONAI has no suitable network of this name.
    """
    if classes < 2:
        raise UserError(f"classes is {classes}; expected at least 2, for the background and one structure")
    if options.name == "auto" or options.width < 1:
        raise UserError(
            f"the network is {options.name} of width {options.width}; expected a name and a width of at least 1, which "
            "`ssl_medseg.training.recipe.choose` fills in"
        )
    if options.name == "unet":
        return _channels_last(SegmentationNetwork(UNet(channels, options.width), classes))
    if options.name == "plain-unet":
        # Not channels last, see its `forward`.
        return SegmentationNetwork(PlainUNet(channels, options.width), classes)
    return _channels_last(SegmentationNetwork(MonaiTrunk(options, channels), classes))


def _channels_last(network: SegmentationNetwork) -> SegmentationNetwork:
    return network.to(memory_format=torch.channels_last)


_MIRRORS: tuple[tuple[int, ...], ...] = ((), (-1,), (-2,), (-2, -1))


@dataclass(frozen=True)
class Refinement:
    """Test-time processing in addition to a single prediction per slice; training chooses it on the validation cases.

    Attributes:
        mirror: Whether to average the probabilities of a slice and its three mirror images.
        largest: Class numbers of the structures of which only the largest connected component of a volume is kept.
    """

    mirror: bool = False
    largest: tuple[int, ...] = ()


@torch.no_grad()
def slice_probabilities(
    network: nn.Module,
    slices: Tensor,
    *,
    batch_size: int = 16,
    autocast: AbstractContextManager[object] | None = None,
    mirror: bool = False,
) -> Tensor:
    """Compute the class probabilities of slices with the network in inference mode, which is restored afterwards.

    Args:
        network: Network that maps slices ``[N, channels, H, W]`` to logits ``[N, C, H, W]``.
        slices: Slices ``[S, channels, H, W]``, on any device.
        batch_size: Number of slices per forward pass.
        autocast: Context of automatic mixed precision; probabilities are float32 in any case.
        mirror: Whether to average over each slice and its mirror images.

    Returns:
        Probabilities, float32 ``[S, C, H, W]``, on the device of the network.
    """
    device = next(network.parameters()).device
    was_training = network.training
    network.eval()
    try:
        with autocast or nullcontext():
            parts = [
                probabilities(network, part.to(device).contiguous(memory_format=torch.channels_last), mirror=mirror)
                for part in torch.split(slices, batch_size)
            ]
    finally:
        network.train(was_training)
    return torch.cat(parts).contiguous()


def probabilities(network: nn.Module, slices: Tensor, *, mirror: bool = False) -> Tensor:
    """Compute class probabilities, float32 ``[N, C, H, W]``; with `mirror`, averaged over the four mirror images."""
    return mirrored_probabilities(network, slices).mean(0) if mirror else _softmax(network(slices))


def mirrored_probabilities(network: nn.Module, slices: Tensor) -> Tensor:
    """Compute the probabilities of slices and their three mirror images, mirrored back; float32 ``[4, N, C, H, W]``."""
    return torch.stack([_softmax(network(slices.flip(dims))).flip(dims) for dims in _MIRRORS])


def turned_probabilities(network: nn.Module, slices: Tensor) -> Tensor:
    """Compute the probabilities of slices in the four orientations of a quarter turn; float32 ``[4, N, C, H, W]``."""
    views = [_softmax(network(slices.rot90(quarters, (-2, -1)))) for quarters in range(4)]
    return torch.stack([view.rot90(-quarters, (-2, -1)) for quarters, view in enumerate(views)])


def _softmax(logits: Tensor) -> Tensor:
    return logits.float().softmax(1)
