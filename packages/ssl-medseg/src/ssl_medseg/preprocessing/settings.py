"""Settings of the preprocessing, stored with the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from contrastive_core.errors import UserError

MULTIPLE = 32
"""Slices are a multiple of this many pixels high and wide: a U-Net of six levels halves them five times."""


@dataclass(frozen=True)
class Preprocessing:
    """Settings of `prepare`; they are part of a model and stored with it.

    Attributes:
        size: height and width of the slices in pixels, multiples of 32; what is larger is cropped around the centre,
            what is smaller padded with zeros.
        spacing: height and width in mm that pixels are resampled to. None: see `fit`.
        fit: without `spacing`, for images whose spacing is unknown: the longer side of the image becomes this many
            pixels; 0 leaves the pixels as they are.
        slice_axis: the axis of the file that slices are counted along. None: of each volume the axis with the largest
            spacing.
        orientation: letters of the directions in which the axes of the training images grow, such as ``LPS``; images
            stored otherwise are flipped and turned to it. Empty: all are taken as they are stored.
        percentiles: of a volume's intensities, which become 0 and 1; values beyond them are kept.
        antialias: smooth an image before its pixels are made larger, by sigma = (factor - 1) / 2 pixels.
        n4: correct the bias field with N4 (extra ``simpleitk``).
        n4_shrink: estimate that field on every n-th voxel; the released code uses 1, which takes minutes per volume.
        fill_nan: replace voxels that are no numbers by the smallest number of the image, instead of refusing it.
        usual_axis: along which slices lie in most training images, once these are turned; only for programs that cannot
            look at every image, as an exported bundle.
        usual_spacing: of a pixel in most training images, in mm; likewise.
    """

    size: tuple[int, int]
    spacing: tuple[float, float] | None = None
    fit: int = 0
    slice_axis: int | None = None
    orientation: str = ""
    percentiles: tuple[float, float] = (1.0, 99.0)
    antialias: bool = True
    n4: bool = False
    n4_shrink: int = 4
    fill_nan: bool = False
    usual_axis: int = 2
    usual_spacing: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        low, high = self.percentiles
        wrong = {
            f"size {self.size}, expected multiples of {MULTIPLE}": any(s < MULTIPLE or s % MULTIPLE for s in self.size),
            f"spacing {self.spacing}, expected mm above 0": self.spacing is not None and min(self.spacing) <= 0,
            f"fit {self.fit}, expected pixels, or 0": self.fit < 0,
            "both spacing and fit, expected one of them": self.spacing is not None and self.fit > 0,
            f"slice_axis {self.slice_axis}, expected 0, 1 or 2": self.slice_axis not in (None, 0, 1, 2),
            f"orientation {self.orientation!r}, expected letters such as 'LPS'": not _is_orientation(self.orientation),
            f"percentiles {self.percentiles}, expected 0 <= low < high <= 100": not 0 <= low < high <= 100,
            f"n4_shrink {self.n4_shrink}, expected at least 1": self.n4_shrink < 1,
        }
        for problem, holds in wrong.items():
            if holds:
                raise UserError(f"preprocessing has {problem}")

    def to_json(self) -> dict[str, Any]:
        """For JSON; `from_json` reads it."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Preprocessing:
        """Settings from what `to_json` gave.

        Raises:
            UserError: it is something else.
        """
        try:
            known = dict(content)
            for name in ("size", "percentiles", "spacing", "usual_spacing"):
                known[name] = None if known[name] is None else tuple(known[name])
            return cls(**known)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"expected the settings of a preprocessing, got {content!r} ({error})") from error


def _is_orientation(letters: str) -> bool:
    axes = {"L": 0, "R": 0, "P": 1, "A": 1, "S": 2, "I": 2}
    return not letters or sorted(axes.get(letter, -1) for letter in letters) == [0, 1, 2]
