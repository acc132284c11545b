"""A chest with a heart in it, as functions of where one looks: positions in mm, RAS+, give tissues and structures.

Sizes and directions are those of an adult: the long axis of the left ventricle points to the left, to the front and
down, and the right ventricle lies to the right and in front of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]

#: Brightness of each tissue in a balanced steady-state free precession image, blood being about 1.
BRIGHTNESS = {"air": 0.02, "fat": 0.95, "muscle": 0.30, "lung": 0.10, "bone": 0.45, "liver": 0.42, "myocardium": 0.34,
              "blood": 0.88, "papillary": 0.40}  # fmt: skip
TISSUES = tuple(BRIGHTNESS)
_CENTRE = np.array([-22.0, 28.0, 0.0])  # of the base of the left ventricle
_LONG_AXIS = np.array([-0.66, 0.54, -0.52])
_TOWARDS_RIGHT_VENTRICLE = np.array([0.70, 0.71, 0.0])


@dataclass(frozen=True)
class Heart:
    """A heart at one moment; lengths in mm, angles in radians.

    Attributes:
        cavity: radius of the left ventricle's cavity at its base.
        wall: thickness of its wall.
        length: from the base to the apex of the cavity.
        right: radius of the right ventricle at its base.
        oval: by how much of its radius the cavity differs from a circle.
        turn: of the oval about the long axis.
        axes: ``[3, 3]``, columns: towards the right ventricle, across, along the long axis to the apex.
        base: where the long axis begins.
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
    """A patient's heart at end-diastole and at end-systole; one in four is dilated, one in four thick-walled."""
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
    """Structure and tissue at every point.

    Args:
        points: ``[..., 3]`` in mm, RAS+.
        heart: at this moment.

    Returns:
        Structures ``[...]``: 0 none, 1 right ventricle, 2 myocardium, 3 left ventricle (papillary muscles belong to
        it); tissues ``[...]`` as numbers of `TISSUES`.
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
    # Above the valves: the vessels and atria, bright as the ventricles are, but no structure of the task.
    above = (w <= 0) & (w > -28) & ((radius < 0.75 * heart.cavity) | (np.hypot(u - aside, v) < 0.7 * heart.right))
    for name, where in (
        ("fat", coat), ("muscle", rim), ("blood", above | left | right), ("myocardium", muscle),
        ("papillary", papillary & left),
    ):  # fmt: skip
        tissue[where] = TISSUES.index(name)
    return label, tissue


def _chest(points: Points) -> NDArray[np.uint8]:
    """Everything but the heart: fat and muscle of the wall, lungs, spine, liver."""
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
    """Radius as a share of that at the base: half an ellipsoid, and nothing above it."""
    share = np.clip(along / length, 0, 1)
    return np.where(along > 0, np.sqrt(1 - share**2), 0.0)


def _unit(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(vector / np.linalg.norm(vector))
