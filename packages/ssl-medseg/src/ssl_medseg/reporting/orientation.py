"""How a slice is shown: which way round, in which proportions, and what its edges are called."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_ENDS = (("L", "R"), ("P", "A"), ("I", "S"))  # at smaller and greater coordinates, RAS+
_PLANES = ("sagittal", "coronal", "axial")
# Plane -> where the picture's right and lower edges look: the patient's right is on the left of the picture.
_SHOWN = {
    "axial": (np.array([-1.0, 0, 0]), np.array([0, -1.0, 0])),
    "coronal": (np.array([-1.0, 0, 0]), np.array([0, 0, -1.0])),
    "sagittal": (np.array([0, -1.0, 0]), np.array([0, 0, -1.0])),
}
_SHARE = 0.35  # of a direction that is worth a letter


@dataclass(frozen=True)
class View:
    """Slices of a volume as a radiologist expects them.

    Attributes:
        axis: that slices are counted along.
        plane: the standard plane nearest to the slices; empty where directions are unknown.
        transpose: whether the second of the two remaining axes runs to the right (else the first one does).
        flip_rows: whether rows are turned upside down.
        flip_columns: whether columns are mirrored.
        spacing: height and width of a pixel.
        edges: letters at the left, right, top and bottom edge, of the patient's right, left, anterior, posterior,
            superior and inferior; empty where directions are unknown.
    """

    axis: int
    plane: str
    transpose: bool
    flip_rows: bool
    flip_columns: bool
    spacing: tuple[float, float]
    edges: tuple[str, str, str, str]

    def slice(self, volume: NDArray[Any], index: int) -> NDArray[Any]:
        """One slice, rows downwards and columns to the right."""
        picture: NDArray[Any] = np.take(volume, index, axis=self.axis)
        picture = picture if self.transpose else picture.T
        picture = picture[::-1] if self.flip_rows else picture
        return picture[:, ::-1] if self.flip_columns else picture


def view(affine: NDArray[np.float64], axis: int, *, known: bool = True) -> View:
    """The view of a volume's slices.

    The in-plane axis nearest to the wanted direction becomes the picture's horizontal; nothing is resampled, so that
    oblique slices stay as they were taken, and the letters say what their edges are nearest to.

    Args:
        affine: ``[4, 4]``, voxels to mm, RAS+.
        axis: that slices are counted along.
        known: whether the affine says anything; if not, slices are shown as they are stored, without letters.
    """
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    first, second = (a for a in range(3) if a != axis)
    if not known:
        return View(axis, "", False, False, False, (float(lengths[second]), float(lengths[first])), ("", "", "", ""))
    directions = affine[:3, :3] / lengths
    plane = _PLANES[int(np.argmax(np.abs(directions[:, axis])))]
    right, down = _SHOWN[plane]
    a, b = directions[:, first], directions[:, second]
    transpose = bool(abs(a @ down) + abs(b @ right) > abs(a @ right) + abs(b @ down))
    across, along = (b, a) if transpose else (a, b)
    flip_columns, flip_rows = bool(across @ right < 0), bool(along @ down < 0)
    across, along = across * (-1 if flip_columns else 1), along * (-1 if flip_rows else 1)
    height, width = (first, second) if transpose else (second, first)
    return View(
        axis,
        plane,
        transpose,
        flip_rows,
        flip_columns,
        (float(lengths[height]), float(lengths[width])),
        (
            _edge_letters(-across),
            _edge_letters(across),
            _edge_letters(-along),
            _edge_letters(along),
        ),
    )


def _edge_letters(direction: NDArray[np.float64]) -> str:
    """The directions that this one mostly is, the nearest first."""
    order = sorted(range(3), key=lambda axis: -abs(direction[axis]))
    return "".join(_ENDS[axis][int(direction[axis] > 0)] for axis in order if abs(direction[axis]) > _SHARE)
