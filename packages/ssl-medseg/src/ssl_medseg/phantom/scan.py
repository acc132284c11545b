"""The heart in the scanner: slices across its long axis, thick, oblique, with shading and noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from contrastive_core.errors import UserError
from contrastive_core.rng import derive
from ssl_medseg.phantom.anatomy import BRIGHTNESS, Heart, draw_heart, structures

#: Structure -> label value, as in the files of ACDC.
LABELS = {"background": 0, "RV": 1, "myocardium": 2, "LV": 3}

_FIELD_OF_VIEW = 190.0  # mm
# What shares a voxel is averaged over these points of it.
_INSIDE = ((-0.25, -0.25, -0.25), (0.25, -0.25, 0.25), (-0.25, 0.25, 0.25), (0.25, 0.25, -0.25))


@dataclass(frozen=True)
class PhantomCase:
    """A volume and its truth.

    Attributes:
        name: ``patient001_frame01``.
        patient: ``patient001``.
        image: int16 ``[X, Y, Z]``.
        label: uint8 ``[X, Y, Z]``, values of `LABELS`.
        affine: ``[4, 4]``, voxels to mm, RAS+.
    """

    name: str
    patient: str
    image: NDArray[np.int16]
    label: NDArray[np.uint8]
    affine: NDArray[np.float64]


def make_case(patient: int, frame: int, *, size: int = 96, seed: int = 0) -> PhantomCase:
    """One frame of a patient: a function of its arguments alone.

    Slices are 8 to 10 mm thick across the long axis, pixels 190 mm / size within some percent, so that every affine is
    oblique and anisotropic; axes run in either direction. Both frames of a patient share heart, affine and shading.

    Args:
        patient: its number, from 1.
        frame: 1 is end-diastole, 2 end-systole.
        size: pixels along the longer side of a slice.
        seed: of the whole data set.

    Raises:
        UserError: a number out of range.
    """
    if patient < 1 or frame not in (1, 2) or size < 16:
        raise UserError(f"make_case needs patient >= 1, frame 1 or 2 and size >= 16, got {patient}, {frame} and {size}")
    rng = np.random.default_rng(derive(seed, "phantom", patient))
    hearts = draw_heart(rng)
    affine, shape = _grid(rng, hearts[0], size=size)
    brightness = np.array([value * rng.uniform(0.88, 1.12) for value in BRIGHTNESS.values()])
    shading, gain, noise = rng.normal(0, 0.16, 6), rng.uniform(250, 900), rng.uniform(0.02, 0.045)
    frame_rng = np.random.default_rng(derive(seed, "phantom", patient, frame))
    heart = hearts[frame - 1]

    label, _ = structures(_positions(affine, shape), heart)
    clean = np.mean(
        [brightness[structures(_positions(affine, shape, shift=shift), heart)[1]] for shift in _INSIDE], axis=0
    )
    clean = gaussian_filter(clean, (0.5, 0.5, 0)) * _bias(shape, shading)
    real = clean + frame_rng.normal(0, noise, shape)
    image = gain * np.hypot(real, frame_rng.normal(0, noise, shape))  # magnitude images have Rician noise
    name = f"patient{patient:03}"
    return PhantomCase(f"{name}_frame{frame:02}", name, image.round().astype(np.int16), label, affine)


def _grid(rng: np.random.Generator, heart: Heart, *, size: int) -> tuple[NDArray[np.float64], tuple[int, int, int]]:
    """The affine of a patient's scan and its numbers of voxels."""
    spacing = np.array([1, 1, 0]) * _FIELD_OF_VIEW / size * rng.uniform(0.94, 1.06)
    spacing[2] = rng.choice([8.0, 9.0, 10.0])
    shape = (size, size - int(rng.integers(1, 1 + size // 8)), 2 + int(np.ceil((heart.length + 14) / spacing[2])))
    angle = rng.normal(np.pi / 5, 0.25)
    c, s = np.cos(angle), np.sin(angle)
    # The radiographer's plane is nearly, not quite, across the long axis.
    tilt = np.linalg.qr(np.eye(3) + rng.normal(0, 0.05, (3, 3)))[0]
    tilt *= np.sign(np.diag(tilt))
    axes = tilt @ heart.axes @ np.array([[-c, s, 0], [s, c, 0], [0, 0, 1]])
    axes = axes * rng.choice([-1, 1], 3)
    affine = np.eye(4)
    affine[:3, :3] = axes * spacing
    middle = heart.base + heart.axes @ np.array([12.0, 0.0, 0.5 * heart.length - 4]) + rng.normal(0, 4, 3)
    affine[:3, 3] = middle - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine, shape


def _positions(
    affine: NDArray[np.float64], shape: tuple[int, int, int], *, shift: tuple[float, float, float] = (0, 0, 0)
) -> NDArray[np.float64]:
    """``[X, Y, Z, 3]`` in mm: the centres of the voxels, or points beside them by a share of a voxel."""
    index = np.stack(np.meshgrid(*(np.arange(n) + s for n, s in zip(shape, shift, strict=True)), indexing="ij"), -1)
    return np.asarray(index @ affine[:3, :3].T + affine[:3, 3])


def _bias(shape: tuple[int, int, int], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Smooth shading, as a coil near one side makes it: the exponential of a polynomial of degree 2."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    terms = np.stack([x, y, 0.5 * z, x * y, x * x, y * y], -1)
    return np.exp(terms @ weights)
