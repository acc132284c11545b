"""A Slow pathway for CPUs: ten layers, no stride in time, time only looked at in the later stages."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SmallSlow(nn.Module):
    """A 3-D ResNet of 10 layers in the manner of SlowFast's Slow pathway.

    Stem 1x3x3 with stride 2 in space; four stages of one basic block each, of width, 2, 4 and 8 times the width, from
    the second on with stride 2 in space; the first convolution of the last two stages spans three frames; global
    average pool, dropout, linear. Width 8 has 0.3 million parameters.

    Shapes: ``[N, 3, T, H, W]``, any T, H, W -> ``[N, classes]``.
    """

    def __init__(self, classes: int, *, width: int = 16, dropout: float = 0.5) -> None:
        super().__init__()
        self.stem = nn.Conv3d(3, width, (1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1), bias=False)
        self.norm = nn.BatchNorm3d(width)
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        self.stages = nn.Sequential(
            *(_Block(widths[i], widths[i + 1], stride=1 if i == 0 else 2, time=3 if i >= 2 else 1) for i in range(4))
        )
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(8 * width, classes)
        self._initialise()

    def forward(self, clips: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(clips)))
        x = self.stages(x).mean(dim=(2, 3, 4))
        return cast(Tensor, self.fc(self.dropout(x)))

    @torch.no_grad()
    def _initialise(self) -> None:
        for part in self.modules():
            if isinstance(part, nn.Conv3d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(part, _Block):
                nn.init.zeros_(part.norm2.weight)
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)


class _Block(nn.Module):
    def __init__(self, before: int, after: int, *, stride: int, time: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(
            before, after, (time, 3, 3), stride=(1, stride, stride), padding=(time // 2, 1, 1), bias=False
        )
        self.norm1 = nn.BatchNorm3d(after)
        self.conv2 = nn.Conv3d(after, after, (1, 3, 3), padding=(0, 1, 1), bias=False)
        self.norm2 = nn.BatchNorm3d(after)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or before != after:
            self.shortcut = nn.Sequential(
                nn.Conv3d(before, after, 1, stride=(1, stride, stride), bias=False), nn.BatchNorm3d(after)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))
