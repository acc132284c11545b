"""Brightness and contrast of slices."""

from __future__ import annotations

import torch
from torch import Tensor

from contrastive_core.rng import uniform


@torch.no_grad()
def jitter_intensity(
    images: Tensor, *, seed: int, ids: Tensor, brightness: float = 0.3, contrast: float = 0.3, largest: float = 1.5
) -> Tensor:
    """Change brightness, then contrast about the image's mean, then clip to [0, largest].

        x <- x + b,   x <- (x - mean x) c + mean x,   b ~ U(-brightness, brightness),  c ~ U(1 - contrast, 1 + contrast)

    The pixels stay where they are, so labels stay valid. The released code draws one b and one c for the batch; here
    every image has its own.

    Args:
        images: float [N, 1, H, W], about 0 to 1.
        seed: of the draws; give every step and view its own.
        ids: int64 [N]: an image's draws are a function of (seed, id).
        brightness: largest change; 0.3 in the released code.
        contrast: largest change of the factor; 0.3 in the released code.
        largest: value above which is clipped.
    """
    draws = uniform(seed, ids.to(images.device), 2).to(images.dtype)[..., None, None, None]
    shift, factor = brightness * (2 * draws[:, 0] - 1), 1 + contrast * (2 * draws[:, 1] - 1)
    shifted = images + shift
    mean = shifted.mean((1, 2, 3), keepdim=True)
    return ((shifted - mean) * factor + mean).clamp(0, largest)
