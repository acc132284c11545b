"""Linear and nearest interpolation along the rows and columns of slices.

MONAI's ``Spacing`` and ``ResizeWithPadOrCrop`` give the same numbers, and the tests compare with them. They are
not called here because importing MONAI takes several seconds, more than a mask of a volume does, and because slices can
be restored a few at a time this way.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssl_medseg.preprocessing.geometry import Geometry


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
