"""Segmentation networks, and the class probabilities that they give.

A network is a trunk (the paper's U-Net, a plain one as nnU-Net builds it, or one of MONAI's) and heads that read the
trunk's features: the segmentation head, and in training that of the contrastive loss.
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
            ``auto``, set by the recipe.
        width: Channels at full resolution; deeper levels have multiples of it. Half the width takes about a third of
            the time on a CPU. 0: set by recipe and effort.
        arguments: Further arguments of MONAI's network, by name; BasicUNet, DynUNet, FlexibleUNet and UNet need none.
    """

    name: str = "unet"
    width: int = 16
    arguments: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.width, bool) or not isinstance(self.width, int) or self.width < 0:
            raise UserError(
                f"network.width is {self.width!r}; expected a whole number of at least 1, or 0 to let the recipe choose"
            )
        if self.name not in (*OWN, "auto") and not self.name.startswith("monai:"):
            raise UserError(
                f"no network named {self.name!r}; use plain-unet, unet, or monai:NAME such as monai:DynUNet"
            )
        if self.name in OWN and self.arguments:
            raise UserError(
                f"network.arguments ({', '.join(self.arguments)}) are for monai:NAME; {self.name} takes width alone"
            )


AUTO = NetworkOptions(name="auto", width=0)
"""Options that leave the choice of the network to recipe and effort."""


BLOCKS = 5
"""Number of decoder blocks of the U-Net."""

ChannelDrop = Callable[[list[Tensor]], list[Tensor]]
"""What happens to an encoder's maps [N, C, H, W], from full resolution down, before the decoder reads them."""

Norm = Literal["joint", "trunk", "apart"]
"""Which images share batch statistics with the contrastive ones."""

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
        in_channels: of a slice: 1, or more for T2, ADC and the like together.
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
        """Return the feature maps of the encoder, from full resolution to the bottleneck."""
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

    def forward(self, x: Tensor, drop: ChannelDrop | None = None) -> Tensor:
        maps = self.encode(x)
        return self.decode(maps if drop is None else drop(maps))


class PlainUNet(nn.Module):
    """U-Net of five levels with instance norm and leaky ReLU; the output is the last decoder feature map.

    [N, in_channels, H, W] -> [N, width, H, W], H and W multiples of 16. Channels by level are width times 1, 2, 4, 8,
    8. Each level has two 3x3 convolutions; the first of every level but the top one has stride 2, and a transposed 2x2
    convolution leads back up. Slices do not influence each other: training and inference compute the same.

    Args:
        in_channels: of a slice: 1, or more for T2, ADC and the like together.
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

    def forward(self, x: Tensor, drop: ChannelDrop | None = None) -> Tensor:
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
        # A group per channel is instance norm; group norm is the faster of the two on a CPU, and has no buffers.
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False),
            nn.GroupNorm(out_channels, out_channels),
            nn.LeakyReLU(_SLOPE, inplace=True),
        )


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """Create a batch norm with the epsilon and the decay of running averages of the released code."""
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=_MOMENTUM)


def settle_statistics(network: nn.Module, *, steps: int) -> None:
    """Let the running averages of batch norm converge within a tenth of a run, even of a short one.

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
    """Initialise convolutions with normal weights of variance 2 / fan_in and zero biases."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_in", nonlinearity="relu")
            if part.bias is not None:
                nn.init.zeros_(part.bias)


class SegmentationHead(nn.Module):
    """Two convolution blocks as wide as the features, then a 3x3 convolution to the classes (the paper's g_xi).

    [N, F, H, W] -> logits [N, C, H, W]. The last convolution has no bias.
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
    """A 1x1 convolution with bias from the features to the classes, as in nnU-Net.

    [N, F, H, W] -> logits [N, C, H, W].
    """

    def __init__(self, feature_channels: int, classes: int) -> None:
        super().__init__(nn.Conv2d(feature_channels, classes, 1))
        he_init(self)


class ContrastHead(nn.Sequential):
    """1x1 convolution, batch norm, ReLU, 1x1 convolution, without biases (the paper's h_phi); dropped after training.

    [N, F, H, W] -> embeddings [N, E, H, W], not normalised.

    Args:
        feature_channels: F, of the decoder's map.
        embedding: E; 16 in the paper.
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
    """Slices [N, in_channels, H, W] -> logits [N, C, H, W] of any size H x W.

    Sizes that the trunk cannot halve often enough are padded with zeros below and to the right, and the features are
    cut back.

    Args:
        trunk: gives the decoder's feature map; has the attributes `feature_channels` and `stride`.
        classes: C, the background included.

    Attributes:
        feature_channels: channels of the decoder's feature map, which both heads read.
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
        """Return the decoder's feature map [N, feature_channels, H, W].

        `drop` changes the encoder's maps before the decoder reads them; MONAI's networks do not take it.
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
    """The network, randomly initialised from torch's global generator, in the memory format it is fastest in.

    Args:
        options: which trunk, and how wide.
        classes: the background included.
        channels: of a slice.

    Raises:
        UserError: fewer than two classes, no MONAI network of that name, or one that gives no feature map.
    """
    if classes < 2:
        raise UserError(f"found {classes} class(es); expected the background and at least one structure")
    if options.name == "auto" or options.width < 1:
        raise UserError(
            f"the network is {options.name} of width {options.width}; expected a name and a width of at least 1, which "
            "`ssl_medseg.training.recipe.choose` fills in"
        )
    if options.name == "unet":
        return _channels_last(SegmentationNetwork(UNet(channels, options.width), classes))
    if options.name == "plain-unet":
        # Not channels last: the gradient of group norm is several times slower there.
        return SegmentationNetwork(PlainUNet(channels, options.width), classes)
    return _channels_last(SegmentationNetwork(MonaiTrunk(options, channels), classes))


def _channels_last(network: SegmentationNetwork) -> SegmentationNetwork:
    return network.to(memory_format=torch.channels_last)


_MIRRORS: tuple[tuple[int, ...], ...] = ((), (-1,), (-2,), (-2, -1))


@dataclass(frozen=True)
class Refinement:
    """What is done at test time beyond one prediction per slice; training chooses it on the validation cases.

    Attributes:
        mirror: average the probabilities of a slice and of its three mirror images.
        largest: classes, by number, of which only the largest connected part of a volume stays.
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
    """Class probabilities of slices, with the network in inference mode while it works.

    Args:
        network: slices [N, channels, H, W] -> logits [N, C, H, W].
        slices: [S, channels, H, W], on any device.
        batch_size: slices at once.
        autocast: mixed precision to compute in; probabilities are float32 all the same.
        mirror: average over the slice and its mirror images.

    Returns:
        Float32 [S, C, H, W] on the network's device.
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
    """Class probabilities of a batch, float32 [N, C, H, W]; with `mirror` the mean over four mirror images."""
    return mirrored_probabilities(network, slices).mean(0) if mirror else _softmax(network(slices))


def mirrored_probabilities(network: nn.Module, slices: Tensor) -> Tensor:
    """Class probabilities of a batch and of its three mirror images, mirrored back, float32 [4, N, C, H, W]."""
    return torch.stack([_softmax(network(slices.flip(dims))).flip(dims) for dims in _MIRRORS])


def _softmax(logits: Tensor) -> Tensor:
    return logits.float().softmax(1)
