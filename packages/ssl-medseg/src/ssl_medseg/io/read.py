"""Read a volume or a label from a file of any supported format."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contrastive_core.errors import UserError
from ssl_medseg.io.dicom import read_series
from ssl_medseg.io.itk import ITK_ENDINGS, read_itk
from ssl_medseg.io.label_map import LabelMap
from ssl_medseg.io.nifti import nifti_array, nifti_grid, nifti_warnings, one_volume, open_nifti
from ssl_medseg.io.volume import Grid, ImageFile, Volume


def read_volume(image: ImageFile) -> Volume:
    """Read one 3-D image with its geometry.

    NIfTI (and what else nibabel opens); the folder of one DICOM series with the extra ``dicom``; NRRD and MetaImage
    with the extra ``simpleitk``. Of a NIfTI file the sform gives the affine if its code is above 0, else the qform;
    where the two contradict each other the volume carries a warning. Voxels are not judged: NaN and constant images
    come back as they are, for `ssl-medseg check` to report, and are refused by `prepare`.

    Args:
        image: the file or folder, with the channel or frame where it holds several.

    Raises:
        UserError: it cannot be read, holds several volumes and none was chosen, has no place in space, or needs an
            extra that is not installed.
    """
    path = Path(image.path)
    if _is_dicom(path):
        _refuse_choice(image)
        array, affine = read_series(path)
        return Volume(array, affine, image)
    if path.name.lower().endswith(ITK_ENDINGS):
        _refuse_choice(image)
        array, affine = read_itk(path)
        return Volume(array.astype(np.float32), affine, image)
    opened = open_nifti(path)
    index = one_volume(opened, path, channel=image.channel, frame=image.frame)
    grid = nifti_grid(opened, path)
    array = nifti_array(opened, path, index, dtype=np.float32)
    return Volume(array, grid.affine, image, opened.header.copy(), nifti_warnings(opened, grid))


def read_grid(image: ImageFile) -> Grid:
    """Where an image's voxels are; of NIfTI files only the header is read.

    Raises:
        UserError: as `read_volume`.
    """
    path = Path(image.path)
    if _is_dicom(path) or path.name.lower().endswith(ITK_ENDINGS):
        return read_volume(image).grid
    opened = open_nifti(path)
    one_volume(opened, path, channel=image.channel, frame=image.frame)
    return nifti_grid(opened, path)


def read_label(path: Path, labels: LabelMap) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Read a label file as classes.

    Returns:
        Classes uint8 ``[X, Y, Z]``, 0 the background, and the affine.

    Raises:
        UserError: it cannot be read, holds several volumes, or values that are not in the map.
    """
    array, affine = read_label_values(Path(path))
    return labels.to_classes(array, name=path), affine


def read_label_values(path: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Read a label file as it is: the values ``[X, Y, Z]`` of the file's type, and the affine.

    Raises:
        UserError: it cannot be read, or holds several volumes, of which none can be chosen.
    """
    if path.name.lower().endswith(ITK_ENDINGS):
        return read_itk(path)
    if path.is_dir():
        raise UserError(f"{path}: is a folder; expected the file of a label, as NIfTI, NRRD or MetaImage")
    opened = open_nifti(path)
    if math.prod(opened.shape[3:]) > 1:
        raise UserError(
            f"{path}: has the shape {' x '.join(map(str, opened.shape))}, several volumes; expected a label of one. "
            "Save the one that belongs to its image"
        )
    index = one_volume(opened, path, channel=None, frame=None)
    return nifti_array(opened, path, index), nifti_grid(opened, path).affine


def _is_dicom(path: Path) -> bool:
    return path.is_dir() or path.suffix.lower() in (".dcm", ".ima")


def _refuse_choice(image: ImageFile) -> None:
    for name, number in (("channel", image.channel), ("frame", image.frame)):
        if number is not None:
            raise UserError(f"{image.path}: {name} {number} was asked for, but this kind of file is read whole")
