"""Strong augmentation of one view: RandAugment and a square cut out, the same for all frames of a clip.

Strengths of operations are those of PyTorchVideo's RandAugment at level 10 (strength 1): colours +-0.9, rotation 30
degrees, shear 0.3, translation 0.45 of the side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as V

from contrastive_core.errors import UserError
from contrastive_core.rng import derive, uniform
from ssl_video.views import NEUTRAL

_PER_OPERATION = 4


@dataclass(frozen=True)
class StrongOptions:
    """Strong augmentation on top of the weak one: some operations of RandAugment and one square cut out.

    The defaults are what was measured best on ten classes of UCF-101; ``--recipe paper`` takes the full range.

    Attributes:
        ops: Number of operations drawn for a view.
        probability: Probability of each of them being applied.
        magnitude: Largest strength, 1 to 10; drawn uniformly between 1 and it. 10 is the full range.
        cutout: Side of the square cut out, in sides of the crop; 0 for none.
        rgb_ops: Operations on frames: ``full``, ``geometric`` (position alone), ``colour`` (values alone), ``none``.
        motion_ops: Operations on flow and temporal gradient; ``full`` treats them as pictures.
        audio_ops: Operations on spectrograms.
    """

    ops: int = 1
    probability: float = 0.5
    magnitude: int = 5
    cutout: float = 0.3
    rgb_ops: Literal["full", "geometric", "colour", "none"] = "full"
    motion_ops: Literal["full", "geometric", "colour", "none"] = "geometric"
    audio_ops: Literal["full", "geometric", "colour", "none"] = "none"

    def __post_init__(self) -> None:
        if self.ops < 0 or not 0 <= self.probability <= 1 or not 1 <= self.magnitude <= 10 or not 0 <= self.cutout < 1:
            raise UserError(
                f"strong augmentation got ops={self.ops}, probability={self.probability}, magnitude={self.magnitude}, "
                f"cutout={self.cutout}; expected ops >= 0, a probability, a magnitude of 1 to 10 and a cutout of 0 to 1"
            )

    def set_for(self, view: str) -> str:
        """Name of the set of operations for a view."""
        return {"rgb": self.rgb_ops, "audio": self.audio_ops}.get(view, self.motion_ops)


def strong_augment(
    pictures: Tensor,
    *,
    view: str,
    seed: int,
    ids: Tensor,
    options: StrongOptions = StrongOptions(),
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


Operation = Callable[[Tensor, float, Sequence[float]], Tensor]
"""Pictures, strength in [-1, 1], fill by channel -> pictures."""


def _moved(
    *, angle: float = 0.0, x: float = 0.0, y: float = 0.0, shear_x: float = 0.0, shear_y: float = 0.0
) -> Operation:
    def move(pictures: Tensor, strength: float, fill: Sequence[float]) -> Tensor:
        height, width = pictures.shape[-2:]
        nothing = pictures.new_tensor(fill).view(3, 1, 1)
        # Around 0, where a filled border needs no filling: torchvision's own darkens the pixels on the edge.
        moved: Tensor = V.affine(
            pictures - nothing,
            angle=angle * strength,
            translate=[round(x * strength * width), round(y * strength * height)],
            scale=1.0,
            shear=[math.degrees(math.atan(shear_x * strength)), math.degrees(math.atan(shear_y * strength))],
            interpolation=InterpolationMode.BILINEAR,
        )
        return moved + nothing

    return move


def _adjusted(change: Callable[[Tensor, float], Tensor]) -> Operation:
    return lambda pictures, strength, fill: change(pictures, 1 + 0.9 * strength)


OPERATIONS: Mapping[str, Operation] = MappingProxyType(
    {
        "rotate": _moved(angle=30),
        "shear_x": _moved(shear_x=0.3),
        "shear_y": _moved(shear_y=0.3),
        "translate_x": _moved(x=0.45),
        "translate_y": _moved(y=0.45),
        "brightness": _adjusted(V.adjust_brightness),
        "contrast": _adjusted(V.adjust_contrast),
        "saturation": _adjusted(V.adjust_saturation),
        "sharpness": _adjusted(V.adjust_sharpness),
        "posterize": lambda pictures, strength, fill: V.posterize(pictures, 8 - round(4 * abs(strength))),
        "solarize": lambda pictures, strength, fill: V.solarize(pictures, 1 - abs(strength)),
        "autocontrast": lambda pictures, strength, fill: V.autocontrast(pictures),
        "equalize": lambda pictures, strength, fill: V.equalize(pictures),
        "invert": lambda pictures, strength, fill: V.invert(pictures),
    }
)

_GEOMETRIC = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")

SETS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "full": tuple(OPERATIONS),
        "geometric": _GEOMETRIC,
        "colour": tuple(name for name in OPERATIONS if name not in _GEOMETRIC),
        "none": (),
    }
)
"""Which operations a view is given. Inverting, solarising or equalising a signed field (flow, gradient) changes what it
says; ``geometric`` leaves that alone."""
