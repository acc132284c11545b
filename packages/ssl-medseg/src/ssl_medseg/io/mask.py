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
from contrastive_core.training.documents import read_object, reading
from ssl_medseg.io.itk import ITK_ENDINGS, read_itk, write_itk
from ssl_medseg.io.label_map import LabelMap
from ssl_medseg.io.volume import Volume, grid_difference

_NIFTI = (".nii.gz", ".nii")
_ATTACHED = {".mhd": ".mha", ".nhdr": ".nrrd"}
_PLACE = (
    "sform_code", "qform_code", "quatern_b", "quatern_c", "quatern_d", "xyzt_units", "srow_x", "srow_y", "srow_z",
    "qoffset_x", "qoffset_y", "qoffset_z",
)  # fmt: skip
"""Header fields, other than pixdim, that give the position of an image."""
_LARGEST_SIDE = 32767
"""Largest dimension of NIfTI-1. Only larger masks are written as NIfTI-2, which ITK-based programs cannot read."""


PREDICTIONS = "predictions.json"
"""File that `predict` writes next to its masks."""
PREDICTIONS_FORMAT = "ssl-medseg predictions"
"""How the format in this file begins; files of other programs may have the same name."""


def has_predictions(folder: Path) -> bool:
    """Return whether a folder contains the predictions.json of `predict`, intact or damaged.

    Raises:
        UserError: The file cannot be read.
    """
    file = folder / PREDICTIONS
    if not file.is_file():
        return False
    with reading(file, "cannot be read", "make it readable, or remove it if `ssl-medseg predict` did not write it"):
        return PREDICTIONS_FORMAT.encode() in file.read_bytes()


def read_predictions(folder: Path) -> dict[str, Any]:
    """Read the predictions.json of `predict`; empty if a folder has none, or that of another program.

    Raises:
        UserError: The file is damaged.
    """
    return read_object(folder / PREDICTIONS) if has_predictions(folder) else {}


def masks_of_predict(folder: Path) -> dict[str, str | None]:
    """Return the masks that `predict` wrote to a folder, by its predictions.json.

    Returns:
        Name of each mask and hash of its file; None for any content, because `predict` was interrupted while it
        replaced the mask.

    Raises:
        UserError: The file is damaged.
    """
    if not (content := read_predictions(folder)):
        return {}
    with reading(folder / PREDICTIONS, "is damaged", "expected a file written by `ssl-medseg predict`; remove it"):
        stale = dict(content.get("stale", {}))
        hashes: dict[str, str | None] = {str(name): str(digest) for name, digest in stale.items() if digest}
        hashes |= {str(case["mask"]): case.get("sha256") for case in content["cases"] if case["mask"]}
        return hashes | dict.fromkeys(map(str, content.get("unfinished", ())))


def write_mask(classes: NDArray[np.uint8], like: Volume, path: Path, labels: LabelMap) -> None:
    """Write a mask on the grid of its image, with the label values of the user.

    Shape, affine, sform and qform with their codes, units and voxel sizes are copied from the image, bit for bit if it
    is a NIfTI file. For other formats, the affine becomes both sform and qform, with code 1 (or 0 if the position is
    unknown). A 2-D image gets a 2-D mask. The data type is the smallest that holds the values. The file is read back
    and compared before it gets its name, so it appears only once it is complete.

    Args:
        classes: uint8 ``[X, Y, Z]``, 0 for the background.
        like: Image that the mask belongs to.
        path: File to write, ending in ``.nii.gz`` or ``.nii``; with the extra ``simpleitk``, also ``.nrrd`` or
            ``.mha``.
        labels: Label map with the value of every class.

    Raises:
        UserError: The shapes differ, the ending is not supported, or the format cannot keep the geometry of the image.
    """
    if classes.shape != like.array.shape:
        raise UserError(
            f"{path}: the mask has the shape {classes.shape} and its image {like.array.shape}; expected equal shapes"
        )
    write_on_grid(labels.lookup[classes], like, path)


def write_on_grid(array: NDArray[Any], like: Volume, path: Path) -> None:
    """Write an array ``[X, Y, Z]`` or, as NIfTI only, ``[X, Y, Z, N]`` on the grid of an image.

    Raises:
        UserError: The ending is not supported, or the format cannot keep the geometry of the image.
    """
    path = Path(path)
    ending = next((e for e in (*_NIFTI, *ITK_ENDINGS) if path.name.lower().endswith(e)), "")
    if not ending or (array.ndim > 3 and ending not in _NIFTI):
        raise UserError(
            f"{path}: the ending is not supported; expected a file name that ends in .nii.gz"
            + (", .nii, .nrrd or .mha" if array.ndim == 3 else " or .nii")
        )
    if ending in _NIFTI:
        _put(path, ending, lambda new: _write_nifti(array, like, new))
    else:
        # ITK writes the voxels of .mhd and .nhdr to a second file, which would keep the temporary name.
        _put(path, _ATTACHED.get(ending, ending), lambda new: _write_itk(array, like, new))


def _put(path: Path, ending: str, write: Callable[[Path], None]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.atomic_path(path, ending=ending) as new:
        write(new)


def _write_itk(array: NDArray[Any], like: Volume, new: Path) -> None:
    write_itk(array, like.affine, new, axes=like.ndim)
    _, grid, _ = read_itk(new)
    difference = grid_difference(grid, replace(like.grid, size_known=True, place_known=True))
    if difference:
        raise UserError(f"{new.name}: this format cannot keep the geometry of the image ({difference}); write .nii.gz")


def _write_nifti(array: NDArray[Any], like: Volume, new: Path) -> None:
    image = _nifti(array, like)
    nibabel.save(image, new)
    result = nibabel.load(new)
    source = like.header if isinstance(like.header, nibabel.Nifti1Header) else image.header
    expected = _position_fields(source)
    # NIfTI-2 stores float64, NIfTI-1 float32.
    rounding = 0.0 if result.header.sizeof_hdr == source.sizeof_hdr else 1e-6
    differences = [
        name
        for name, value in _position_fields(result.header).items()
        if not np.allclose(value, expected[name], rtol=rounding, atol=rounding)
    ]
    if result.shape[: like.ndim] != like.array.shape[: like.ndim]:
        differences.append("shape")
    if not np.allclose(result.affine, image.header.get_best_affine(), rtol=1e-6, atol=1e-5):
        differences.append("affine")
    if differences:
        raise UserError(
            f"{new.name}: a NIfTI mask cannot keep {', '.join(differences)} of {like.image.path.name}. Nothing was "
            "written, because the mask would not match the image; please report which program wrote the image"
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
    # Only the fields that give the position are copied; others may identify the patient.
    for name in (*_PLACE, "pixdim"):
        header[name] = like.header[name]
    kind = nibabel.Nifti2Image if isinstance(header, nibabel.Nifti2Header) else nibabel.Nifti1Image
    # The affine is in the unit of the image; None if both form codes are 0, because nibabel would set a code otherwise.
    has_place = int(header["sform_code"]) > 0 or int(header["qform_code"]) > 0
    return kind(array, header.get_best_affine() if has_place else None, header=header)


def _as_in_file(array: NDArray[Any], like: Volume) -> NDArray[Any]:
    """Give a mask as many axes as the file of its image has."""
    return array[:, :, 0] if like.ndim == 2 and array.ndim == 3 else array


def _position_fields(header: Any) -> dict[str, Any]:
    """Return the header fields from which viewers determine the position of an image."""
    return {**{name: np.array(header[name]) for name in _PLACE}, "zooms": np.array(header["pixdim"][:4])}
