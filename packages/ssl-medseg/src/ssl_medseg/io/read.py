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
from ssl_medseg.io.file_types import DICOM_ENDINGS, is_dicom
from ssl_medseg.io.itk import ITK_ENDINGS, read_itk
from ssl_medseg.io.label_map import LabelMap
from ssl_medseg.io.nifti import nifti_array, nifti_grid, nifti_warnings, one_volume, open_nifti
from ssl_medseg.io.volume import Grid, ImageFile, Volume, by

_UNREADABLE = ("cannot be read as an image", "the file is damaged, or of another kind. Copy or convert it again")


def read_volume(image: ImageFile) -> Volume:
    """Read one 3-D image with its geometry; its further channels come on the grid of the first.

    NIfTI (and what else nibabel opens); the folder of one DICOM series with the extra ``dicom``; NRRD and MetaImage
    with the extra ``simpleitk``. Of a NIfTI file the sform gives the affine if its code is above 0, else the qform;
    where the two contradict each other the volume carries a warning. Positions are in mm whatever the file's unit.
    Voxels are not judged: NaN and constant images come back as they are, for `ssl-medseg check` to report, and are
    refused by `prepare`. Channels on another grid are resampled to that of the first, which a warning says.

    Args:
        image: The file or folder, with the channel or frame where it holds several, and with the size of a voxel where
            the file does not know it.

    Raises:
        UserError: It cannot be read, holds several volumes and none was chosen, has no place in space or voxels that no
            scanner makes, or needs an extra that is not installed; channels that do not lie on each other.
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
    if path.name.lower().endswith(ITK_ENDINGS):
        _refuse_choice(image)
        array, grid, axes = read_itk(path, image)
        return Volume(array.astype(np.float32), grid, image, ndim=axes)
    opened = open_nifti(path)
    index = one_volume(opened, path, channel=image.channel, frame=image.frame)
    grid = nifti_grid(opened, path, image)
    array = nifti_array(opened, path, index, dtype=np.float32)
    notes = nifti_warnings(opened, grid)
    return Volume(array, grid, image, opened.header.copy(), notes, ndim=min(3, len(opened.shape)))


def read_grid(image: ImageFile) -> Grid:
    """The positions of an image's voxels, of several channels those of the first; of NIfTI the header alone is read.

    Raises:
        UserError: As `read_volume`.
    """
    path = Path(image.path)
    if _is_dicom(path) or path.name.lower().endswith(ITK_ENDINGS):
        return _read_channel(image.channels[0]).grid
    with reading(path, *_UNREADABLE):
        opened = open_nifti(path)
        one_volume(opened, path, channel=image.channel, frame=image.frame)
        return nifti_grid(opened, path, image)


def volumes_in(path: Path) -> tuple[int, ...]:
    """Numbers of frames and channels in a NIfTI file, axes of one left out: ``(2,)``, or empty for a single volume.

    Raises:
        UserError: It cannot be read.
    """
    if _is_dicom(path) or path.name.lower().endswith(ITK_ENDINGS):
        return ()
    return tuple(int(count) for count in open_nifti(path).shape[3:] if count > 1)


def read_label(path: Path, labels: LabelMap) -> tuple[NDArray[np.uint8], Grid]:
    """Read a label file as classes.

    Returns:
        Classes uint8 ``[X, Y, Z]``, 0 the background, and their grid.

    Raises:
        UserError: It cannot be read, holds several volumes, or values that are not in the map.
    """
    array, grid = read_label_values(Path(path))
    return labels.to_classes(array, name=path), grid


def read_label_values(path: Path) -> tuple[NDArray[Any], Grid]:
    """Read a label file as it is: the values ``[X, Y, Z]`` of the file's type, and their grid.

    Raises:
        UserError: It cannot be read, or holds several volumes, of which none can be chosen.
    """
    with reading(path, *_UNREADABLE), native_reader(path):
        return _read_label_values(path)


def _read_label_values(path: Path) -> tuple[NDArray[Any], Grid]:
    if path.name.lower().endswith(ITK_ENDINGS):
        array, grid, _ = read_itk(path)
        return array, grid
    if path.is_dir():
        raise UserError(f"{path}: is a folder; expected the file of a label, as NIfTI, NRRD or MetaImage")
    opened = open_nifti(path)
    if math.prod(opened.shape[3:]) > 1:
        raise UserError(
            f"{path}: has the shape {by(opened.shape)}, several volumes; expected a label of one volume with a value "
            "per structure. Save the volume that belongs to the image, or join one volume per structure into one"
        )
    index = one_volume(opened, path, channel=None, frame=None)
    return nifti_array(opened, path, index), nifti_grid(opened, path)


def _is_dicom(path: Path) -> bool:
    return path.is_dir() or path.suffix.lower() in DICOM_ENDINGS or (path.is_file() and is_dicom(path))


def _refuse_choice(image: ImageFile) -> None:
    for name, number in (("channel", image.channel), ("frame", image.frame)):
        if number is not None:
            raise UserError(f"{image.path}: {name} {number} was asked for, but this kind of file is read whole")
