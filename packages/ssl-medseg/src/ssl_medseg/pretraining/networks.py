"""What the parent method trains: the encoder under a global head, then decoder blocks under a local one."""

from __future__ import annotations

from torch import Tensor, nn

from contrastive_core.errors import UserError
from ssl_medseg.models import UNet
from ssl_medseg.models.unet import BLOCKS, batch_norm, he_init


class GlobalNetwork(nn.Module):
    """The encoder and the head g1: the flattened bottleneck, a dense layer of 1024 with ReLU, one of 128, no biases.

    [N, 1, H, W] -> [N, 128]. H and W are those of `size`.

    Args:
        trunk: the U-Net; its decoder is not used.
        size: height and width of the slices, multiples of 32.
        hidden: of the first layer; 1024 in the paper.
        embedding: of the second; 128 in the paper.
    """

    def __init__(self, trunk: UNet, size: tuple[int, int], *, hidden: int = 1024, embedding: int = 128) -> None:
        super().__init__()
        self.trunk = trunk
        deepest = trunk.bottleneck_channels * (size[0] // trunk.stride) * (size[1] // trunk.stride)
        self.head = nn.Sequential(
            nn.Flatten(),
            nn.Linear(deepest, hidden, bias=False),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, embedding, bias=False),
        )
        # What is not trained here must not wait for a gradient.
        trunk.up.requires_grad_(False)
        trunk.join.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        z: Tensor = self.head(self.trunk.encode(images)[-1])
        return z


class LocalNetwork(nn.Module):
    """The frozen encoder, the first decoder blocks, and the head g2: two 1x1 convolutions without bias.

    [N, 1, H, W] -> [N, F, h, w], the map of the last of the blocks. Batch norm of the encoder stays as pre-trained.

    Args:
        trunk: the U-Net with a pre-trained encoder.
        blocks: decoder blocks, 1 to 5; 3 in the paper, a quarter of the resolution.
    """

    def __init__(self, trunk: UNet, *, blocks: int = 3) -> None:
        super().__init__()
        if not 1 <= blocks <= BLOCKS:
            raise UserError(f"blocks is {blocks}; expected 1 to {BLOCKS}, the decoder blocks of the U-Net")
        self.trunk, self.blocks = trunk, blocks
        channels = trunk.feature_channels * (8, 8, 4, 2, 1)[blocks - 1]
        self.head = nn.Sequential(
            nn.Conv2d(channels, channels, 1, bias=False),
            batch_norm(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 1, bias=False),
        )
        he_init(self.head)
        trunk.requires_grad_(False)
        for part in (trunk.up, trunk.join):
            part[:blocks].requires_grad_(True)

    def train(self, mode: bool = True) -> LocalNetwork:
        """Training mode for all but the frozen encoder."""
        super().train(mode)
        self.trunk.down.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.head(self.trunk.decode(self.trunk.encode(images), blocks=self.blocks))
        return features
