"""One mask against its truth, with MONAI's metrics on the native grid."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from monai.metrics.hausdorff_distance import compute_hausdorff_distance
from monai.metrics.surface_dice import compute_surface_dice
from monai.metrics.surface_distance import compute_average_surface_distance
from numpy.typing import NDArray

from contrastive_core.errors import UserError
from ssl_medseg.scoring.records import Found, StructureScore

Classes = NDArray[np.uint8]


def measure(
    predicted: Classes,
    truth: Classes,
    *,
    structures: Sequence[str],
    spacing: tuple[float, float, float],
    tolerance: float,
    volumes: bool = True,
) -> tuple[StructureScore, ...]:
    """Scores of every structure of one case.

    Distances are those of MONAI (HD95: the larger of the two directed 95th percentiles; average surface distance:
    symmetric; surface Dice), between the surface voxels of the masks. A structure that is missing on one side or both
    has no distances; `StructureScore` says which.

    Args:
        predicted: ``[X, Y, Z]``, 0 the background, structure i + 1 under the i-th name.
        truth: the same.
        structures: their names.
        spacing: of the voxels along the three axes, in the unit of the distances: mm, or 1 for distances in voxels.
        tolerance: of the surface Dice, in the same unit.
        volumes: whether `spacing` is in mm, so that volumes in mL mean something.

    Raises:
        UserError: the shapes differ.
    """
    if predicted.shape != truth.shape:
        raise UserError(f"the mask has {predicted.shape} voxels and its truth {truth.shape}; expected the same grid")
    counts = [(int((truth == k).sum()), int((predicted == k).sum())) for k in range(1, len(structures) + 1)]
    present = [k for k, pair in enumerate(counts, 1) if all(pair)]
    distances = dict(zip(present, _distances(predicted, truth, present, spacing, tolerance), strict=True))
    voxel_ml = float(np.prod(spacing)) / 1000
    scores = []
    for k, (name, (true, given)) in enumerate(zip(structures, counts, strict=True), 1):
        common = int(((truth == k) & (predicted == k)).sum())
        hd95, assd, surface = distances.get(k, (None, None, None))
        scores.append(
            StructureScore(
                structure=name,
                found=_found(true, given),
                dice=2 * common / (true + given) if true + given else None,
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


def _distances(
    predicted: Classes, truth: Classes, present: Sequence[int], spacing: tuple[float, float, float], tolerance: float
) -> list[tuple[float, float, float]]:
    """HD95, ASSD and surface Dice of the structures that are on both sides."""
    if not present:
        return []
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
