"""Put the channels of an image on one grid: T2, ADC and DWI of a patient, each stored with its own voxels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates

from contrastive_core.errors import UserError
from ssl_medseg.io.volume import Grid, Volume, grid_difference

_SAMPLES = 48
"""Voxels along an axis that are looked at to say how much of a grid another one covers."""
_WHOLE = 0.995
"""Share of a grid from which on it counts as covered whole."""
_BEYOND = 0.5
"""Voxels by which a volume reaches beyond the centres of its outermost voxels."""


def align_channels(first: Volume, others: list[Volume]) -> tuple[tuple[NDArray[np.float32], ...], tuple[str, ...]]:
    """The voxels of further channels on the grid of the first, and notes about what was resampled.

    A channel on the same grid stays as it is. Others are interpolated linearly, smoothed before where the voxels of the
    first are larger, by sigma = (factor - 1) / 2 voxels; beyond their field of view they have their smallest value.

    Raises:
        UserError: A channel on another grid that has no position in space, or that shows another place.
    """
    arrays, notes = [], list(first.warnings)
    for other in others:
        difference = grid_difference(other.grid, first.grid)
        notes += [f"{_name(other)}: {note}" for note in other.warnings if note not in first.warnings]
        if not difference:
            arrays.append(other.array)
            continue
        if not (first.grid.place_known and other.grid.place_known):
            raise UserError(
                f"{other.image.path}: channel {_name(other)} lies on another grid than {_name(first)} ({difference}) "
                "and cannot be resampled to it, because a header states no position; expected channels of one grid, or "
                "a position in each header. Convert both from their source again"
            )
        covered = share_covered(other.grid, first.grid)
        if not covered:
            raise UserError(
                f"{other.image.path}: channel {_name(other)} shows another place than {_name(first)}: their fields of "
                "view do not meet; expected channels of the same anatomy. Register them, or correct the headers"
            )
        notes.append(f"channel {_name(other)} lies on another grid than {_name(first)} and is resampled to it")
        if covered < _WHOLE:
            notes.append(
                f"channel {_name(other)} covers {covered:.0%} of {_name(first)}; the rest is filled with its smallest "
                "value"
            )
        arrays.append(resample(other.array, other.grid, first.grid))
    return tuple(arrays), tuple(notes)


def resample(array: NDArray[np.float32], source: Grid, target: Grid) -> NDArray[np.float32]:
    """A volume ``[X, Y, Z]`` on another grid, linearly; the smallest value where it does not reach.

    Time and memory: those of the target, one of its slices at a time.
    """
    step = np.linalg.inv(source.affine) @ target.affine
    finite = array[np.isfinite(array)]
    fill = float(finite.min()) if finite.size else 0.0
    # Larger voxels would pick single small ones with their noise.
    sigma = np.maximum(0.0, (np.abs(step[:3, :3]).max(axis=1) - 1) / 2)
    if sigma.any():
        array = gaussian_filter(array, sigma, mode="nearest")
    result = np.empty(target.shape, dtype=np.float32)
    rows, columns = np.meshgrid(*(np.arange(n, dtype=np.float64) for n in target.shape[:2]), indexing="ij")
    ends = np.array(source.shape) - 1
    for number in range(target.shape[2]):
        places = np.stack([m[0] * rows + m[1] * columns + m[2] * number + m[3] for m in step[:3]])
        inside = _inside(places, ends[:, None, None])
        values = map_coordinates(array, places, order=1, mode="nearest")
        result[:, :, number] = np.where(inside, values, fill)
    return result


def share_covered(source: Grid, target: Grid) -> float:
    """Share of the voxels of a grid that another one shows, of at most 48 along each axis."""
    step = np.linalg.inv(source.affine) @ target.affine
    axes = [np.unique(np.linspace(0, n - 1, min(n, _SAMPLES)).round()) for n in target.shape]
    voxels = np.stack([axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")])
    places = step[:3, :3] @ voxels + step[:3, 3:]
    return float(_inside(places, np.array(source.shape)[:, None] - 1).mean())


def _inside(places: NDArray[np.float64], ends: NDArray[np.int64]) -> NDArray[np.bool_]:
    # A thousandth of a voxel for rounding in the affines.
    beyond = _BEYOND + 1e-3
    return np.asarray(((places >= -beyond) & (places <= ends + beyond)).all(axis=0))


def _name(volume: Volume) -> str:
    return volume.image.name or volume.image.path.name
