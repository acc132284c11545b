"""Class probabilities of slices."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn


@torch.no_grad()
def slice_probabilities(
    network: nn.Module, slices: Tensor, *, batch_size: int = 16, autocast: AbstractContextManager[object] | None = None
) -> Tensor:
    """Class probabilities of slices, with the network in inference mode while it works.

    Args:
        network: slices [N, 1, H, W] -> logits [N, C, H, W].
        slices: [S, 1, H, W], on any device.
        batch_size: slices at once.
        autocast: mixed precision to compute in; probabilities are float32 all the same.

    Returns:
        Float32 [S, C, H, W] on the network's device.
    """
    device = next(network.parameters()).device
    was_training = network.training
    network.eval()
    try:
        with autocast or nullcontext():
            logits = [
                network(part.to(device).contiguous(memory_format=torch.channels_last)).float()
                for part in torch.split(slices, batch_size)
            ]
    finally:
        network.train(was_training)
    return torch.cat(logits).softmax(1).contiguous()
