"""Geometry of slices: where every pixel lies in its volume, and interpolation between pixels and voxels.

MONAI's ``Spacing`` and ``ResizeWithPadOrCrop`` give the same numbers, and the tests compare with them. They are not
called here because importing MONAI takes several seconds, longer than segmenting a volume, and because slices can be
restored a few at a time this way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import nibabel
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssl_medseg.io.volume import Grid
from ssl_medseg.preprocessing.settings import Preprocessing

_ALIGNED = np.cos(np.deg2rad(30))
"""A volume whose axes are turned further out of the patient's can be named by the wrong letters; it is not turned."""
_TIE = 1.05
_NEGLIGIBLE = 0.01
"""Of a voxel: where pixels would be off the voxels by less than this at the far end, they are the voxels."""


@dataclass(frozen=True)
class Geometry:
    """How slices were cut out of one volume; together with the network's answer it gives the mask.

    Pixel p of an axis of a slice lies at voxel ``step * (p + shift)`` of the volume's axis, ``shift`` being what
    centred cropping took away (negative: padding added).

    Attributes:
        shape: ``(X, Y, Z)`` of the volume, in the file's own order of axes.
        affine: ``[4][4]``, its voxels to mm in RAS+.
        axes: the file's axes that slices, rows and columns are counted along.
        flips: which of these run against the file.
        step: voxels from one pixel to the next, down a column and along a row.
        resampled: pixels before cropping, likewise.
        size: height and width of the slices.
    """

    shape: tuple[int, int, int]
    affine: tuple[tuple[float, ...], ...]
    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    step: tuple[float, float]
    resampled: tuple[int, int]
    size: tuple[int, int]

    @property
    def grid(self) -> Grid:
        """The volume's grid."""
        return Grid(self.shape, np.array(self.affine))

    @property
    def slices(self) -> int:
        """Number of slices."""
        return self.shape[self.axes[0]]

    @property
    def plane(self) -> tuple[int, int]:
        """Height and width of a slice in voxels of the volume."""
        return self.shape[self.axes[1]], self.shape[self.axes[2]]

    @property
    def shift(self) -> tuple[int, int]:
        """Pixels that cropping took away above and left; negative, where padding added some."""
        # As MONAI's ResizeWithPadOrCrop and the released code do it: half of the difference, rounded down.
        first, second = (
            (n - s) // 2 if n >= s else -((s - n) // 2) for n, s in zip(self.resampled, self.size, strict=True)
        )
        return first, second

    def to_slices(self, array: NDArray[Any]) -> NDArray[Any]:
        """A volume ``[X, Y, Z]`` as slices ``[S, rows, columns]`` of its own voxels; a view."""
        turned = array.transpose(self.axes)
        return turned[tuple(slice(None, None, -1) if flip else slice(None) for flip in self.flips)]

    def to_json(self) -> dict[str, Any]:
        """For JSON; `from_json` reads it."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Geometry:
        """A geometry from what `to_json` gave."""
        affine = tuple(tuple(row) for row in content["affine"])
        return cls(**{name: tuple(value) for name, value in content.items() if name != "affine"}, affine=affine)


def slice_geometry(grid: Grid, p: Preprocessing) -> tuple[Geometry, tuple[str, ...]]:
    """Where the slices of a volume lie, and what is to be said about it, without its voxels."""
    axes, flips, notes = _axes(grid, p)
    spacing = grid.spacing
    native = spacing[axes[1]], spacing[axes[2]]
    plane = grid.shape[axes[1]], grid.shape[axes[2]]
    target = native
    if p.spacing is not None:
        target = p.spacing
    elif p.fit:
        longer = max(n * s for n, s in zip(plane, native, strict=True)) / p.fit
        target = longer, longer
    down, right = (
        1.0 if abs(t / s - 1) * n < _NEGLIGIBLE else t / s for n, s, t in zip(plane, native, target, strict=True)
    )
    counts = _count(plane[0], down), _count(plane[1], right)
    affine = tuple(tuple(float(v) for v in row) for row in grid.affine)
    return Geometry(grid.shape, affine, axes, flips, (down, right), counts, p.size), notes


def slice_axis(grid: Grid) -> int:
    """The axis with the largest spacing; where several share it the one with the fewest voxels, or else the last."""
    widest = max(grid.spacing)
    candidates = [axis for axis in range(3) if grid.spacing[axis] * _TIE >= widest]
    return min(candidates, key=lambda axis: (grid.shape[axis], -axis))


def axis_letters(affine: NDArray[np.float64]) -> str:
    """The directions in which the axes of a volume grow, such as ``LPS``; empty if it is turned by over 30°."""
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    nearest = np.abs(directions).argmax(axis=0)
    if len(set(nearest.tolist())) < 3 or np.abs(directions).max(axis=0).min() < _ALIGNED:
        return ""
    return "".join(nibabel.aff2axcodes(affine))


def place_of_letter(letter: str, orientation: str) -> int:
    """Which axis of an orientation such as ``LPS`` runs along a letter's direction or against it."""
    pair = next(pair for pair in ("LR", "PA", "SI") if letter in pair)
    return next(number for number, other in enumerate(orientation) if other in pair)


def _axes(grid: Grid, p: Preprocessing) -> tuple[tuple[int, int, int], tuple[bool, bool, bool], tuple[str, ...]]:
    along = slice_axis(grid) if p.slice_axis is None else p.slice_axis
    across = [axis for axis in range(3) if axis != along]
    letters = axis_letters(grid.affine) if p.orientation else ""
    if not letters:
        note = (
            f"its axes are turned too far out of the patient's to be matched with {p.orientation}; its slices are "
            "taken as they are stored"
        )
        return (along, across[0], across[1]), (False, False, False), (note,) if p.orientation else ()
    across.sort(key=lambda axis: place_of_letter(letters[axis], p.orientation))
    axes = along, across[0], across[1]
    first, second, third = (letters[axis] not in p.orientation for axis in axes)
    return axes, (first, second, third), ()


def _count(voxels: int, step: float) -> int:
    """Pixels along an axis, the first of which lies on the first voxel: as many as MONAI's ``Spacing`` makes."""
    return max(1, round((voxels - 1) / step + 1))


def to_pixels(slices: Tensor, geometry: Geometry) -> Tensor:
    """Slices ``[S, rows, columns]`` of voxels as ``[S, H, W]`` of pixels, linearly; 0 where the volume ends."""
    for axis in (0, 1):
        places, shown = _of_pixels(geometry, axis)
        slices = _linear(slices, places, dim=axis - 2, kept=shown)
    return slices


def to_nearest_pixels(slices: Tensor, geometry: Geometry) -> Tensor:
    """As `to_pixels`, by the nearest voxel."""
    for axis in (0, 1):
        places, shown = _of_pixels(geometry, axis)
        taken = slices.index_select(axis - 2, torch.from_numpy(np.rint(places).astype(np.int64)))
        slices = taken * _along(torch.from_numpy(shown).to(slices), axis - 2)
    return slices


def to_voxels(images: Tensor, geometry: Geometry) -> Tensor:
    """Images ``[..., H, W]`` of pixels as ``[..., rows, columns]`` of voxels, linearly; 0 outside of the slices."""
    for axis in (0, 1):
        images = _linear(images, _of_voxels(geometry, axis), dim=axis - 2)
    return images


def is_inside(geometry: Geometry, axis: int) -> NDArray[np.bool_]:
    """Of each voxel along the rows (axis 0) or columns (1) of a slice, whether a pixel of the slice shows it."""
    places = _of_voxels(geometry, axis)
    return np.asarray((places >= -0.5) & (places < geometry.size[axis] - 0.5))


def _of_pixels(geometry: Geometry, axis: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """At which voxel each pixel is, and whether the volume reaches that far."""
    pixels = np.arange(geometry.size[axis]) + geometry.shift[axis]
    places = geometry.step[axis] * pixels
    shown = (pixels >= 0) & (pixels < geometry.resampled[axis])
    return np.clip(places, 0, geometry.plane[axis] - 1), shown


def _of_voxels(geometry: Geometry, axis: int) -> NDArray[np.float64]:
    """At which pixel each voxel is; those beyond the outermost pixel's centre take its value, as in MONAI."""
    pixels = np.arange(geometry.plane[axis]) / geometry.step[axis]
    return np.asarray(np.clip(pixels, 0, geometry.resampled[axis] - 1) - geometry.shift[axis])


def _linear(values: Tensor, places: NDArray[np.float64], *, dim: int, kept: NDArray[np.bool_] | None = None) -> Tensor:
    """Values at places between the entries of an axis; beyond its ends they fall to 0 within one entry."""
    size = values.shape[dim]
    below = np.floor(places).astype(np.int64)
    result = torch.zeros(())
    for index, weight in ((below, below + 1 - places), (below + 1, places - below)):
        weight = np.where((index >= 0) & (index < size), weight, 0.0)  # noqa: PLW2901
        if kept is not None:
            weight = weight * kept  # noqa: PLW2901
        chosen = torch.from_numpy(np.clip(index, 0, size - 1)).to(values.device)
        part = values.index_select(dim, chosen) * _along(torch.from_numpy(weight).to(values), dim)
        result = part if result.ndim == 0 else result.add_(part)
    return result


def _along(weights: Tensor, dim: int) -> Tensor:
    return weights[:, None] if dim == -2 else weights
