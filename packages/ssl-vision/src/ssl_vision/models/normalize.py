"""Input normalisation inside an encoder, so that every encoder takes images in [0, 1]."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

Normalization = Literal["none", "imagenet", "cifar10", "cifar100"]

STATISTICS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}
"""Mean and standard deviation of red, green and blue, as they are passed on from code to code."""


class Normalized(nn.Module):
    """``net((images - mean) / std)``: for weights that were trained on normalised images.

    Args:
        net: maps ``[N, 3, H, W]`` to ``[N, net.feature_dim]``.
        statistics: whose mean and standard deviation; see `STATISTICS`.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, statistics: Normalization) -> None:
        super().__init__()
        self.net = net
        self.feature_dim = net.feature_dim
        for name, values in zip(("mean", "std"), STATISTICS[statistics], strict=True):
            # Not in the state dict: the options say which they are.
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.net((images - self.mean) / self.std)
        return features
