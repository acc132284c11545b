"""How labelled slices are augmented."""

from __future__ import annotations

from dataclasses import dataclass

from contrastive_core.errors import UserError


@dataclass(frozen=True)
class AugmentOptions:
    """How labelled slices are augmented, each by draws of its own.

    Attributes:
        affine: one of five with equal chance: a rotation by up to 15 degrees, a zoom of 0.95 to 1.05, a left-right
            flip half of the time, a rotation by a multiple of 45 degrees, nothing.
        elastic: standard deviation of the 3 x 3 random displacements that bend a slice, in pixels of a slice of 192,
            and in proportion for other sizes; 5 in the paper; 0: none.
        elastic_share: share of the slices that are bent. The released code bends all after a random place of the batch
            of 20, which is 0.525 of them on average.
        intensity: brightness and contrast as for the contrastive loss. The released code builds it and does not reach
            it; few labelled patients do not show how differently bright others are.
    """

    affine: bool = True
    elastic: float = 5.0
    elastic_share: float = 0.525
    intensity: bool = True

    def __post_init__(self) -> None:
        if self.elastic < 0 or not 0 <= self.elastic_share <= 1:
            raise UserError(
                f"augment.elastic is {self.elastic} and augment.elastic_share {self.elastic_share}; expected pixels of "
                "at least 0, and a share between 0 and 1"
            )
