"""Define the preprocessing settings that are stored with a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contrastive_core.errors import UserError

DIRECTIONS = {
    "L": (-1.0, 0.0, 0.0), "R": (1.0, 0.0, 0.0), "P": (0.0, -1.0, 0.0), "A": (0.0, 1.0, 0.0), "S": (0.0, 0.0, 1.0),
    "I": (0.0, 0.0, -1.0),
}  # fmt: skip
"""Letter -> unit vector in RAS."""

_TILTED = np.cos(np.deg2rad(30))

MULTIPLE = 32
"""Height and width of slices are multiples of this, because a U-Net of six levels halves them five times."""


@dataclass(frozen=True)
class Preprocessing:
    """Settings of `prepare`; they are part of a model and stored with it.

    Attributes:
        size: Height and width of the slices in pixels, multiples of 32. Larger slices are cropped around the centre,
            smaller ones are padded with zeros.
        spacing: Height and width of the resampled pixels in mm; None uses `fit`.
        fit: Without `spacing`, for images of unknown spacing: length of the longer side in pixels; 0 keeps the original
            pixels.
        slice_axis: Axis across which slices are taken in every volume: an axis of `directions` if there are any,
            otherwise of the file.
        orientation: Letters of the axis directions of a reoriented volume, such as ``LPS``; if empty, `frame` is used.
        frame: Without `orientation`, for oblique volumes: unit vectors (RAS) of the axes of a reoriented volume. None
            uses volumes as stored.
        percentiles: Percentiles of the intensities of a channel that become 0 and 1; values beyond them are kept.
        antialias: Smooth an image before downsampling, with sigma = (factor - 1) / 2 pixels.
        n4: Correct the bias field with N4 (extra ``simpleitk``).
        n4_shrink: Estimate the field on every n-th voxel; the released code uses 1, which takes minutes per volume.
        fill_nan: Replace non-finite voxels by the smallest value of the image, instead of rejecting it.
        usual_spacing: Typical height and width of a pixel in the training images, in mm; used only by programs that
            cannot adapt to each image, such as an exported bundle.
        channels: Names of the channels of a slice, in order. The first defines the grid, the others are resampled to
            it, and each is scaled by its own percentiles.
        channel_numbers: Numbers of the channels in the training data (``_0000``, volumes of a 4-D file), if they were
            numbered. Images with numbered but unnamed channels are assumed to use the same numbers.
    """

    size: tuple[int, int]
    spacing: tuple[float, float] | None = None
    fit: int = 0
    slice_axis: int = 2
    orientation: str = ""
    frame: tuple[tuple[float, float, float], ...] | None = None
    percentiles: tuple[float, float] = (1.0, 99.0)
    antialias: bool = True
    n4: bool = False
    n4_shrink: int = 4
    fill_nan: bool = False
    usual_spacing: tuple[float, float] | None = None
    channels: tuple[str, ...] = ("image",)
    channel_numbers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        low, high = self.percentiles
        problems = {
            f"size {self.size}, expected multiples of {MULTIPLE}": any(s < MULTIPLE or s % MULTIPLE for s in self.size),
            f"spacing {self.spacing}, expected mm above 0": self.spacing is not None and min(self.spacing) <= 0,
            f"fit {self.fit}, expected pixels, or 0": self.fit < 0,
            "both spacing and fit, expected one of them": self.spacing is not None and self.fit > 0,
            f"slice_axis {self.slice_axis}, expected 0, 1 or 2": self.slice_axis not in (0, 1, 2),
            f"orientation {self.orientation!r}, expected letters such as 'LPS'": not _is_orientation(self.orientation),
            "both orientation and frame, expected one of them": bool(self.orientation) and self.frame is not None,
            f"percentiles {self.percentiles}, expected 0 <= low < high <= 100": not 0 <= low < high <= 100,
            f"n4_shrink {self.n4_shrink}, expected at least 1": self.n4_shrink < 1,
            f"channels {self.channels}, expected different names": not self.channels
            or len(set(self.channels)) < len(self.channels),
        }
        for problem, holds in problems.items():
            if holds:
                raise UserError(f"preprocessing has {problem}")

    @property
    def directions(self) -> NDArray[np.float64] | None:
        """Float64 ``[3, 3]``: row k is the unit vector (RAS) of axis k after reorientation; None if not reoriented."""
        if self.frame is not None:
            return np.array(self.frame)
        return np.array([DIRECTIONS[letter] for letter in self.orientation]) if self.orientation else None

    @property
    def plane(self) -> str:
        """Name of the plane of the slices: ``axial``, ``coronal``, ``sagittal``, ``oblique axial`` and so on."""
        return "" if self.directions is None else plane_of(self.directions[self.slice_axis])

    def to_json(self) -> dict[str, Any]:
        """Return the content for a JSON file, which `from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Preprocessing:
        """Create settings from the result of `to_json`.

        Raises:
            UserError: The content does not describe such settings.
        """
        try:
            values = {"channel_numbers": (), **content}
            for name in ("size", "percentiles", "spacing", "usual_spacing", "channels", "channel_numbers"):
                values[name] = None if values[name] is None else tuple(values[name])
            values["frame"] = None if values["frame"] is None else tuple(map(tuple, values["frame"]))
            return cls(**values)
        except KeyError as error:
            raise UserError(
                f"the preprocessing of this model lacks the setting {error}, because another version of ssl-medseg "
                "wrote it. Use that version, or train again"
            ) from error
        except (TypeError, ValueError) as error:
            raise UserError(f"found {content!r}; expected preprocessing settings ({error})") from error


def plane_of(direction: NDArray[np.float64]) -> str:
    """Return the name of the plane perpendicular to a direction (RAS)."""
    shares = np.abs(direction) / np.linalg.norm(direction)
    name = ("sagittal", "coronal", "axial")[int(shares.argmax())]
    return name if shares.max() > _TILTED else f"oblique {name}"


def _is_orientation(letters: str) -> bool:
    axes = {"L": 0, "R": 0, "P": 1, "A": 1, "S": 2, "I": 2}
    return not letters or sorted(axes.get(letter, -1) for letter in letters) == [0, 1, 2]
