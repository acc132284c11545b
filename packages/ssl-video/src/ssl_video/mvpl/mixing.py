"""TubeMix: paste one box of another clip into all frames of a clip, and mix the targets in the same proportion."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from contrastive_core.rng import derive


class Mix(NamedTuple):
    """Mixing of N clips with each other."""

    partners: Tensor
    """Clip from which each clip receives a box, int64 ``[N]``."""
    boxes: Tensor
    """Top, bottom, left and right of the box in pixels, int64 ``[N, 4]``."""
    share: Tensor
    """Share of each picture that remains, ``1 - box / picture``, float32 ``[N]``."""


def draw_mix(clips: int, *, height: int, width: int, alpha: float, seed: int, step: int = 0) -> Mix:
    """Draw partners and boxes, as a function of (seed, step).

        s ~ Beta(alpha, alpha), box sides sqrt(1 - s) times those of the picture, at a random place

    The partners are the clips of the batch in order, shifted by a random distance, so that no clip is mixed with
    itself. A single clip is not mixed.

    Args:
        clips: Number of clips N.
        height: Height of the pictures in pixels.
        width: Width of the pictures in pixels.
        alpha: Parameter of the Beta distribution, above 0; 1 is uniform, larger values favour equal shares.
        seed: Seed of the run.
        step: Step of the run.

    Reference: Yun et al., "CutMix", ICCV 2019, for the box; Xing et al., "SVFormer: Semi-supervised Video Transformer
    for Action Recognition", CVPR 2023, section 3.3, for one mask over all frames (of random patches in that paper).
    """
    draws = np.random.Generator(np.random.PCG64(derive(seed, "mix", step)))
    own_share = torch.from_numpy(draws.beta(alpha, alpha, clips))
    down, across = (torch.from_numpy(draws.random(clips)) for _ in range(2))
    shift = int(draws.integers(1, clips)) if clips > 1 else 0
    side = (1 - own_share).sqrt() if clips > 1 else torch.zeros_like(own_share)
    high, wide = (side * height).round().long(), (side * width).round().long()
    top = (down * (height - high + 1)).long().clamp(max=height)
    left = (across * (width - wide + 1)).long().clamp(max=width)
    share = 1 - (high * wide).to(torch.float32) / (height * width)
    return Mix((torch.arange(clips) + shift) % clips, torch.stack([top, top + high, left, left + wide], dim=1), share)


def tube_mix(pictures: Tensor, mix: Mix, *, where: Tensor | None = None) -> Tensor:
    """Paste a box of its partner into all frames of each clip.

    Args:
        pictures: Pictures of one view ``[N, T, 3, H, W]``.
        mix: Partners and boxes.
        where: Clips to mix, bool ``[N]``; None: all.

    Returns:
        A new tensor of the same shape.
    """
    rows = torch.arange(pictures.shape[-2], device=pictures.device)
    columns = torch.arange(pictures.shape[-1], device=pictures.device)
    top, bottom, left, right = mix.boxes.to(pictures.device, non_blocking=True).T[:, :, None]
    inside = ((rows >= top) & (rows < bottom))[:, :, None] & ((columns >= left) & (columns < right))[:, None, :]
    if where is not None:
        inside &= where.to(pictures.device)[:, None, None]
    return torch.where(inside[:, None, None], pictures[mix.partners.to(pictures.device, non_blocking=True)], pictures)
