"""The set of operations of a library: how it crops, changes colours and pads a blur."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ssl_vision.augment.boxes import Sizes
from ssl_vision.augment.taps import Padding, Taps

ColourOp = Callable[[Tensor, Tensor], Tensor]


class MakeBoxes(Protocol):
    """Draws the boxes of random crops."""

    def __call__(self, height: Sizes, width: Sizes, *, seed: int, ids: Tensor) -> Sizes: ...


class MakeTaps(Protocol):
    """Says which rows make each row of a resized crop."""

    def __call__(self, length: Tensor, *, out: int, flip: Tensor | None = None) -> Taps: ...


@dataclass(frozen=True)
class Operations:
    """What `SimCLRAugment` needs to know about a library; colour operations work in place on planes [3, n, P]."""

    boxes: MakeBoxes
    taps: MakeTaps
    contrast: ColourOp
    saturation: ColourOp
    padding: Padding
