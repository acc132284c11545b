"""Metrics of a mask against its reference on the native grid.

Surface metrics are computed by MONAI. It assumes that the axes of the grid are perpendicular; distances in a sheared
grid, as of CT with a tilted gantry, are computed here.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion
from scipy.spatial import cKDTree
from torch import Tensor

from contrastive_core.errors import UserError
from ssl_medseg.evaluation.results import Presence, StructureScore

Classes = NDArray[np.uint8]
_PERPENDICULAR = 1e-3  # largest cosine between axes that count as perpendicular; distances are then right to 0.1 %


def class_dice(prediction: NDArray[Any] | Tensor, truth: NDArray[Any] | Tensor, *, classes: int) -> NDArray[np.float64]:
    """Compute the Dice coefficient of every class over all voxels, as in the paper's evaluation.

        2 |P and T| / (|P| + |T|)

    Args:
        prediction: Class numbers, of any shape, as an array or a tensor on the CPU.
        truth: Class numbers of the same shape.
        classes: Number of classes C, including the background.

    Returns:
        Float64 ``[C]``: 0 for a class that only one of the two contains, NaN for a class that neither contains.
    """
    both, predicted, true = _overlap(np.asarray(prediction), np.asarray(truth), classes)
    with np.errstate(invalid="ignore"):
        return np.asarray(2 * both / (predicted + true))


def measure(
    predicted: Classes,
    truth: Classes,
    *,
    structures: Sequence[str],
    axes: NDArray[np.float64] | None,
    tolerance: float,
) -> tuple[StructureScore, ...]:
    """Score every structure of one case.

    Distances are measured between the surface voxels of the masks: HD95 (the larger of the two directed 95th
    percentiles), ASSD (average symmetric surface distance) and surface Dice. In an image of one slice, these are the
    pixels of the outlines. A structure that is absent from one or both masks has no distances; `StructureScore.found`
    tells in which masks it is present.

    Args:
        predicted: Class numbers ``[X, Y, Z]``: 0 for the background, i + 1 for structure i of `structures`.
        truth: Reference class numbers of the same shape.
        structures: Names of the structures.
        axes: Steps in mm from a voxel to the next one along each axis, as the columns of ``[3, 3]``; they need not be
            perpendicular. None: measure distances in voxels, and no volumes.
        tolerance: Tolerance of the surface Dice, in the unit of the distances.

    Returns:
        Scores of the structures, in their order.

    Raises:
        UserError: The shapes differ.
    """
    if predicted.shape != truth.shape:
        raise UserError(
            f"the mask has the shape {predicted.shape} and its reference {truth.shape}; expected equal shapes"
        )
    both, sizes, true_sizes = (x.tolist() for x in _overlap(predicted, truth, len(structures) + 1))
    present = [k for k in range(1, len(structures) + 1) if sizes[k] and true_sizes[k]]
    steps = np.eye(3) if axes is None else axes
    distances = dict(zip(present, _distances(predicted, truth, present, steps, tolerance), strict=True))
    voxel_ml = None if axes is None else abs(float(np.linalg.det(axes))) / 1000
    scores = []
    for k, name in enumerate(structures, 1):
        true, size = true_sizes[k], sizes[k]
        hd95, assd, surface = distances.get(k, (None, None, None))
        scores.append(
            StructureScore(
                structure=name,
                found=_presence(true, size),
                dice=2 * both[k] / (true + size) if true + size else None,
                hd95=hd95,
                assd=assd,
                surface_dice=surface,
                truth_voxels=true,
                predicted_voxels=size,
                truth_ml=true * voxel_ml if voxel_ml else None,
                predicted_ml=size * voxel_ml if voxel_ml else None,
                error_ml=(size - true) * voxel_ml if voxel_ml and (true or size) else None,
                error_percent=100 * (size - true) / true if true else None,
            )
        )
    return tuple(scores)


def _overlap(prediction: NDArray[Any], truth: NDArray[Any], classes: int) -> tuple[NDArray[np.int64], ...]:
    """Count the voxels of every class in the intersection, the prediction and the truth; three arrays ``[C]``."""
    joint = np.bincount(truth.ravel().astype(np.int64) * classes + prediction.ravel(), minlength=classes**2)
    table = joint.reshape(classes, classes)
    return np.diag(table), table.sum(0), table.sum(1)


def _distances(
    predicted: Classes, truth: Classes, present: Sequence[int], axes: NDArray[np.float64], tolerance: float
) -> list[tuple[float, float, float]]:
    """Compute HD95, ASSD and surface Dice of the structures that both masks contain."""
    if not present:
        return []
    # Cropping to the structures saves time; a margin of one voxel leaves their surfaces unchanged.
    box = _box((predicted > 0) | (truth > 0))
    # In three dimensions, every voxel of a single slice would be on the surface. MONAI needs at least two axes.
    flat = [axis for axis, voxels in enumerate(predicted.shape) if voxels == 1][:1]
    steps = axes[:, [axis for axis in range(3) if axis not in flat]]
    ours, true = (
        np.stack([np.squeeze(volume[box], tuple(flat)) == k for k in present]) for volume in (predicted, truth)
    )
    spacing = np.linalg.norm(steps, axis=0)
    cosines = (steps.T @ steps) / np.outer(spacing, spacing) - np.eye(len(spacing))
    if np.abs(cosines).max() > _PERPENDICULAR:
        return [_sheared_distances(one, other, steps, tolerance) for one, other in zip(ours, true, strict=True)]
    return _monai_distances(
        torch.from_numpy(ours).float()[None], torch.from_numpy(true).float()[None], spacing, tolerance
    )


def _monai_distances(
    ours: Tensor, true: Tensor, spacing: NDArray[np.float64], tolerance: float
) -> list[tuple[float, float, float]]:
    """Compute the distances of masks, ``[1, structures, ...]``, in a grid with perpendicular axes."""
    # Imported here because MONAI takes seconds to import and Dice does not need it.
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance  # noqa: PLC0415
    from monai.metrics.surface_dice import compute_surface_dice  # noqa: PLC0415
    from monai.metrics.surface_distance import compute_average_surface_distance  # noqa: PLC0415

    mm, tolerances = spacing.tolist(), [tolerance] * ours.shape[1]
    # None of these channels is the background, so all must be included.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # MONAI warns about calls within its own code
        hd95 = compute_hausdorff_distance(ours, true, include_background=True, percentile=95, spacing=mm)
        assd = compute_average_surface_distance(ours, true, include_background=True, symmetric=True, spacing=mm)
        surface = compute_surface_dice(ours, true, tolerances, include_background=True, spacing=mm)
    return [(float(h), float(a), float(s)) for h, a, s in zip(hd95[0], assd[0], surface[0], strict=True)]


def _sheared_distances(
    ours: NDArray[np.bool_], true: NDArray[np.bool_], axes: NDArray[np.float64], tolerance: float
) -> tuple[float, float, float]:
    """Compute the distances of one structure from the positions of its surface voxels, with steps ``[3, axes]``."""
    ours_mm, true_mm = (np.argwhere(mask & ~binary_erosion(mask)) @ axes.T for mask in (ours, true))
    there, back = cKDTree(true_mm).query(ours_mm)[0], cKDTree(ours_mm).query(true_mm)[0]
    both = np.concatenate([there, back])
    hd95 = max(float(np.percentile(way, 95)) for way in (there, back))
    return hd95, float(both.mean()), float((both <= tolerance).mean())


def _box(inside: NDArray[np.bool_]) -> tuple[slice, ...]:
    slices = []
    for axis in range(inside.ndim):
        indices = np.flatnonzero(inside.any(axis=tuple(a for a in range(inside.ndim) if a != axis)))
        slices.append(slice(max(0, int(indices[0]) - 1), int(indices[-1]) + 2))
    return tuple(slices)


def _presence(true: int, size: int) -> Presence:
    if true and size:
        return "both"
    if true:
        return "truth only"
    return "prediction only" if size else "neither"
