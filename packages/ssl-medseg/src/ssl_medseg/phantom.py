"""Generate a data set of hearts: anatomy, MR acquisition and files in the Decathlon layout.

Positions are in mm, RAS+. Sizes and directions are those of an adult: the long axis of the left ventricle points to the
left, to the front and downwards, and the right ventricle lies to its right and in front of it. Slices are thick,
oblique and perpendicular to the long axis, with shading and noise.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from contrastive_core.errors import UserError
from contrastive_core.rng import derive

__all__ = ["LABELS", "PhantomCase", "make_case", "write_phantom"]


Points = NDArray[np.float64]

#: Brightness of each tissue in a balanced steady-state free precession image, relative to the brightest.
BRIGHTNESS = {"air": 0.02, "fat": 0.95, "muscle": 0.30, "lung": 0.10, "bone": 0.45, "liver": 0.42, "myocardium": 0.34,
              "blood": 0.88, "papillary": 0.40}  # fmt: skip
TISSUES = tuple(BRIGHTNESS)
_CENTRE = np.array([-22.0, 28.0, 0.0])  # centre of the base of the left ventricle
_LONG_AXIS = np.array([-0.66, 0.54, -0.52])
_TOWARDS_RIGHT_VENTRICLE = np.array([0.70, 0.71, 0.0])


@dataclass(frozen=True)
class Heart:
    """Geometry of a heart at one time point; lengths in mm, angles in radians.

    Attributes:
        cavity: Radius of the cavity of the left ventricle at its base.
        wall: Thickness of the wall of the left ventricle.
        length: Length of the cavity from base to apex.
        right: Radius of the right ventricle at its base.
        oval: Deviation of the cavity from a circle, as a fraction of its radius.
        turn: Rotation of the oval about the long axis.
        axes: Directions as the columns of ``[3, 3]``: towards the right ventricle, perpendicular to it, and along the
            long axis to the apex.
        base: Start of the long axis.
    """

    cavity: float
    wall: float
    length: float
    right: float
    oval: float
    turn: float
    axes: NDArray[np.float64]
    base: NDArray[np.float64]


def draw_heart(rng: np.random.Generator) -> tuple[Heart, Heart]:
    """Draw the heart of a patient at end-diastole and end-systole; 25 % are dilated and 25 % have a thick wall."""
    kind = rng.choice(["normal", "normal", "dilated", "thick"])
    cavity = rng.uniform(22, 26) + (6 if kind == "dilated" else 0)
    wall = rng.uniform(8.5, 10.5) + (4 if kind == "thick" else 0)
    length, right = rng.uniform(74, 90), rng.uniform(29, 36)
    long_axis = _unit(_LONG_AXIS + rng.normal(0, 0.08, 3))
    across = _unit(np.cross(long_axis, _TOWARDS_RIGHT_VENTRICLE + rng.normal(0, 0.12, 3)))
    axes = np.stack([np.cross(across, long_axis), across, long_axis], axis=1)
    base = _CENTRE + rng.normal(0, 5, 3)
    oval, turn = rng.uniform(0.02, 0.08), rng.uniform(0, np.pi)
    diastole = Heart(cavity, wall, length, right, oval, turn, axes, base)
    squeeze = rng.uniform(0.80, 0.88) if kind == "dilated" else rng.uniform(0.62, 0.76)
    systole = Heart(
        cavity * squeeze, wall * rng.uniform(1.25, 1.45), length * 0.88, right * rng.uniform(0.74, 0.86), oval, turn,
        axes, base + 0.10 * length * long_axis,
    )  # fmt: skip
    return diastole, systole


def structures(points: Points, heart: Heart) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Determine the structure and the tissue at every point.

    Args:
        points: Positions ``[..., 3]`` in mm, RAS+.
        heart: Heart at one time point.

    Returns:
        Structures ``[...]``: 0 for none, 1 for the right ventricle, 2 for the myocardium, 3 for the left ventricle
        including the papillary muscles; and tissues ``[...]`` as indices of `TISSUES`.
    """
    u, v, w = np.moveaxis((points - heart.base) @ heart.axes, -1, 0)
    radius, angle = np.hypot(u, v), np.arctan2(v, u)
    shape = 1 + heart.oval * np.cos(2 * (angle - heart.turn))
    inside = _taper(w, heart.length) * heart.cavity * shape
    outside = _taper(w, heart.length + heart.wall) * (heart.cavity * shape + heart.wall)
    left = radius < inside
    muscle = (radius < outside) & ~left
    aside, right_taper = 0.95 * (heart.cavity + heart.wall), _taper(w, 0.86 * heart.length)
    beside = np.hypot((u - aside * right_taper) / 0.82, v / 1.12)
    right = (beside < heart.right * right_taper) & (u > 0) & ~left & ~muscle
    label = np.select([right, muscle, left], [1, 2, 3], 0).astype(np.uint8)

    tissue = _chest(points)
    # The thin wall of the right ventricle and the fat around the heart belong to no structure.
    rim = (beside < (heart.right + 3) * right_taper) & (u > 0) & (label == 0)
    coat = ((radius < outside + 5) | (beside < (heart.right + 8) * right_taper)) & (w > 0) & (label == 0)
    papillary = np.zeros_like(left)
    for where in (2.2, 4.1):
        x, y = 0.62 * inside * np.cos(where), 0.62 * inside * np.sin(where)
        papillary |= (np.hypot(u - x, v - y) < 0.17 * inside) & (w > 0.2 * heart.length) & (w < 0.7 * heart.length)
    # Above the valves lie the great vessels and the atria, as bright as the ventricles but not labelled.
    above = (w <= 0) & (w > -28) & ((radius < 0.75 * heart.cavity) | (np.hypot(u - aside, v) < 0.7 * heart.right))
    for name, where in (
        ("fat", coat), ("muscle", rim), ("blood", above | left | right), ("myocardium", muscle),
        ("papillary", papillary & left),
    ):  # fmt: skip
        tissue[where] = TISSUES.index(name)
    return label, tissue


def _chest(points: Points) -> NDArray[np.uint8]:
    """Determine the tissue outside the heart: fat and muscle of the chest wall, lungs, spine, liver."""
    x, y, z = np.moveaxis(points, -1, 0)
    tissue = np.zeros(points.shape[:-1], dtype=np.uint8)
    depth = np.hypot(x / 165, y / 115)
    lungs = np.hypot(np.hypot((np.abs(x) - 78) / 66, y / 84), (z - 35) / 120) < 1
    for name, where in (
        ("fat", depth < 1), ("muscle", depth < 0.92), ("lung", lungs),
        ("liver", (z < -45 - 0.15 * x) & (x > -40) & (depth < 0.85)), ("bone", np.hypot(x, y + 72) < 19),
    ):  # fmt: skip
        tissue[where] = TISSUES.index(name)
    return tissue


def _taper(along: Points, length: float) -> Points:
    """Return the radius of half an ellipsoid relative to that at the base; 0 above the base."""
    share = np.clip(along / length, 0, 1)
    return np.where(along > 0, np.sqrt(1 - share**2), 0.0)


def _unit(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(vector / np.linalg.norm(vector))


#: Structure -> label value, as in the files of ACDC.
LABELS = {"background": 0, "RV": 1, "myocardium": 2, "LV": 3}

_FIELD_OF_VIEW = 190.0  # mm
# The brightness of a voxel is the mean over these points in it, in voxels from its centre (partial volume).
_INSIDE = ((-0.25, -0.25, -0.25), (0.25, -0.25, 0.25), (-0.25, 0.25, 0.25), (0.25, 0.25, -0.25))


@dataclass(frozen=True)
class PhantomCase:
    """Generated volume and its label.

    Attributes:
        name: Name, such as ``patient001_frame01``.
        patient: Patient, such as ``patient001``.
        image: Voxels, int16 ``[X, Y, Z]``.
        label: Label, uint8 ``[X, Y, Z]``, with the values of `LABELS`.
        affine: Affine ``[4, 4]``, voxels to mm, RAS+.
    """

    name: str
    patient: str
    image: NDArray[np.int16]
    label: NDArray[np.uint8]
    affine: NDArray[np.float64]


def make_case(patient: int, frame: int, *, size: int = 96, seed: int = 0) -> PhantomCase:
    """Generate one frame of a patient. The result depends on the arguments only.

    Slices are 8 to 10 mm thick and nearly perpendicular to the long axis, and pixels are 190 mm / size within 6 %, so
    every affine is oblique and anisotropic. The direction of each axis is random. Both frames of a patient share heart,
    affine and shading.

    Args:
        patient: Number of the patient, counted from 1.
        frame: 1 for end-diastole, 2 for end-systole.
        size: Number of pixels along the longer side of a slice.
        seed: Seed of the whole data set.

    Raises:
        UserError: A number is out of range.
    """
    if patient < 1 or frame not in (1, 2) or size < 16:
        raise UserError(
            f"make_case: patient is {patient}, frame is {frame} and size is {size}; expected a patient of at least 1, "
            "frame 1 or 2, and a size of at least 16"
        )
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
    """Return the affine of a patient's scan and its shape."""
    spacing = np.array([1, 1, 0]) * _FIELD_OF_VIEW / size * rng.uniform(0.94, 1.06)
    spacing[2] = rng.choice([8.0, 9.0, 10.0])
    shape = (size, size - int(rng.integers(1, 1 + size // 8)), 2 + int(np.ceil((heart.length + 14) / spacing[2])))
    angle = rng.normal(np.pi / 5, 0.25)
    c, s = np.cos(angle), np.sin(angle)
    # The acquired plane is only approximately perpendicular to the long axis.
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
    """Return the centres of the voxels in mm, ``[X, Y, Z, 3]``, shifted by a fraction of a voxel."""
    index = np.stack(np.meshgrid(*(np.arange(n) + s for n, s in zip(shape, shift, strict=True)), indexing="ij"), -1)
    return np.asarray(index @ affine[:3, :3].T + affine[:3, 3])


def _bias(shape: tuple[int, int, int], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return smooth shading, as caused by a coil near one side: the exponential of a quadratic polynomial."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    terms = np.stack([x, y, 0.5 * z, x * y, x * x, y * y], -1)
    return np.exp(terms @ weights)


def write_phantom(
    folder: Path, *, patients: int = 8, frames: int = 2, labelled: int | None = None, size: int = 96, seed: int = 0
) -> Path:
    """Write the images and labels of several generated patients, and a ``dataset.json``.

    Args:
        folder: Folder for ``imagesTr``, ``labelsTr`` and ``dataset.json``.
        patients: Number of patients. Each patient is generated independently of this number.
        frames: Number of frames per patient: 1 (end-diastole) or 2 (end-diastole and end-systole).
        labelled: Number of patients with label files, starting with the first; by default all. The others are listed
            under ``unlabeled``.
        size: Number of pixels along the longer side of a slice.
        seed: Seed of the data set.

    Returns:
        Path of ``dataset.json``.

    Raises:
        UserError: A number is out of range.
    """
    known = patients if labelled is None else labelled
    if patients < 1 or frames not in (1, 2) or not 0 <= known <= patients:
        raise UserError(
            f"write_phantom: patients is {patients}, frames is {frames} and labelled is {labelled}; expected at least "
            "one patient, 1 or 2 frames, and no more labelled patients than patients"
        )
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    training: list[dict[str, str]] = []
    unlabelled: list[str] = []
    for patient in range(1, patients + 1):
        for frame in range(1, frames + 1):
            case = make_case(patient, frame, size=size, seed=seed)
            image, label = f"imagesTr/{case.name}.nii.gz", f"labelsTr/{case.name}.nii.gz"
            _write(folder / image, case.image, case)
            if patient <= known:
                _write(folder / label, case.label, case)
                training.append({"image": f"./{image}", "label": f"./{label}"})
            else:
                unlabelled.append(f"./{image}")
    content: dict[str, Any] = {
        "name": "Phantom",
        "description": "generated short-axis cine MRI of hearts, end-diastole and end-systole",
        "tensorImageSize": "3D",
        "modality": {"0": "MRI"},
        "labels": {str(value): name for name, value in LABELS.items()},
        "numTraining": len(training),
        "numTest": 0,
        "training": training,
        "test": [],
    }
    if unlabelled:
        content["unlabeled"] = unlabelled
    file = folder / "dataset.json"
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return file


def _write(path: Path, array: NDArray[np.int16] | NDArray[np.uint8], case: PhantomCase) -> None:
    image = nib.Nifti1Image(array, case.affine)
    image.set_qform(case.affine, code=1)
    image.set_sform(case.affine, code=1)
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, path)
