"""From a volume to the slices a network takes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from contrastive_core.errors import UserError
from ssl_medseg.preprocessing.geometry import Geometry, slice_geometry
from ssl_medseg.preprocessing.interpolate import is_inside, to_nearest_pixels, to_pixels
from ssl_medseg.preprocessing.n4 import correct_bias_field
from ssl_medseg.preprocessing.settings import Preprocessing
from ssl_medseg.volumes.volume import Grid, Volume


@dataclass(frozen=True)
class Prepared:
    """A volume as slices.

    Attributes:
        slices: float32 ``[S, 1, H, W]``.
        geometry: where they lie in the volume.
        notes: what was done beyond the settings or found odd, in plain words, without a path.
    """

    slices: Tensor
    geometry: Geometry
    notes: tuple[str, ...] = ()


def prepare(volume: Volume, p: Preprocessing) -> Prepared:
    """Scale intensities, resample in the plane, crop or pad; the distance of slices stays as it is.

    In the order of the released code: N4 if asked for; x <- (x - p1) / (p99 - p1) with the percentiles of the whole
    volume, air included, without clipping; slices resampled linearly; cropped or padded with zeros around the centre.

    Raises:
        UserError: voxels that are no numbers, or intensities without a range; the message names the file.
    """
    geometry, notes = slice_geometry(volume.grid, p)
    array, filled = _finite(volume, p)
    if p.n4:
        array = correct_bias_field(array, shrink=p.n4_shrink)
    slices = np.ascontiguousarray(geometry.to_slices(_scaled(array, volume, p)))
    if p.antialias:
        slices = _smoothed(slices, geometry)
    pixels = to_pixels(torch.from_numpy(slices), geometry)
    return Prepared(pixels[:, None], geometry, (*volume.warnings, *filled, *notes))


def prepare_label(
    classes: NDArray[np.uint8], affine: NDArray[np.float64], p: Preprocessing
) -> tuple[Tensor, NDArray[np.float64]]:
    """The label of a volume as slices, by nearest neighbour, on the pixels of `prepare`.

    Returns:
        uint8 ``[S, H, W]``; and per class, 0 to the largest of the label, the share of its voxels that lie outside the
        slices (float64; 0 where it has none).
    """
    x, y, z = classes.shape
    geometry, _ = slice_geometry(Grid((x, y, z), affine), p)
    slices = np.ascontiguousarray(geometry.to_slices(classes))
    return to_nearest_pixels(torch.from_numpy(slices), geometry), share_outside(slices, geometry)


def share_outside(slices: NDArray[np.uint8], geometry: Geometry) -> NDArray[np.float64]:
    """Per class, 0 to the largest of the label, the share of its voxels that no pixel of the slices shows.

    Args:
        slices: classes ``[S, rows, columns]``, by `Geometry.to_slices`.
        geometry: where the slices lie.
    """
    rows, columns = (is_inside(geometry, axis) for axis in (0, 1))
    total = np.bincount(slices.ravel())
    kept = np.bincount(slices[:, rows][:, :, columns].ravel(), minlength=len(total))
    lost = 1 - kept / np.maximum(total, 1)
    lost[total == 0] = 0
    return np.asarray(lost)


def _finite(volume: Volume, p: Preprocessing) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    finite = np.isfinite(volume.array)
    if finite.all():
        return volume.array, ()
    count = finite.size - int(np.count_nonzero(finite))
    if not p.fill_nan or not finite.any():
        raise UserError(
            f"{volume.image.path}: {count:,} of {finite.size:,} voxels are no finite numbers; expected none. Repair "
            "the image, or let them be filled with its smallest value (fill_nan)"
        )
    filled = np.where(finite, volume.array, volume.array[finite].min())
    return filled, (f"{count:,} voxels that are no finite numbers were filled with the smallest value of the image",)


def _scaled(array: NDArray[np.float32], volume: Volume, p: Preprocessing) -> NDArray[np.float32]:
    low, high = np.percentile(array, p.percentiles)
    if not high > low:
        raise UserError(
            f"{volume.image.path}: percentiles {p.percentiles[0]:g} and {p.percentiles[1]:g} of its intensities are "
            f"both {low:g}, so there is nothing to scale by; expected more than one grey value. Is it empty?"
        )
    return np.asarray((array - np.float32(low)) / np.float32(high - low))


def _smoothed(slices: NDArray[np.float32], geometry: Geometry) -> NDArray[np.float32]:
    """Without this, making pixels larger would pick single voxels with their noise."""
    sigma = [max(0.0, (step - 1) / 2) for step in geometry.step]
    if not any(sigma):
        return slices
    from scipy.ndimage import gaussian_filter  # noqa: PLC0415

    return np.asarray(gaussian_filter(slices, (0.0, *sigma), mode="nearest"), dtype=np.float32)
