"""Volumes as files: a smooth random image with three structures, in any geometry."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

Affine = NDArray[np.float64]


def affine(
    spacing: tuple[float, float, float],
    *,
    angles: tuple[float, float, float] = (0, 0, 0),
    letters: str = "RAS",
    origin: tuple[float, float, float] = (-80.0, 30.0, 12.5),
) -> Affine:
    """Build an affine with spacing in mm, rotated by Euler angles in degrees from axes along the letters."""
    axes = nibabel.orientations.axcodes2ornt(letters)
    turned = np.zeros((3, 3))
    for column, (row, sign) in enumerate(axes):
        turned[int(row), column] = sign
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ turned @ np.diag(spacing)
    matrix[:3, 3] = origin
    return matrix


def phantom(shape: tuple[int, int, int], *, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Noise with three nested ellipsoids off centre, and their classes."""
    centred = [
        np.linspace(-1, 1, n).reshape([-1 if a == axis else 1 for a in range(3)]) for axis, n in enumerate(shape)
    ]
    x, y, z = centred
    radius = np.sqrt((x - 0.1) ** 2 + (y + 0.05) ** 2 + 0.3 * z**2)
    classes = np.select([radius < 0.2, radius < 0.35, radius < 0.55], [3, 2, 1], 0).astype(np.uint8)
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.0)
    return (100 + 60 * classes + 40 * noise).astype(np.float32), classes


def write_nifti(
    path: Path,
    array: NDArray,
    matrix: Affine,
    *,
    sform: int = 1,
    qform: int = 1,
    units: tuple[str, str] = ("mm", "sec"),
) -> Path:
    """Write a NIfTI file with these codes."""
    image = nibabel.Nifti1Image(array, matrix)
    image.set_sform(matrix, code=sform)
    image.set_qform(matrix, code=qform)
    image.header.set_xyzt_units(*units)
    nibabel.save(image, path)
    return path


def dice(first: NDArray, second: NDArray) -> list[float]:
    """Return the Dice of every class that either has, without the background."""
    classes = sorted({*np.unique(first), *np.unique(second)} - {0})
    return [2 * np.sum((first == c) & (second == c)) / (np.sum(first == c) + np.sum(second == c)) for c in classes]
