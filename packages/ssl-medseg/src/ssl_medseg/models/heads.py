"""The two heads on the last decoder feature map: class scores, and embeddings for the contrastive loss."""

from __future__ import annotations

from torch import Tensor, nn

from ssl_medseg.models.unet import ConvBlock, batch_norm, he_init


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
