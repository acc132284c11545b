"""The classifier of fine-tuning and distillation: encoder, layers of the projection head, linear layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Classifier(nn.Module):
    """``logits = fc(neck(encoder(images)))``.

    The linear layer starts at zero, as in the released code: the first predictions are uniform, and the first step
    changes only that layer. It computes in the precision of its weights, regardless of autocast.

    Args:
        encoder: Encoder that maps ``[N, 3, H, W]`` images in [0, 1] to ``[N, encoder.feature_dim]``.
        neck: Layers between encoder and linear layer: the first layers of a projection head
            (``ProjectionHead.first_layers``), or none (an empty ``nn.Sequential``).
        classes: Number of classes.

    Reference: Chen et al. 2020, "Big Self-Supervised Models are Strong Semi-Supervised Learners", section 2.

    >>> from contrastive_core import ProjectionHead
    >>> from ssl_vision.models import resnet
    >>> encoder = resnet(18, width=0.125, stem="cifar")
    >>> model = Classifier(encoder, ProjectionHead(encoder.feature_dim, layers=3).first_layers(1), 10)
    >>> model(torch.rand(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """

    def __init__(self, encoder: nn.Module, neck: nn.Sequential, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.neck = neck
        widths = [part.out_features for part in neck.modules() if isinstance(part, nn.Linear)]
        features = widths[-1] if widths else encoder.feature_dim
        if not isinstance(features, int):
            raise TypeError(f"encoder.feature_dim must be an int, the size of its features; got {features!r}")
        self.fc = nn.Linear(features, classes)
        nn.init.zeros_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.neck(self.encoder(images))
        # In full precision under autocast too: a temperature of 0.1 would turn the rounding of bfloat16 logits, 0.03 at
        # logits of 10, into a third of a probability.
        with torch.autocast(features.device.type, enabled=False):
            logits: Tensor = self.fc(features.to(self.fc.weight.dtype))
        return logits
