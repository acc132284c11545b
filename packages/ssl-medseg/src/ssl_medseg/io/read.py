"""Read a volume or a label from a file of any supported format."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contrastive_core.errors import UserError
from contrastive_core.training.crashes import native_reader
from contrastive_core.training.documents import reading
from ssl_medseg.io.channels import align_channels
from ssl_medseg.io.dicom import read_series
from ssl_medseg.io.file_types import DICOM_ENDINGS, is_dicom, is_segmentation
from ssl_medseg.io.itk import ITK_ENDINGS, read_itk
from ssl_medseg.io.label_map import LabelMap
from ssl_medseg.io.nifti import nifti_array, nifti_grid, nifti_warnings, one_volume, open_nifti
from ssl_medseg.io.segments import placed, read_segments, reordered
from ssl_medseg.io.volume import Grid, ImageFile, Volume, by, grid_difference

_UNREADABLE = ("cannot be read as an image", "the file is damaged or of another format. Copy or convert it again")


def read_volume(image: ImageFile) -> Volume:
    """Read one 3-D image with its geometry and all its channels.

    The formats are NIfTI and the others that nibabel opens; with the extra ``dicom``, the folder of a DICOM series or
    an enhanced DICOM file; with the extra ``simpleitk``, NRRD and MetaImage. The affine of a NIfTI file is its sform if
    the code of the sform is above 0, otherwise its qform; if the two contradict each other, the volume has a warning.
    Positions are converted to mm. Further channels are resampled to the grid of the first if theirs differs, which
    also adds a warning.

    Intensities are not checked here: NaN and constant images are returned as they are. `ssl-medseg check` reports them
    and `prepare` refuses them.

    Args:
        image: File or folder, with the channel or frame to read if there are several, and with the voxel size if the
            file does not state it.

    Returns:
        Volume with float32 voxels ``[X, Y, Z]`` in the axis order of the file.

    Raises:
        UserError: The image cannot be read, contains several volumes of which none was selected, has an invalid affine
            or an implausible voxel size, or needs an extra that is not installed; or the fields of view of its channels
            do not overlap.
    """
    first, *others = (_read_channel(channel) for channel in image.channels)
    if not others:
        return first
    arrays, notes = align_channels(first, others)
    return replace(first, image=image, others=arrays, warnings=notes)


def _read_channel(image: ImageFile) -> Volume:
    path = Path(image.path)
    with reading(path, *_UNREADABLE), native_reader(path):
        return _read_volume(path, image)


def _read_volume(path: Path, image: ImageFile) -> Volume:
    if _is_dicom(path):
        _refuse_choice(image)
        array, grid, notes = read_series(path, series=image.series)
        return Volume(array, grid, image, warnings=notes)
    if is_segmentation(path):
        raise UserError(f"{path}: is a segmentation of 3D Slicer; expected an image")
    if path.name.lower().endswith(ITK_ENDINGS):
        _refuse_choice(image)
        array, grid, axes = read_itk(path, image)
        with np.errstate(over="ignore"):  # values beyond float32 become infinite, which is reported
            voxels = array.astype(np.float32)
        return Volume(voxels, grid, image, ndim=axes)
    nib_image = open_nifti(path)
    index = one_volume(nib_image, path, channel=image.channel, frame=image.frame)
    grid = nifti_grid(nib_image, path, image)
    array = nifti_array(nib_image, path, index, dtype=np.float32)
    notes = nifti_warnings(nib_image, grid)
    return Volume(array, grid, image, nib_image.header.copy(), notes, ndim=min(3, len(nib_image.shape)))


def read_grid(image: ImageFile) -> Grid:
    """Read the grid of an image (of its first channel); of a NIfTI file, only the header is read.

    Raises:
        UserError: For the same reasons as in `read_volume`.
    """
    path = Path(image.path)
    if _is_dicom(path) or path.name.lower().endswith(ITK_ENDINGS):
        return _read_channel(image.channels[0]).grid
    with reading(path, *_UNREADABLE):
        nib_image = open_nifti(path)
        one_volume(nib_image, path, channel=image.channel, frame=image.frame)
        return nifti_grid(nib_image, path, image)


def volumes_in(path: Path) -> tuple[int, ...]:
    """Return the numbers of frames and channels in a NIfTI file, such as ``(2,)``; empty for a single volume.

    Raises:
        UserError: The file cannot be read.
    """
    if _is_dicom(path) or path.name.lower().endswith(ITK_ENDINGS):
        return ()
    return tuple(int(count) for count in open_nifti(path).shape[3:] if count > 1)


def read_label(path: Path, labels: LabelMap, *, image: Grid | None = None) -> tuple[NDArray[np.uint8], Grid]:
    """Read a label file as class numbers.

    Args:
        path: File of the label; also a .seg.nrrd file of 3D Slicer or a DICOM segmentation, whose segments are matched
            to the structures by name.
        labels: Label map.
        image: Grid of the image, on which segments that cover a part of it are placed, and in whose order the voxels
            of any label of a DICOM series are returned.

    Returns:
        Class numbers uint8 ``[X, Y, Z]``, 0 for the background, and their grid.

    Raises:
        UserError: The file cannot be read, or contains several volumes or values that are not in the label map.
    """
    array, grid = read_label_values(Path(path), labels=labels, image=image)
    return labels.to_classes(array, name=path), grid


def read_label_values(
    path: Path, *, labels: LabelMap | None = None, image: Grid | None = None
) -> tuple[NDArray[Any], Grid]:
    """Read the values ``[X, Y, Z]`` of a label file in its data type, and their grid.

    Args:
        path: File of the label, as in `read_label`.
        labels: Label map for the names of segments; without it, segments keep their values.
        image: Grid of the image, as in `read_label`.

    Raises:
        UserError: The file cannot be read, or contains several volumes.
    """
    with reading(path, *_UNREADABLE), native_reader(path):
        if (segments := read_segments(path)) is not None:
            array = segments.array if labels is None else segments.in_map(labels, source=path)
            return (array, segments.grid) if image is None else placed(array, segments.grid, image)
        array, grid = _read_label_values(path)
        is_other = image is not None and image.any_order and grid_difference(grid, image)
        return (array, grid) if image is None or not is_other else reordered(array, grid, image)


def _read_label_values(path: Path) -> tuple[NDArray[Any], Grid]:
    if path.name.lower().endswith(ITK_ENDINGS):
        array, grid, _ = read_itk(path)
        return array, grid
    nib_image = open_nifti(path)
    if math.prod(nib_image.shape[3:]) > 1:
        raise UserError(
            f"{path}: has the shape {by(nib_image.shape)}, several volumes; expected one volume with a value for each "
            "structure. Save the volume that belongs to the image, or combine volumes of single structures into one"
        )
    index = one_volume(nib_image, path, channel=None, frame=None)
    return nifti_array(nib_image, path, index), nifti_grid(nib_image, path)


def _is_dicom(path: Path) -> bool:
    return path.is_dir() or path.suffix.lower() in DICOM_ENDINGS or (path.is_file() and is_dicom(path))


def _refuse_choice(image: ImageFile) -> None:
    for name, number in (("channel", image.channel), ("frame", image.frame)):
        if number is not None:
            raise UserError(f"{image.path}: {name} {number} was selected, but this format has no {name}s to select")
