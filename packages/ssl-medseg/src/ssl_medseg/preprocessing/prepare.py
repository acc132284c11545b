"""Prepare a volume as slices for the network, and restore the network's output to the volume's grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from contrastive_core.errors import UserError
from contrastive_core.text import several
from ssl_medseg.io.volume import Volume, import_extra
from ssl_medseg.preprocessing.geometry import (
    Geometry,
    is_inside,
    slice_geometry,
    to_nearest_pixels,
    to_pixels,
    to_voxels,
)
from ssl_medseg.preprocessing.settings import Preprocessing

_MOSTLY, _NEARLY_ALL = 0.9, 0.999
_LEAST_AREA = 0.5
"""Share of a structure's area that must be left after resampling; less is reported."""
_LEVELS = (50, 50, 50, 50)
_THRESHOLD = 0.001


def correct_bias_field(array: NDArray[np.float32], *, shrink: int) -> NDArray[np.float32]:
    """A volume divided by its estimated bias field.

    Four levels of up to 50 iterations, convergence at 0.001, without a mask, as in the released code (with
    `shrink` 1). N4 works with logarithms, so voxels at or below 0 take no part in the estimate.

    Args:
        array: ``[X, Y, Z]``.
        shrink: the field is estimated on every n-th voxel along each axis that has enough of them; it is smooth, so
            that little is lost, and evaluated on all voxels.
    """
    sitk = import_extra("SimpleITK", extra="simpleitk", needed_for="N4 bias field correction")
    image = sitk.GetImageFromArray(np.ascontiguousarray(array, dtype=np.float32))
    factors = [max(1, min(shrink, n // 16)) for n in image.GetSize()]
    small = sitk.Shrink(image, factors)
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetMaximumNumberOfIterations(_LEVELS)
    n4.SetConvergenceThreshold(_THRESHOLD)
    n4.Execute(small)
    field = sitk.GetArrayFromImage(sitk.Exp(n4.GetLogBiasFieldAsImage(image)))
    return np.asarray(array / field, dtype=np.float32)


@dataclass(frozen=True)
class Prepared:
    """A volume as slices.

    Attributes:
        slices: float32 ``[S, C, H, W]``, C channels.
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
    Every channel is treated on its own.

    Raises:
        UserError: voxels that are no numbers, or intensities without a range; the message names the file. Other
            channels than the settings are for.
    """
    if len(volume.channels) != len(p.channels):
        raise UserError(
            f"{volume.image.path}: has {several(len(volume.channels), 'channel')} ({', '.join(volume.channels)}); "
            f"expected {len(p.channels)} ({', '.join(p.channels)}), as in training"
        )
    if p.spacing is not None and not volume.grid.size_known:
        raise UserError(
            f"{volume.image.path}: the header does not state the size of a voxel, and pixels are to be resampled to "
            f"{p.spacing[0]:g} mm; expected a size. State it with --voxel-size X,Y,Z in mm along the axes of the file"
        )
    geometry, notes = slice_geometry(volume.grid, p)
    pixels, filled = [], []
    for image, array in zip(volume.image.channels, volume.channels.values(), strict=True):
        source = f"{image.path}{f': channel {image.name}' if volume.others and image.name else ''}"
        finite, remarks = _finite(array, p, source)
        if p.n4:
            finite = correct_bias_field(finite, shrink=p.n4_shrink)
        slices = np.ascontiguousarray(geometry.to_slices(_scaled(finite, p, source)))
        if p.antialias:
            slices = _smoothed(slices, geometry)
        pixels.append(to_pixels(torch.from_numpy(slices), geometry))
        filled += [f"{image.name}: {remark}" if volume.others else remark for remark in remarks]
    return Prepared(torch.stack(pixels, 1), geometry, (*volume.warnings, *filled, *notes))


def prepare_label(classes: NDArray[np.uint8], geometry: Geometry) -> tuple[Tensor, NDArray[np.float64]]:
    """The label of a volume as slices, by nearest neighbour.

    Args:
        classes: ``[X, Y, Z]``, on the grid of the volume.
        geometry: Of the volume's slices.

    Returns:
        uint8 ``[S, H, W]``; and per class, 0 to the largest of the label, the share of its voxels that lie outside the
        slices (float64; 0 where it has none).
    """
    slices = np.ascontiguousarray(geometry.to_slices(classes))
    return to_nearest_pixels(torch.from_numpy(slices), geometry), share_outside(slices, geometry)


def erased_structures(classes: NDArray[np.uint8], pixels: Tensor, geometry: Geometry) -> dict[int, tuple[int, int]]:
    """Structures that resampling removes from the slices, in whole or for the most part.

    Args:
        classes: ``[X, Y, Z]``, the label.
        pixels: ``[S, H, W]``, what `prepare_label` made of it.
        geometry: Of the slices.

    Returns:
        Class -> voxels that the slices show and pixels that are left, of every structure of which less than half of the
        area is left.
    """
    inside = [is_inside(geometry, axis) for axis in (0, 1)]
    shown = np.bincount(geometry.to_slices(classes)[:, inside[0]][:, :, inside[1]].ravel(), minlength=256)
    left = np.bincount(pixels.numpy().ravel(), minlength=256)
    area = geometry.step[0] * geometry.step[1]
    return {
        number: (int(shown[number]), int(left[number]))
        for number in range(1, 256)
        if shown[number] and left[number] * area < _LEAST_AREA * shown[number]
    }


def erased_words(name: str, voxels: int, pixels: int) -> str:
    """``seed: 0 pixels of 2 voxels are left``."""
    return f"{name}: {pixels:,} pixels of {voxels:,} voxels are left"


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


def _finite(array: NDArray[np.float32], p: Preprocessing, source: str) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    finite = np.isfinite(array)
    if finite.all():
        return array, ()
    count = finite.size - int(np.count_nonzero(finite))
    if not p.fill_nan or not finite.any():
        raise UserError(
            f"{source}: {count:,} of {finite.size:,} voxels are no finite numbers; expected none. Repair "
            "the image, or let them be filled with its smallest value (fill_nan)"
        )
    filled = np.where(finite, array, array[finite].min())
    return filled, (f"{count:,} voxels that are no finite numbers were filled with the smallest value of the image",)


def _scaled(array: NDArray[np.float32], p: Preprocessing, source: str) -> NDArray[np.float32]:
    low, high = np.percentile(array, p.percentiles)
    if not high > low:
        most = float(np.mean(array == low))
        raise UserError(
            f"{source}: percentiles {p.percentiles[0]:g} and {p.percentiles[1]:g} of its intensities are "
            f"the same; {nothing_to_scale(float(low), most)}"
        )
    return np.asarray((array - np.float32(low)) / np.float32(high - low))


def nothing_to_scale(value: float, share: float) -> str:
    """Clause about a volume most of whose voxels have one value, with what to do.

    >>> nothing_to_scale(0.0, 0.992)
    '99.2 % of the voxels are 0: train with a higher percentile, such as --high 99.92'
    """
    if share >= 1:
        return f"all voxels are {value:g}: the image is empty. Export it again, or leave the case out"
    if share > _NEARLY_ALL:
        return (
            f"all but {100 * (1 - share):.2g} % of the voxels are {value:g}: the image holds next to nothing. Export "
            "it again, or leave the case out"
        )
    if share < _MOSTLY:
        return f"both percentiles are {value:g}; expected more than one grey value"
    high = 100 - 10 * (1 - share)
    return f"{100 * share:.3g} % of the voxels are {value:g}: train with a higher percentile, such as --high {high:.4g}"


def _smoothed(slices: NDArray[np.float32], geometry: Geometry) -> NDArray[np.float32]:
    """Without this, making pixels larger would pick single voxels with their noise."""
    sigma = [max(0.0, (step - 1) / 2) for step in geometry.step]
    if not any(sigma):
        return slices
    from scipy.ndimage import gaussian_filter  # noqa: PLC0415

    return np.asarray(gaussian_filter(slices, (0.0, *sigma), mode="nearest"), dtype=np.float32)


def restore(probabilities: Tensor, geometry: Geometry) -> NDArray[np.float32]:
    """Probabilities of all slices of a volume on the volume's own grid.

    Linear interpolation between pixels, as MONAI's ``Invertd`` does it; where a volume reaches beyond its slices by
    a pixel or more it is background.

    Args:
        probabilities: ``[S, C, H, W]``, of which class 0 is the background.
        geometry: of the slices.

    Returns:
        Float32 ``[C, X, Y, Z]`` in the file's own order of axes.
    """
    native = restore_slices(probabilities, geometry).float().cpu().numpy()
    return np.stack([place(native[:, c], geometry) for c in range(native.shape[1])])


def restore_slices(probabilities: Tensor, geometry: Geometry) -> Tensor:
    """Probabilities of some slices on the pixels their volume was stored with.

    Slices do not depend on each other, so that a large volume is restored a few at a time.

    Args:
        probabilities: ``[N, C, H, W]``, of which class 0 is the background.
        geometry: of their volume.

    Returns:
        ``[N, C, rows, columns]``, rows and columns being voxels of the volume.
    """
    native = to_voxels(probabilities, geometry)
    # Between the outermost pixel and the next, which is not there, a voxel has part of the weight: it is made whole.
    shown = to_voxels(torch.ones_like(probabilities[:1, 0]), geometry)
    native /= shown.clamp_min(torch.finfo(shown.dtype).tiny)
    native[:, 0] += shown == 0
    return native


def place(slices: NDArray[Any], geometry: Geometry) -> NDArray[Any]:
    """Slices ``[S, rows, columns]`` of a volume's own voxels as the volume ``[X, Y, Z]``."""
    volume = np.empty(geometry.shape, dtype=slices.dtype)
    geometry.to_slices(volume)[...] = slices
    return volume
