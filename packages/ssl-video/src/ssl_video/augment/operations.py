"""The operations of RandAugment on a stack of pictures, each a function of one signed strength.

Strengths are those of PyTorchVideo's RandAugment at level 10 (strength 1): colours +-0.9, rotation 30 degrees, shear
0.3, translation 0.45 of the side. Pictures are float ``[T, 3, H, W]`` in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as V

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
