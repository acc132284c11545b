"""Resample the channels of an image, such as T2, ADC and DWI, to the grid of the first, and labels to another grid."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import affine_transform, gaussian_filter, map_coordinates

from contrastive_core.errors import UserError
from ssl_medseg.io.volume import Grid, Volume, grid_difference

_SAMPLES = 48
"""Largest number of voxels per axis that are sampled to determine how much of a grid another one covers."""
_WHOLE = 0.995
"""Fraction of a grid above which it counts as completely covered."""
_BEYOND = 0.5
"""Distance in voxels by which a volume extends beyond the centres of its outermost voxels."""


def align_channels(first: Volume, others: list[Volume]) -> tuple[tuple[NDArray[np.float32], ...], tuple[str, ...]]:
    """Resample further channels to the grid of the first.

    A channel on the same grid is not changed. Other channels are interpolated linearly. Where the voxels of the first
    channel are larger by a factor f, the channel is smoothed first with a Gaussian of sigma = (f - 1) / 2 of its own
    voxels. Outside its field of view, a channel has its smallest value.

    Args:
        first: First channel, which defines the grid.
        others: Further channels.

    Returns:
        Float32 arrays ``[X, Y, Z]`` of the further channels, and the warnings about all channels.

    Raises:
        UserError: A channel on a different grid has no position, or its field of view does not overlap with the first.
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
                f"{other.image.path}: channel {_name(other)} lies on a different grid from {_name(first)} "
                f"({difference}) and cannot be resampled to it, because a header states no position; expected channels "
                "on the same grid, or a position in each header. Convert both from their source again"
            )
        covered = share_covered(other.grid, first.grid)
        if not covered:
            raise UserError(
                f"{other.image.path}: the fields of view of the channels {_name(other)} and {_name(first)} do not "
                "overlap; expected channels of the same anatomy. Register them, or correct the headers"
            )
        notes.append(f"channel {_name(other)} lies on a different grid from {_name(first)} and is resampled to it")
        if covered < _WHOLE:
            notes.append(
                f"channel {_name(other)} covers {covered:.0%} of {_name(first)}; the rest is filled with its smallest "
                "value"
            )
        arrays.append(resample(other.array, other.grid, first.grid))
    return tuple(arrays), tuple(notes)


def resample(array: NDArray[np.float32], source: Grid, target: Grid) -> NDArray[np.float32]:
    """Resample a volume ``[X, Y, Z]`` to another grid by linear interpolation.

    Outside the field of view the result has the smallest finite value of the volume. Slices are resampled one at a
    time, which limits the memory needed beside the result.
    """
    step = np.linalg.inv(source.affine) @ target.affine
    finite = array[np.isfinite(array)]
    fill = float(finite.min()) if finite.size else 0.0
    # Without smoothing, each large voxel would take over the noise of a single small one.
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


def resample_label(array: NDArray[Any], source: Grid, target: Grid) -> NDArray[Any]:
    """Resample label values ``[X, Y, Z]`` to another grid by nearest neighbour, with 0 outside their field of view."""
    # scipy takes places beyond the centres of the outermost voxels, even by rounding, as outside of the array.
    step = np.linalg.inv(source.affine) @ target.affine
    resampled: NDArray[Any] = affine_transform(
        np.pad(array, 1), step[:3, :3], step[:3, 3] + 1, output_shape=target.shape, order=0, cval=0
    )
    return resampled


def share_covered(source: Grid, target: Grid) -> float:
    """Return the fraction of the target grid in the field of view of the source, sampled at 48 points per axis."""
    step = np.linalg.inv(source.affine) @ target.affine
    axes = [np.unique(np.linspace(0, n - 1, min(n, _SAMPLES)).round()) for n in target.shape]
    voxels = np.stack([axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")])
    places = step[:3, :3] @ voxels + step[:3, 3:]
    return float(_inside(places, np.array(source.shape)[:, None] - 1).mean())


def _inside(places: NDArray[np.float64], ends: NDArray[np.int64]) -> NDArray[np.bool_]:
    # The thousandth of a voxel allows for rounding in the affines.
    beyond = _BEYOND + 1e-3
    return np.asarray(((places >= -beyond) & (places <= ends + beyond)).all(axis=0))


def _name(volume: Volume) -> str:
    return volume.image.name or volume.image.path.name
