"""Read and write NRRD and MetaImage files with SimpleITK."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contrastive_core.errors import UserError
from ssl_medseg.io.volume import checked_affine, import_extra

ITK_ENDINGS = (".nrrd", ".nhdr", ".mha", ".mhd")

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def read_itk(path: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Voxels ``[X, Y, Z]`` of the file's type, and the affine in RAS+.

    Raises:
        UserError: it cannot be read, is not three-dimensional, or SimpleITK is not installed.
    """
    sitk = import_extra("SimpleITK", extra="simpleitk", needed_for=f"{path}: reading {path.suffix}")
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; expected an image")
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        beside = ", or the file of its voxels is not beside it" if path.suffix.lower() in (".mhd", ".nhdr") else ""
        raise UserError(  # what ITK says names its own source files and runs over many lines
            f"{path}: cannot be read as an image; the file is damaged, cut off or of another kind{beside}. Copy or "
            "convert it again"
        ) from error
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise UserError(
            f"{path}: has {image.GetDimension()} axes and {image.GetNumberOfComponentsPerPixel()} numbers per voxel; "
            "expected 3 axes and one number. Save one channel or frame"
        )
    affine = np.eye(4)
    affine[:3, :3] = np.asarray(image.GetDirection()).reshape(3, 3) * np.asarray(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image).transpose(2, 1, 0), checked_affine(_LPS_TO_RAS @ affine, path)


def write_itk(array: NDArray[Any], affine: NDArray[np.float64], path: Path) -> None:
    """Write voxels ``[X, Y, Z]`` with their affine; the ending says in which format."""
    sitk = import_extra("SimpleITK", extra="simpleitk", needed_for=f"{path}: writing {path.suffix}")
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0)))
    lps = _LPS_TO_RAS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    sitk.WriteImage(image, str(path), True)
