"""What is known of each label after looking at it once beside its image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contrastive_core.errors import UserError
from ssl_medseg.checking.image_facts import digest_of
from ssl_medseg.data.files import without_path
from ssl_medseg.data.label_map import ROUNDING, LabelMap
from ssl_medseg.preprocessing.geometry import slice_axis
from ssl_medseg.volumes import Grid, grid_difference, read_label_values

_TOLERANCE = 1e-3  # mm
_LARGEST = 2**31 - 1  # that a label map can hold
_SHOWN = 3


@dataclass(frozen=True)
class LabelFacts:
    """One label; of an unreadable one only `problem` is known.

    Attributes:
        problem: why it cannot be read.
        difference: how its grid differs from its image's; empty if it does not, or the image cannot be read.
        values: whole number -> voxels.
        fractions: voxels whose value is no whole number to within 1e-3, or none that a label can have.
        examples: of such values, the first few; those that are no finite numbers before the others.
        rounded: voxels whose value is a whole number only after rounding.
        voxels: of every structure in the map.
        slices: with each structure.
        full_slices: slices with every structure.
        labelled_slices: slices with any.
        at_edge: structures that touch the edge of a slice, where the image may cut them off.
        millilitres: of a voxel; 0 where the file does not know.
        digest: of its values; "" if no structure is in it.
    """

    problem: str | None = None
    difference: str = ""
    values: Mapping[int, int] = field(default_factory=dict)
    fractions: int = 0
    examples: tuple[float, ...] = ()
    rounded: int = 0
    voxels: tuple[int, ...] = ()
    slices: tuple[int, ...] = ()
    full_slices: int = 0
    labelled_slices: int = 0
    at_edge: tuple[str, ...] = ()
    millilitres: float = 0.0
    digest: str = ""

    def unknown(self, labels: LabelMap) -> dict[int, int]:
        """Values that are not in the map -> voxels."""
        return {value: count for value, count in self.values.items() if value not in labels.values}


def look_at_label(path: Path, image: Grid | None, labels: LabelMap | None) -> LabelFacts:
    """Read one label and note what there is to note.

    Args:
        path: its file.
        image: the grid of its image, if that can be read.
        labels: what its values mean, if somebody says so.
    """
    try:
        array, affine = read_label_values(path)
    except UserError as error:
        return LabelFacts(without_path(error, path))
    x, y, z = array.shape
    grid = Grid((x, y, z), affine)
    whole, odd, rounded = _whole(array)
    values, counts = np.unique(whole, return_counts=True)
    structures = [] if labels is None else list(zip(labels.structures, labels.values[1:], strict=True))
    found = _by_structure(whole, slice_axis(grid), structures)
    return LabelFacts(
        difference="" if image is None else _difference(grid, image),
        values=dict(zip(values.tolist(), counts.tolist(), strict=True)),
        fractions=odd.size,
        examples=_examples(odd),
        rounded=rounded,
        millilitres=float(np.prod(grid.spacing)) / 1000 if grid.spacing_known else 0.0,
        digest=digest_of(whole) if len(values) > 1 else "",
        **found,
    )


def _whole(array: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], int]:
    """Whole numbers, those values that are none, and how many had to be rounded."""
    if not np.issubdtype(array.dtype, np.floating):
        return array, array[:0].ravel(), 0
    nearest = np.round(np.nan_to_num(array, nan=0, posinf=0, neginf=0))
    off = np.abs(array - nearest)
    fraction = ~(off <= ROUNDING) | (np.abs(nearest) > _LARGEST)  # NaN among them
    whole = np.where(fraction, 0, nearest).astype(np.int64)
    return whole, array[fraction], int(np.count_nonzero((off > 0) & ~fraction))


def _examples(odd: NDArray[Any]) -> tuple[float, ...]:
    different = np.unique(odd)
    finite = np.isfinite(different)
    return tuple(float(value) for value in (*different[~finite], *different[finite]))[:_SHOWN]


def _by_structure(whole: NDArray[Any], axis: int, structures: list[tuple[str, int]]) -> dict[str, Any]:
    others = tuple(a for a in range(3) if a != axis)
    masks = {name: whole == value for name, value in structures}
    present = np.array([mask.any(axis=others) for mask in masks.values()]).reshape(len(masks), whole.shape[axis])
    return {
        "voxels": tuple(int(np.count_nonzero(mask)) for mask in masks.values()),
        "slices": tuple(int(row.sum()) for row in present),
        "full_slices": int(present.all(axis=0).sum()) if masks else 0,
        "labelled_slices": int(present.any(axis=0).sum()) if masks else 0,
        "at_edge": tuple(name for name, mask in masks.items() if _touches(mask, others)),
    }


def _touches(mask: NDArray[np.bool_], axes: tuple[int, ...]) -> bool:
    return any(bool(np.take(mask, end, axis=axis).any()) for axis in axes for end in (0, -1))


def _difference(label: Grid, image: Grid) -> str:
    words = grid_difference(label, image, tolerance=_TOLERANCE)
    if not words or label.shape != image.shape:
        return words
    shift = image.affine[:3, 3] - label.affine[:3, 3]
    if np.allclose(label.affine[:3, :3], image.affine[:3, :3], atol=_TOLERANCE):
        return f"{words}: shifted by {', '.join(f'{mm:.3g}' for mm in shift)} mm"
    for axis in range(3):
        if np.allclose(_mirrored(label, axis).affine, image.affine, atol=_TOLERANCE):
            return f"{words}: stored the other way along axis {axis}, unless its affine is wrong"
    same_sides = np.allclose(np.abs(label.affine[:3, :3]), np.abs(image.affine[:3, :3]), atol=_TOLERANCE)
    return f"{words}: its axes run the other way" if same_sides else f"{words}: its directions or spacing differ"


def _mirrored(grid: Grid, axis: int) -> Grid:
    flip = np.eye(4)
    flip[axis, axis], flip[axis, 3] = -1, grid.shape[axis] - 1
    return Grid(grid.shape, grid.affine @ flip)
