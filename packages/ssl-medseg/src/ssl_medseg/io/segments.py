"""Read segmentations whose files name their segments: NRRD files of 3D Slicer and MITK, and DICOM segmentations.

Such files differ from other labels in three ways. The values are arbitrary: the same structure may be segment 1 in one
file and segment 2 in another, so segments are matched to structures by their names. They store only the part of the
image that contains segments, on the same voxels. And segments may overlap, which a label with one structure per voxel
cannot represent.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import nibabel
import numpy as np
from numpy.typing import NDArray

from contrastive_core.errors import UserError
from contrastive_core.text import several, some_of
from contrastive_core.training.documents import reading
from contrastive_core.training.names import check_labels
from ssl_medseg.io.dicom_seg import NAME_LENGTH, named_segments, read_segmentation
from ssl_medseg.io.file_types import is_dicom
from ssl_medseg.io.itk import nrrd_fields, read_itk
from ssl_medseg.io.label_map import LabelMap
from ssl_medseg.io.volume import SAME_GRID, Grid, turn_grid

_NRRD = (".nrrd", ".nhdr")
_LARGEST = 2**31 - 1
_DEFAULT = re.compile(r"(segment|(new )?label|region|structure)? ?\d+")
_BACKGROUND = "background"
_MITK = "org.mitk.multilabel.segmentation.labelgroups"
_OLD_MITK = re.compile(r"(?:org[._]mitk[._])?label_(\d+)_\d+")  # until 2022, an XML document for each label


@dataclass(frozen=True)
class Segments:
    """Named segments.

    Attributes:
        names: Name of each segment.
        values: Value of each segment in `array`.
        array: Integers ``[X, Y, Z]``, 0 outside all segments.
        grid: Position of the voxels.
    """

    names: tuple[str, ...]
    values: tuple[int, ...]
    array: NDArray[Any]
    grid: Grid

    def in_map(self, labels: LabelMap, *, source: Path) -> NDArray[Any]:
        """Return the label values ``[X, Y, Z]`` of the structures with the names of the segments.

        Names are compared without case, and with underscores and hyphens as spaces. If all segments have the names that
        viewers give by default, such as ``Segment_1``, the values in the file are returned, as for other labels.

        Raises:
            UserError: A segment with voxels does not have the name of a structure.
        """
        pairs = list(zip(labels.names, labels.values, strict=True))
        known = {_plain(name[:length]): value for length in (NAME_LENGTH, None) for name, value in pairs}
        map_values = [known.get(_plain(name)) for name in self.names]
        if all(
            value is None and _DEFAULT.fullmatch(_plain(name))
            for name, value in zip(self.names, map_values, strict=True)
        ):
            return self.array
        values = np.zeros(self.array.shape, dtype=labels.lookup.dtype)
        unknown = []
        for name, stored, value in zip(self.names, self.values, map_values, strict=True):
            here = self.array == stored
            if value is not None:
                values[here] = value
            elif here.any():
                unknown.append(f"{name} ({several(int(here.sum()), 'voxel')})")
        if unknown:
            raise UserError(
                f"{source}: the segment{'s' if len(unknown) > 1 else ''} {some_of(unknown)} {_have(unknown)} no "
                f"structure of this name; expected only {', '.join(labels.structures)}. Rename or remove the segment, "
                "or add it to the label map"
            )
        return values


def read_segments(path: Path) -> Segments | None:
    """Read a file with named segments; None if it is a label of another kind.

    Raises:
        UserError: The file cannot be read, segments overlap, or it is another DICOM object.
    """
    if path.name.lower().endswith(_NRRD):
        return _of_nrrd(path)
    if not _is_dicom(path):
        return None
    names, masks, grid = read_segmentation(path)
    check_labels(names, what="segment", source=path)
    array = _combined(names, masks, path, shape=masks.shape[1:])
    return Segments(names, tuple(range(1, len(names) + 1)), array, grid)


def segment_names(paths: Iterable[Path]) -> dict[str, int] | None:
    """Return the segments that label files name, with values for a label map; None unless every file names segments.

    The values are those of the files if these agree, and otherwise count from 1 in the order of first occurrence.

    Raises:
        UserError: A file cannot be read.
    """
    values_of: dict[str, set[int]] = {}
    for path in paths:
        if path.name.lower().endswith(_NRRD):
            segments = [(each.name, each.value) for each in _header_segments(path, nrrd_fields(path))]
        else:
            segments = list(zip(named_segments(path), itertools.count(1))) if _is_dicom(path) else []
        if not segments:
            return None
        for name, value in segments:
            if _plain(name) == _BACKGROUND:
                continue
            values_of.setdefault(next((own for own in values_of if _plain(own) == _plain(name)), name), set()).add(
                value
            )
    agreed = [next(iter(values)) for values in values_of.values()]
    agree = all(len(values) == 1 for values in values_of.values()) and len(set(agreed)) == len(agreed)
    return dict(zip(values_of, agreed if agree else range(1, len(values_of) + 1), strict=True)) or None


def placed(array: NDArray[Any], own: Grid, image: Grid) -> tuple[NDArray[Any], Grid]:
    """Place a segmentation that covers a part of an image on the whole grid of the image.

    Args:
        array: Values ``[X, Y, Z]``, 0 in the background.
        own: Their grid.
        image: Grid of the image.

    Returns:
        The values on the grid of the image, with 0 where the segmentation does not reach; or `array` and `own`, if the
        voxels do not coincide with those of the image or segments lie outside of it.
    """
    if (alignment := _turned(array, own, image)) is None:
        return array, own
    turned, start = alignment
    whole = np.zeros(image.shape, dtype=array.dtype)
    low = np.maximum(start, 0)
    high = np.minimum(start + turned.shape, image.shape)
    if (high <= low).any():
        return array, own
    inside = turned[tuple(slice(a - s, b - s) for a, b, s in zip(low, high, start, strict=True))]
    if np.count_nonzero(inside) != np.count_nonzero(turned):
        return array, own
    whole[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = inside
    return whole, image


def reordered(array: NDArray[Any], own: Grid, image: Grid) -> tuple[NDArray[Any], Grid]:
    """Return a label in the order of its image; as it is, if the two do not have the same voxels."""
    alignment = _turned(array, own, image)
    if alignment is None or alignment[0].shape != image.shape or alignment[1].any():
        return array, own
    return alignment[0], image


def _turned(array: NDArray[Any], own: Grid, image: Grid) -> tuple[NDArray[Any], NDArray[np.int_]] | None:
    """Turn an array to the axes of an image; return it with the voxel of the image at which it begins.

    None if its voxels do not coincide with those of the image, or a position is unknown.
    """
    if (alignment := turn_grid(own, image)) is None:
        return None
    turned = nibabel.apply_orientation(array, alignment[1])
    change = np.linalg.inv(image.affine) @ alignment[0].affine
    start = np.rint(change[:3, 3]).astype(int)
    corners = np.array([(x, y, z, 1) for x in (0, 1) for y in (0, 1) for z in (0, 1)])
    corners[:, :3] *= np.array(turned.shape) - 1
    if np.abs((corners @ change.T)[:, :3] - (corners[:, :3] + start)).max() > SAME_GRID:
        return None
    return turned, start


@dataclass(frozen=True)
class _Segment:
    """A segment of 3D Slicer or label of MITK: its name, and where its voxels are."""

    name: str
    layer: int
    value: int


def _header_segments(path: Path, fields: Mapping[str, str]) -> list[_Segment]:
    """Return the segments in the header of a NRRD file; none if it is no segmentation of 3D Slicer or MITK."""
    if _MITK in fields:
        with reading(path, "has a damaged list of labels", "save the segmentation again with MITK"):
            labels = [
                _Segment(label["name"], layer, int(label["value"]))
                for layer, group in enumerate(json.loads(fields[_MITK]))
                for label in group["labels"] or ()
            ]
        check_labels((each.name for each in labels), what="label", source=path)
        return labels
    if old := [(int(match[1]), text) for key, text in sorted(fields.items()) if (match := _OLD_MITK.fullmatch(key))]:
        with reading(path, "has a damaged list of labels", "save the segmentation again with MITK"):
            all_labels = [_Segment(name, layer, value) for layer, text in old for name, value in [_of_xml(text)]]
        labels = [each for each in all_labels if each.value]  # 0 is what lies outside of all labels
        check_labels((each.name for each in labels), what="label", source=path)
        return labels
    ids = sorted({int(match[1]) for key in fields if (match := re.fullmatch(r"Segment(\d+)_ID", key))})
    names = [fields.get(f"Segment{number}_Name") or fields[f"Segment{number}_ID"] for number in ids]
    check_labels(names, what="segment", source=path)
    with reading(path, "has a segment without a valid layer or value", "save the segmentation again with 3D Slicer"):
        return [  # files of 2019 and before have a layer for each segment and no values
            _Segment(
                name,
                int(fields.get(f"Segment{number}_Layer", place)),
                int(fields.get(f"Segment{number}_LabelValue", 1)),
            )
            for place, (number, name) in enumerate(zip(ids, names, strict=True))
        ]


def _of_xml(text: str) -> tuple[str, int]:
    """Return name and value in the XML document of a label of MITK."""
    root = ElementTree.fromstring(text)  # noqa: S314 - expat limits the expansion of entities
    values = {each.get("key"): each[0].get("value", "") for each in root.iter("property") if len(each)}
    return values["name"], int(values["value"])


def _of_nrrd(path: Path) -> Segments | None:
    segments = _header_segments(path, nrrd_fields(path))
    if not segments:
        return None
    layers, grid, _ = read_itk(path, layers=True)
    layers = layers[..., None] if layers.ndim == 3 else layers
    names, values = tuple(each.name for each in segments), tuple(each.value for each in segments)
    if any(each.layer not in range(layers.shape[-1]) for each in segments):
        raise UserError(f"{path}: lacks a layer that its header names; save the segmentation again")
    masks = (layers[..., each.layer] == each.value for each in segments)
    array = _combined(names, masks, path, shape=layers.shape[:-1])
    if left := int(np.count_nonzero((layers != 0).any(axis=-1) & (array == 0))):
        raise UserError(
            f"{path}: {several(left, 'voxel')} with a value that its header gives to no segment; save the segmentation "
            "again"
        )
    if len(set(values)) == len(values) and all(0 < value <= _LARGEST for value in values):
        return Segments(names, values, np.array([0, *values])[array], grid)  # the values of the file are distinct
    return Segments(names, tuple(range(1, len(names) + 1)), array, grid)


def _combined(
    names: Sequence[str], masks: Iterable[NDArray[np.bool_]], path: Path, *, shape: tuple[int, ...]
) -> NDArray[Any]:
    """Combine masks into one array with the position of the segment, counted from 1.

    Masks are taken one at a time, because those of a hundred organs do not fit into memory together.

    Raises:
        UserError: Segments overlap.
    """
    array: NDArray[Any] = np.zeros(shape, dtype=np.int32)
    overlaps: dict[str, int] = {}
    for number, (name, mask) in enumerate(zip(names, masks, strict=True), start=1):
        there = array[mask]
        for other in np.unique(there[there > 0]):
            overlaps[f"{names[other - 1]} and {name}"] = int(np.count_nonzero(there == other))
        array[mask & (array == 0)] = number
    if overlaps:
        pairs = some_of(f"{pair} in {several(count, 'voxel')}" for pair, count in overlaps.items())
        raise UserError(
            f"{path}: segments overlap ({pairs}); expected one structure per voxel. Remove the overlap, in 3D Slicer "
            "with Logical operators, or export the segments as a label map"
        )
    return array


def _is_dicom(path: Path) -> bool:
    return path.is_dir() or (path.is_file() and is_dicom(path))


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def _have(items: Sequence[str]) -> str:
    return "have" if len(items) > 1 else "has"
