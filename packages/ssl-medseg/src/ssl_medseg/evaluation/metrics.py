"""Metrics of one mask against its reference, computed by MONAI on the native grid."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from contrastive_core.errors import UserError
from ssl_medseg.evaluation.results import Found, StructureScore

Classes = NDArray[np.uint8]


def class_dice(prediction: NDArray[Any], truth: NDArray[Any], *, classes: int) -> NDArray[np.float64]:
    """Compute the Dice of every class over all voxels, as the evaluation of the paper does.

        2 |P and T| / (|P| + |T|)

    Args:
        prediction: Classes, of any shape.
        truth: Classes of the same shape.
        classes: Number of classes C, the background included.

    Returns:
        Float64 [C]; 0 for a class that only one of them contains, NaN for a class that neither contains.
    """
    both, predicted, true = _overlap(prediction, truth, classes)
    with np.errstate(invalid="ignore"):
        return np.asarray(2 * both / (predicted + true))


def measure(
    predicted: Classes,
    truth: Classes,
    *,
    structures: Sequence[str],
    spacing: tuple[float, float, float],
    tolerance: float,
    volumes: bool = True,
) -> tuple[StructureScore, ...]:
    """Score every structure of one case.

    Distances are those of MONAI (HD95: the larger of the two directed 95th percentiles; average surface distance:
    symmetric; surface Dice), between the surface voxels of the masks. A structure that is missing in one or both masks
    has no distances; `StructureScore` tells which.

    Args:
        predicted: Classes ``[X, Y, Z]``: 0 the background, i + 1 the i-th structure.
        truth: Reference classes of the same shape.
        structures: Names of the structures.
        spacing: Spacing of the voxels along the three axes, in the unit of the distances: mm, or 1 for voxels.
        tolerance: Tolerance of the surface Dice, in the same unit.
        volumes: Whether `spacing` is in mm, so that volumes in mL are defined.

    Raises:
        UserError: The shapes differ.
    """
    if predicted.shape != truth.shape:
        raise UserError(f"the mask has {predicted.shape} voxels and its truth {truth.shape}; expected the same grid")
    both, sizes, true_sizes = (x.tolist() for x in _overlap(predicted, truth, len(structures) + 1))
    present = [k for k in range(1, len(structures) + 1) if sizes[k] and true_sizes[k]]
    distances = dict(zip(present, _distances(predicted, truth, present, spacing, tolerance), strict=True))
    voxel_ml = float(np.prod(spacing)) / 1000
    scores = []
    for k, name in enumerate(structures, 1):
        true, given = true_sizes[k], sizes[k]
        hd95, assd, surface = distances.get(k, (None, None, None))
        scores.append(
            StructureScore(
                structure=name,
                found=_found(true, given),
                dice=2 * both[k] / (true + given) if true + given else None,
                hd95=hd95,
                assd=assd,
                surface_dice=surface,
                truth_voxels=true,
                predicted_voxels=given,
                truth_ml=true * voxel_ml if volumes else None,
                predicted_ml=given * voxel_ml if volumes else None,
                error_ml=(given - true) * voxel_ml if volumes and (true or given) else None,
                error_percent=100 * (given - true) / true if true else None,
            )
        )
    return tuple(scores)


def _overlap(prediction: NDArray[Any], truth: NDArray[Any], classes: int) -> tuple[NDArray[np.int64], ...]:
    """Count the voxels of every class in both, in the prediction and in the truth: three arrays [C]."""
    joint = np.bincount(truth.ravel().astype(np.int64) * classes + prediction.ravel(), minlength=classes**2)
    table = joint.reshape(classes, classes)
    return np.diag(table), table.sum(0), table.sum(1)


def _distances(
    predicted: Classes, truth: Classes, present: Sequence[int], spacing: tuple[float, float, float], tolerance: float
) -> list[tuple[float, float, float]]:
    """Compute HD95, ASSD and surface Dice of the structures that both masks contain."""
    if not present:
        return []
    # Here, not above: importing MONAI takes seconds, which Dice need not wait for.
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance  # noqa: PLC0415
    from monai.metrics.surface_dice import compute_surface_dice  # noqa: PLC0415
    from monai.metrics.surface_distance import compute_average_surface_distance  # noqa: PLC0415

    # Far from every structure there is nothing to measure; one voxel around them keeps their surfaces as they are.
    box = _box((predicted > 0) | (truth > 0))
    masks = [
        torch.from_numpy(np.stack([volume[box] == k for k in present])[None].astype(np.float32))
        for volume in (predicted, truth)
    ]
    # The background is not among these channels, so all of them are to be included.
    ours, true = masks
    mm = list(spacing)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of MONAI about its own calls
        hd95 = compute_hausdorff_distance(ours, true, include_background=True, percentile=95, spacing=mm)
        assd = compute_average_surface_distance(ours, true, include_background=True, symmetric=True, spacing=mm)
        surface = compute_surface_dice(ours, true, [tolerance] * len(present), include_background=True, spacing=mm)
    return [(float(h), float(a), float(s)) for h, a, s in zip(hd95[0], assd[0], surface[0], strict=True)]


def _box(inside: NDArray[np.bool_]) -> tuple[slice, ...]:
    found = []
    for axis in range(inside.ndim):
        where = np.flatnonzero(inside.any(axis=tuple(a for a in range(inside.ndim) if a != axis)))
        found.append(slice(max(0, int(where[0]) - 1), int(where[-1]) + 2))
    return tuple(found)


def _found(true: int, given: int) -> Found:
    if true and given:
        return "both"
    if true:
        return "truth only"
    return "prediction only" if given else "neither"
