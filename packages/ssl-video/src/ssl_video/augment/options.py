"""How clips are augmented."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from contrastive_core.errors import UserError


@dataclass(frozen=True)
class WeakOptions:
    """Of labelled clips, and of the clips that pseudo-labels are made of: resize, random crop, flip.

    Attributes:
        smallest: short side after resizing, in crop sides; 256 / 224 in the recipe this follows.
        largest: the same, at most; uniform between the two. 320 / 224 there.
        flip: share mirrored left to right; 0 where left and right mean something.
    """

    smallest: float = 256 / 224
    largest: float = 320 / 224
    flip: float = 0.5

    def __post_init__(self) -> None:
        if not 1 <= self.smallest <= self.largest:
            raise UserError(
                f"weak.smallest is {self.smallest} and weak.largest {self.largest}; expected 1 <= smallest <= largest"
            )
        if not 0 <= self.flip <= 1:
            raise UserError(f"weak.flip is {self.flip}; expected a share of the clips")


@dataclass(frozen=True)
class StrongOptions:
    """Of the clips that learn pseudo-labels, on top of the weak augmentation: RandAugment and one square cut out.

    Attributes:
        ops: operations drawn for a view.
        probability: of each of them being applied.
        magnitude: the largest of 1 to 10; uniform between 1 and it. 10 is the full range.
        cutout: side of the square, in sides of the crop; 4 / 7 in the recipe this follows; 0: none.
        rgb_ops: from which set: ``full``, ``geometric`` (position alone), ``colour`` (values alone), ``none``.
        motion_ops: the same for flow and temporal gradient, where ``full`` treats them as pictures.
        audio_ops: the same for the audio view.
    """

    ops: int = 2
    probability: float = 0.5
    magnitude: int = 10
    cutout: float = 4 / 7
    rgb_ops: Literal["full", "geometric", "colour", "none"] = "full"
    motion_ops: Literal["full", "geometric", "colour", "none"] = "full"
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
