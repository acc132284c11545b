"""Segmentation networks: a trunk, a segmentation head, and the head of the contrastive loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from contrastive_core.errors import UserError
from ssl_medseg.models.monai_trunk import MonaiTrunk
from ssl_medseg.models.options import NetworkOptions
from ssl_medseg.models.unet import ConvBlock, PlainUNet, UNet, batch_norm, he_init


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
    """Slices [N, 1, H, W] -> logits [N, C, H, W] of any size H x W.

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

    def features(self, x: Tensor) -> Tensor:
        """The decoder's feature map [N, feature_channels, H, W]."""
        height, width = x.shape[-2:]
        below, right = -height % self.trunk.stride, -width % self.trunk.stride
        features: Tensor = self.trunk(F.pad(x, (0, right, 0, below)) if below or right else x)
        return features[..., :height, :width] if below or right else features

    def segment(self, features: Tensor) -> Tensor:
        """Logits [N, C, H, W] of a feature map."""
        logits: Tensor = self.head(features)
        return logits

    def forward(self, x: Tensor) -> Tensor:
        return self.segment(self.features(x))


def build_network(options: NetworkOptions, classes: int) -> SegmentationNetwork:
    """The network, randomly initialised from torch's global generator, in the memory format it is fastest in.

    Args:
        options: which trunk, and how wide.
        classes: the background included.

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
        return _channels_last(SegmentationNetwork(UNet(width=options.width), classes))
    if options.name == "plain-unet":
        # Not channels last: the gradient of group norm is several times slower there.
        return SegmentationNetwork(PlainUNet(width=options.width), classes)
    return _channels_last(SegmentationNetwork(MonaiTrunk(options), classes))


def _channels_last(network: SegmentationNetwork) -> SegmentationNetwork:
    return network.to(memory_format=torch.channels_last)
