"""Selective kernels: the 3x3 convolution of SimCLRv2's larger encoders."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SelectiveKernel(nn.Module):
    """Two streams of 3x3 convolution, mixed per channel by attention over the streams.

    ``U1, U2 = split(relu(bn(conv3x3(x))))``, ``g = mean over space of (U1 + U2)``,
    ``a1, a2 = softmax over the streams of conv1x1(relu(bn(conv1x1(g))))``, output ``a1 U1 + a2 U2``.

    Shapes: ``[N, in_channels, H, W] -> [N, channels, ceil(H / stride), ceil(W / stride)]``.

    As in the official code both streams are plain 3x3 (SKNet's dilated second stream is not used) and the attention's
    hidden width is ``max(int(channels * ratio), 32)``. SimCLRv2, section "Selective kernel networks"; tf2/resnet.py.
    """

    def __init__(self, in_channels: int, channels: int, *, stride: int = 1, ratio: float = 0.0625) -> None:
        super().__init__()
        hidden = max(int(channels * ratio), 32)
        self.conv = nn.Conv2d(in_channels, 2 * channels, 3, stride, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(2 * channels)
        self.squeeze = nn.Conv2d(channels, hidden, 1, bias=False)
        self.squeeze_bn = nn.BatchNorm2d(hidden)
        self.attend = nn.Conv2d(hidden, 2 * channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        streams = self.bn(self.conv(x)).relu()
        first, second = streams.chunk(2, dim=1)
        squeezed = self.squeeze_bn(self.squeeze((first + second).mean(dim=(2, 3), keepdim=True))).relu()
        weight_first, weight_second = torch.stack(self.attend(squeezed).chunk(2, dim=1)).softmax(dim=0)
        mixed: Tensor = weight_first * first + weight_second * second
        return mixed
