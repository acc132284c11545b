"""Low-rank adaptation (LoRA): train small updates of an encoder's linear layers instead of its weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from contrastive_core.errors import UserError

_SCALE = 2.0  # alpha / rank, as in most uses of LoRA


class LowRankUpdate(nn.Module):
    """``weight + 2 * up @ down`` for a weight ``[out, in]``, with ``up`` ``[out, rank]`` and ``down`` ``[rank, in]``.

    `up` starts at zero, so that training starts from the unchanged weight.

    Reference: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", section 4.1.
    """

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.zeros(weight.shape[0], rank))
        self.down = nn.Parameter(torch.empty(rank, weight.shape[1]))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        updated: Tensor = weight + _SCALE * (self.up @ self.down)
        return updated


def add_low_rank(encoder: nn.Module, rank: int) -> None:
    """Freeze an encoder, and add a trainable update to each of its linear layers, including those of attention.

    Gradients and optimiser states take the memory of the updates alone: ``rank * (in + out)`` numbers per layer.

    Raises:
        UserError: The encoder has no linear layers.
    """
    weights = [
        (module, name)
        for module in encoder.modules()
        for name in ("weight", "in_proj_weight")
        if isinstance(module, nn.Linear if name == "weight" else nn.MultiheadAttention)
        and getattr(module, name) is not None
    ]
    if not weights:
        raise UserError(
            "lora_rank needs an encoder with linear layers, such as a vision transformer or ConvNeXt (timm:NAME, "
            "torchvision:vit_b_16); this one has only convolutions. Leave out lora_rank to train all weights"
        )
    encoder.requires_grad_(False)
    for module, name in weights:
        parametrize.register_parametrization(module, name, LowRankUpdate(getattr(module, name), rank))


def merge_low_rank(encoder: nn.Module) -> None:
    """Add the updates to the weights, which restores the tensors of the encoder from before `add_low_rank`."""
    for module in list(encoder.modules()):
        if parametrize.is_parametrized(module):
            for name in list(module.parametrizations):  # type: ignore[arg-type]
                parametrize.remove_parametrizations(module, name, leave_parametrized=True)
