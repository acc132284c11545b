"""A label brought onto the grid of its image, and its values to whole numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.processing import resample_from_to
from numpy.typing import NDArray

from contrastive_core.errors import UserError
from ssl_medseg.data import ImageFile, LabelMap
from ssl_medseg.volumes import Grid, grid_difference, read_label_values, read_volume
from ssl_medseg.volumes.mask import write_on_grid


def repair_label(
    image: ImageFile, path: Path, labels: LabelMap | None, *, fractions: bool, grid: bool
) -> dict[str, str]:
    """Repair a label in its place.

    Args:
        image: its image.
        path: of the label.
        labels: what its values may be; None: any.
        fractions: make values that are no whole numbers the nearest one.
        grid: bring it onto the image's grid by nearest neighbour; 0 where it does not reach.

    Returns:
        What was done -> in words; empty if there was nothing to do.

    Raises:
        UserError: it cannot be done, or would lose a structure; then the label stays as it is.
    """
    array, affine = read_label_values(path)
    like, done = ImageFile(path), dict[str, str]()
    if fractions and np.issubdtype(array.dtype, np.floating):
        array, words = _whole(array, path, labels)
        done |= {"fractions": words} if words else {}
    if grid:
        target = read_volume(image).grid
        x, y, z = array.shape
        if difference := grid_difference(Grid((x, y, z), affine), target):
            array, kept = _onto(array, Grid((x, y, z), affine), target, path)
            like = image
            done["grid"] = f"resampled onto the image by nearest neighbour ({difference}): {kept}"
    if done:
        write_on_grid(_small(array), read_volume(like), path)
    return done


def _whole(array: NDArray[Any], path: Path, labels: LabelMap | None) -> tuple[NDArray[Any], str]:
    if not np.isfinite(array).all():
        raise UserError(f"{path}: has voxels that are no finite numbers, expected label values; draw it again")
    nearest = np.rint(array)
    off = np.abs(array - nearest)
    unknown = [] if labels is None else sorted(set(np.unique(nearest).tolist()) - set(labels.values))
    if unknown:
        raise UserError(
            f"{path}: rounded it would hold {', '.join(f'{v:g}' for v in unknown[:8])}, which the label map lacks; "
            "correct the label or the map"
        )
    changed = int(np.count_nonzero(off))
    words = f"rounded in {changed:,} voxels, by up to {off.max():.3g}" if changed else ""
    return nearest.astype(np.int32), words


def _onto(array: NDArray[Any], own: Grid, target: Grid, path: Path) -> tuple[NDArray[Any], str]:
    if not (own.spacing_known and target.spacing_known):
        raise UserError(f"{path}: nothing says where its voxels or its image's lie (an identity matrix as affine)")
    kind = array.dtype if np.issubdtype(array.dtype, np.floating) else _small(array).dtype
    source = nibabel.Nifti1Image(array.astype(kind), own.affine)
    moved = resample_from_to(source, (target.shape, target.affine), order=0, mode="constant", cval=0)
    result = np.asarray(moved.dataobj).astype(kind)
    voxel, new_voxel = (abs(float(np.linalg.det(grid.affine[:3, :3]))) / 1000 for grid in (own, target))
    words = []
    for value in np.unique(array[array != 0]).tolist():
        before, after = np.sum(array == value) * voxel, np.sum(result == value) * new_voxel
        if not after:
            raise UserError(f"{path}: nothing of its value {value:g} would lie on the image; is it another's label?")
        words.append(f"value {value:g} {before:.3g} mL before, {after:.3g} mL after")
    return result, ", ".join(words) or "empty before and after"


def _small(array: NDArray[Any]) -> NDArray[Any]:
    """In the smallest of uint8, int16 and int32 that holds it; fractions stay as they are."""
    if np.issubdtype(array.dtype, np.floating):
        return array
    low, high = (int(array.min()), int(array.max())) if array.size else (0, 0)
    for kind in (np.uint8, np.int16):
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            return array.astype(kind)
    return array.astype(np.int32)
