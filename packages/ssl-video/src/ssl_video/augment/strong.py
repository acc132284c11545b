"""Strong augmentation of one view: some operations and a square cut out, the same for all frames of a clip."""

from __future__ import annotations

import torch
from torch import Tensor

from contrastive_core.rng import derive, uniform
from ssl_video.augment.operations import OPERATIONS, SETS
from ssl_video.augment.options import StrongOptions
from ssl_video.views.make import NEUTRAL

_PER_OPERATION = 4


def strong_augment(
    pictures: Tensor,
    *,
    view: str,
    seed: int,
    ids: Tensor,
    options: StrongOptions = StrongOptions(),  # noqa: B008
) -> Tensor:
    """Strongly augmented copies of the pictures of one view.

    What happens to a clip is a function of (seed, its id, view) alone, and the same for all its frames. Where the
    operations leave a hole the view shows nothing (`views.NEUTRAL`).

    Args:
        pictures: weakly augmented, float ``[N, T, 3, H, W]``, 0 to 255.
        view: which view they are of.
        seed: of this step.
        ids: int64 ``[N]``, which clips.
        options: how strong.

    Returns:
        float32, the same shape.
    """
    names = SETS[options.set_for(view)]
    draws = uniform(derive(seed, "strong", view), ids, 2 + _PER_OPERATION * options.ops).tolist()
    fill = [value / 255 for value in NEUTRAL[view]]
    changed = []
    for clip, draw in zip(pictures, draws, strict=True):
        result = clip / 255
        for first in range(2, len(draw), _PER_OPERATION):
            which, apply, level, sign = draw[first : first + _PER_OPERATION]
            if names and apply < options.probability:
                strength = (1 + int(level * options.magnitude)) / 10 * (1 if sign < 0.5 else -1)
                result = OPERATIONS[names[int(which * len(names))]](result, strength, fill)
        changed.append(_cut(result.clamp(0, 1), draw[0], draw[1], options.cutout, fill) * 255)
    return torch.stack(changed)


def _cut(pictures: Tensor, across: float, down: float, share: float, fill: list[float]) -> Tensor:
    """A square of `share` of the short side, its centre anywhere, replaced by the fill."""
    height, width = pictures.shape[-2:]
    side = round(share * min(height, width))
    if not side:
        return pictures
    pictures = pictures.clone()
    top, left = round(down * height - side / 2), round(across * width - side / 2)
    hole = pictures[..., max(0, top) : max(0, top + side), max(0, left) : max(0, left + side)]
    hole[:] = pictures.new_tensor(fill).view(3, 1, 1)
    return pictures
