"""Geometry of slices: where every pixel lies in its volume, and interpolation between pixels and voxels.

MONAI's ``Spacing`` and ``ResizeWithPadOrCrop`` give the same numbers, and the tests compare with them. They are not
called here because importing MONAI takes several seconds, longer than segmenting a volume, and because slices can be
restored a few at a time this way.
"""

from __future__ import annotations

import itertools
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

_THICK = 1.5
"""Slices this much further apart than pixels were made as slices: cutting them otherwise shows few and thick rows."""
_HALFWAY = 0.2
"""Two ways of turning a volume whose agreement with the wanted directions differs by less are a matter of chance."""
_NEGLIGIBLE = 0.01
"""Of a voxel: where pixels would be off the voxels by less than this at the far end, they are the voxels."""


@dataclass(frozen=True)
class Geometry:
    """Geometry of the slices of one volume, with which predictions are restored to the volume.

    Pixel p of an axis of a slice is at voxel ``step * (p + shift)`` of the volume's axis; ``shift`` is the number of
    pixels removed by centred cropping (negative: added by padding).

    Attributes:
        shape: ``(X, Y, Z)`` of the volume, in the file's own order of axes.
        affine: ``[4][4]``, voxel index to mm in RAS+.
        axes: Axes of the file along which slices, rows and columns are counted.
        flips: Which of these axes are reversed.
        step: Voxels from one pixel to the next, down a column and along a row.
        resampled: Number of pixels before cropping, likewise.
        size: Height and width of the slices.
        size_known: Whether the size of a voxel is known.
        place_known: Whether the positions of the voxels in the patient are known.
    """

    shape: tuple[int, int, int]
    affine: tuple[tuple[float, ...], ...]
    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    step: tuple[float, float]
    resampled: tuple[int, int]
    size: tuple[int, int]
    size_known: bool = True
    place_known: bool = True

    @property
    def grid(self) -> Grid:
        """The volume's grid."""
        return Grid(self.shape, np.array(self.affine), self.size_known, self.place_known)

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
        fields: dict[str, Any] = {n: tuple(value) if isinstance(value, list) else value for n, value in content.items()}
        return cls(**{**fields, "affine": tuple(tuple(row) for row in content["affine"])})


def slice_geometry(grid: Grid, p: Preprocessing) -> tuple[Geometry, tuple[str, ...]]:
    """The geometry of a volume's slices, and notes about it; no voxel is needed."""
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
    known = grid.size_known, grid.place_known
    return Geometry(grid.shape, affine, axes, flips, (down, right), counts, p.size, *known), notes


def axis_directions(grid: Grid) -> NDArray[np.float64]:
    """Float64 [3, 3], row k the unit vector (RAS) along which axis k of a volume grows."""
    matrix = grid.affine[:3, :3]
    return np.asarray((matrix / np.linalg.norm(matrix, axis=0)).T)


def flat_axis(grid: Grid) -> int | None:
    """The axis of a single slice: the only one with one voxel. None for a volume."""
    single = [axis for axis, voxels in enumerate(grid.shape) if voxels == 1]
    return single[0] if len(single) == 1 else None


def thick_axis(grid: Grid, *, ratio: float = _THICK) -> int | None:
    """The axis that a volume was acquired in slices along; None where its voxels, or what is known of them, are equal.

    That of a single slice, else the one whose spacing is `ratio` times that of the others. The number of voxels says
    nothing.
    """
    flat = flat_axis(grid)
    if flat is not None or not grid.size_known:
        return flat
    order = np.argsort(grid.spacing)
    return int(order[2]) if grid.spacing[order[2]] >= ratio * grid.spacing[order[1]] else None


def display_axis(grid: Grid) -> int:
    """The axis to show a volume's slices along: the one it was acquired along, else the one nearest to the body's."""
    thick = thick_axis(grid)
    if thick is not None:
        return thick
    return int(np.abs(axis_directions(grid)[:, 2]).argmax()) if grid.place_known else 2


def axis_letters(grid: Grid) -> str:
    """Letters of the directions in which the axes of a volume grow, such as ``LPS``; empty where they are unknown."""
    return "".join(nibabel.aff2axcodes(grid.affine)) if grid.place_known else ""


def match_axes(grid: Grid, directions: NDArray[np.float64]) -> tuple[tuple[int, ...], tuple[bool, ...], bool]:
    """The axes of a volume that run nearest to three directions.

    Returns:
        The axis for each direction, whether it runs against it, and whether another choice is as good.
    """
    cosines = directions @ axis_directions(grid).T  # [direction, axis]
    choices = list(itertools.permutations(range(3)))
    scores = [sum(abs(cosines[k, axis]) for k, axis in enumerate(choice)) for choice in choices]
    best, second = np.argsort(scores)[[-1, -2]]
    axes = choices[int(best)]
    flips = tuple(bool(cosines[k, axis] < 0) for k, axis in enumerate(axes))
    return axes, flips, bool(scores[int(best)] - scores[int(second)] < _HALFWAY)


def _axes(grid: Grid, p: Preprocessing) -> tuple[tuple[int, int, int], tuple[bool, bool, bool], tuple[str, ...]]:
    """The axes for slices, rows and columns, which of them are reversed, and notes."""
    notes = []
    axes, flips = (0, 1, 2), (False, False, False)
    if p.directions is not None and grid.place_known:
        axes, flips, is_halfway = match_axes(grid, p.directions)  # type: ignore[assignment]
        if is_halfway:
            notes.append("its axes lie halfway between those of the training images, so that its slices may be turned")
    elif p.directions is not None:
        notes.append("the patient's sides are unknown, so it is taken as it is stored")
    order = [p.slice_axis, *(k for k in range(3) if k != p.slice_axis)]
    flat = flat_axis(grid)
    if flat is not None and axes[p.slice_axis] != flat:
        order = [axes.index(flat), *(k for k in range(3) if axes[k] != flat)]
        notes.append("it is a single slice in another plane than the slices of the training images")
    thick = thick_axis(grid)
    if flat is None and thick not in (None, axes[p.slice_axis]):
        named = f" ({p.plane})" if p.plane else ""
        notes.append(
            f"it was acquired in slices {grid.spacing[thick]:.3g} mm apart along another axis than the training images "
            f"and is cut along theirs{named}: expect a poorer mask"
        )
    first, second, third = order
    return (axes[first], axes[second], axes[third]), (flips[first], flips[second], flips[third]), tuple(notes)


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
