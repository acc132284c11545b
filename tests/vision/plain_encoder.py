"""An encoder without batch norm, as a user's own: `--encoder.name tests.vision.plain_encoder:build`."""

from __future__ import annotations

from torch import nn


def build() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Flatten(),
        nn.Linear(72, 16),
    )  # fmt: skip
