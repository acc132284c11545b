"""Write masks on the grid of their image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from contrastive_core.errors import UserError
from contrastive_core.training import files
from ssl_medseg.io.itk import ITK_ENDINGS, read_itk, write_itk
from ssl_medseg.io.label_map import LabelMap
from ssl_medseg.io.volume import Volume, grid_difference

_NIFTI = (".nii.gz", ".nii")
_PLACE = (
    "sform_code", "qform_code", "quatern_b", "quatern_c", "quatern_d", "xyzt_units", "srow_x", "srow_y", "srow_z",
    "qoffset_x", "qoffset_y", "qoffset_z",
)  # fmt: skip
"""Header fields that place an image, beside pixdim."""
_LARGEST_SIDE = 32767
"""Of NIfTI-1. NIfTI-2 is written for larger masks alone, because ITK and the programs made with it do not read it."""


def write_mask(classes: NDArray[np.uint8], like: Volume, path: Path, labels: LabelMap) -> None:
    """Write a mask on the grid of its image, with the values of the user's labels.

    Shape, affine, sform and qform with their codes, units and voxel sizes are those of the image, bit for bit where it
    was a NIfTI file; else the affine stands as the sform and qform, with code 1. A 2-D image gets a 2-D mask. The data
    type is the smallest that holds the values. The file is complete or not there, and is read again before it gets its
    name.

    Args:
        classes: uint8 ``[X, Y, Z]``, 0 the background.
        like: the image.
        path: with the ending ``.nii.gz`` or ``.nii``; ``.nrrd`` or ``.mha`` with the extra ``simpleitk``.
        labels: what values stand for the classes.

    Raises:
        UserError: another ending, or the format cannot keep the image's geometry.
    """
    if classes.shape != like.array.shape:
        raise UserError(
            f"{path}: the mask has the shape {classes.shape}, its image {like.array.shape}; expected the same"
        )
    write_on_grid(labels.lookup[classes], like, path)


def write_on_grid(array: NDArray[Any], like: Volume, path: Path) -> None:
    """Write any numbers ``[X, Y, Z]``, or several ``[X, Y, Z, N]`` (NIfTI only), on the grid of an image.

    Raises:
        UserError: as `write_mask`.
    """
    path = Path(path)
    ending = next((e for e in (*_NIFTI, *ITK_ENDINGS) if path.name.lower().endswith(e)), "")
    if not ending or (array.ndim > 3 and ending not in _NIFTI):
        raise UserError(
            f"{path}: expected a name that ends with .nii.gz" + (", .nii, .nrrd or .mha" if array.ndim == 3 else "")
        )
    if ending in _NIFTI:
        _put(path, ending, lambda new: _write_nifti(array, like, new))
    else:
        _put(path, ending, lambda new: _write_itk(array, like, new))


def _put(path: Path, ending: str, write: Callable[[Path], None]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.tmp{ending}")
    try:
        write(new)
        files.sync(new)
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def _write_itk(array: NDArray[Any], like: Volume, new: Path) -> None:
    write_itk(array, like.affine, new, axes=like.ndim)
    _, written, _ = read_itk(new)
    lost = grid_difference(written, replace(like.grid, size_known=True, place_known=True))
    if lost:
        raise UserError(f"{new.name}: this format cannot keep the image's geometry ({lost}); write .nii.gz")


def _write_nifti(array: NDArray[Any], like: Volume, new: Path) -> None:
    image = _nifti(array, like)
    nibabel.save(image, new)
    written = nibabel.load(new)
    source = like.header if isinstance(like.header, nibabel.Nifti1Header) else image.header
    expected = _kept(source)
    # The numbers of a NIfTI-2 image are those of a NIfTI-1 mask to the precision of float32.
    rounding = 0.0 if written.header.sizeof_hdr == source.sizeof_hdr else 1e-6
    lost = [
        name
        for name, value in _kept(written.header).items()
        if not np.allclose(value, expected[name], rtol=rounding, atol=rounding)
    ]
    if written.shape[: like.ndim] != like.array.shape[: like.ndim]:
        lost.append("shape")
    if not np.allclose(written.affine, image.header.get_best_affine(), rtol=1e-6, atol=1e-5):
        lost.append("affine")
    if lost:
        raise UserError(
            f"{new.name}: a NIfTI mask cannot keep {', '.join(lost)} of {like.image.path.name}; nothing was written, "
            "because it would not lie on the image. Please report what program wrote the image"
        )


def _nifti(array: NDArray[Any], like: Volume) -> Any:
    if not isinstance(like.header, nibabel.Nifti1Header):  # DICOM, NRRD, MGH ...: only the affine is known
        image = nibabel.Nifti1Image(_as_in_file(array, like), like.affine)
        image.set_sform(like.affine, code=int(like.grid.place_known))
        image.set_qform(like.affine, code=int(like.grid.place_known))
        image.header.set_xyzt_units("mm" if like.grid.size_known else "unknown")
        return image
    array = _as_in_file(array, like)
    header = nibabel.Nifti1Header() if max(array.shape) <= _LARGEST_SIDE else nibabel.Nifti2Header()
    header.set_data_dtype(array.dtype)
    header.set_data_shape(array.shape)
    # What places the image, and nothing else: the rest may say who the patient is.
    for name in (*_PLACE, "pixdim"):
        header[name] = like.header[name]
    kind = nibabel.Nifti2Image if isinstance(header, nibabel.Nifti2Header) else nibabel.Nifti1Image
    # In the image's own unit, and None where no code says where the voxels are: nibabel would set one.
    placed = int(header["sform_code"]) > 0 or int(header["qform_code"]) > 0
    return kind(array, header.get_best_affine() if placed else None, header=header)


def _as_in_file(array: NDArray[Any], like: Volume) -> NDArray[Any]:
    """A mask with as many axes as the file of its image has."""
    return array[:, :, 0] if like.ndim == 2 and array.ndim == 3 else array


def _kept(header: Any) -> dict[str, Any]:
    """Header fields by which a viewer places an image."""
    return {**{name: np.array(header[name]) for name in _PLACE}, "zooms": np.array(header["pixdim"][:4])}
