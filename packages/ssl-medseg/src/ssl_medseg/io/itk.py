"""Read and write NRRD and MetaImage files with SimpleITK."""

from __future__ import annotations

import math
import os
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from contrastive_core.errors import UserError
from ssl_medseg.io.file_types import content_of
from ssl_medseg.io.volume import Grid, ImageFile, check_voxel_size, checked_affine, import_extra

ITK_ENDINGS = (".nrrd", ".nhdr", ".mha", ".mhd")

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_SIZES = (b"space directions:", b"spacings:", b"elementspacing", b"elementsize")
_PLACES = (b"space:", b"space dimension:", b"transformmatrix", b"orientation", b"rotation")
_HEADER = 4096


def read_itk(path: Path, image: ImageFile | None = None) -> tuple[NDArray[Any], Grid, int]:
    """Read a NRRD or MetaImage file.

    Args:
        path: File to read.
        image: Image description, whose voxel size is used if the header states none.

    Returns:
        Voxels ``[X, Y, Z]`` in the data type of the file, their grid, and the number of axes of the file, 2 or 3.

    Raises:
        UserError: The file cannot be read, has another number of axes or an implausible voxel size, or SimpleITK is not
            installed.
    """
    sitk = import_extra("SimpleITK", extra="simpleitk", needed_for=f"{path}: reading {path.suffix}")
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; expected an image")
    if (what := content_of(path)) and "NRRD" not in what:
        raise UserError(f"{path}: {what}")
    _check_header(path)
    beside = ", or the file with its voxels is missing" if path.suffix.lower() in (".mhd", ".nhdr") else ""
    try:
        found = sitk.ReadImage(str(path))
    except RuntimeError as error:  # ITK's own message spans many lines and names ITK's source files
        raise UserError(
            f"{path}: cannot be read as an image; the file is damaged, truncated or of another format{beside}. Copy or "
            "convert it again"
        ) from error
    axes, numbers = found.GetDimension(), found.GetNumberOfComponentsPerPixel()
    if axes not in (2, 3) or numbers != 1:
        raise UserError(
            f"{path}: has {axes} axes and {numbers} numbers per voxel; expected 2 or 3 axes and one number. Save one "
            "channel or frame"
        )
    affine = np.eye(4)
    affine[:axes, :axes] = np.asarray(found.GetDirection()).reshape(axes, axes) * np.asarray(found.GetSpacing())
    affine[:axes, 3] = found.GetOrigin()
    array = np.moveaxis(sitk.GetArrayFromImage(found), range(axes), range(axes - 1, -1, -1))
    array = array.reshape(*array.shape, *(1,) * (3 - axes))
    with path.open("rb") as file:
        header = file.read(_HEADER).lower()
    grid = Grid(
        (array.shape[0], array.shape[1], array.shape[2]),
        checked_affine(_LPS_TO_RAS @ affine, path),
        size_known=any(key in header for key in _SIZES),
        place_known=any(key in header for key in _PLACES),
    )
    if not grid.size_known:
        stated = None if image is None else image.spacing
        grid = replace(grid.with_spacing(stated or (1.0, 1.0, 1.0)), size_known=stated is not None)
    check_voxel_size(grid, path)
    return array, grid, axes


_LINE, _LINES, _AXES, _VOXELS = 2000, 500, 16, 1 << 36
_BLOCK = 1 << 20


def _check_header(path: Path) -> None:
    """Refuse what crashes ITK's native readers or passes them unnoticed.

    These are very long lines, bytes that are no text, impossible sizes, and compressed voxels of a MetaImage that do
    not decompress, for which ITK returns arbitrary values.

    Raises:
        UserError: The file is damaged.
    """
    damaged = f"{path}: its header is damaged ({{}}); copy or convert the file again"
    is_compressed, voxels = False, 1
    with path.open("rb") as file:
        for _ in range(_LINES):
            line = file.readline(_LINE + 1)
            if len(line) > _LINE:
                raise UserError(damaged.format(f"a line of more than {_LINE} bytes"))
            key, _, value = line.replace(b"=", b":", 1).partition(b":")
            key = key.strip().lower()
            if any(byte < 32 and byte not in b"\t\r\n" for byte in line):
                raise UserError(damaged.format("it contains bytes that are no text"))
            is_compressed |= key == b"compresseddata" and value.strip().lower()[:1] in (b"t", b"1")
            if key in (b"sizes", b"dimsize", b"dimension", b"ndims"):
                numbers = value.split()
                if not numbers or len(numbers) > _AXES or not all(n.isdigit() and len(n) <= 9 for n in numbers):
                    raise UserError(damaged.format(f"{key.decode()} is {value.strip()[:40]!r}"))
                counts_axes = key in (b"dimension", b"ndims")
                if counts_axes and (len(numbers) != 1 or int(numbers[0]) > _AXES):
                    raise UserError(damaged.format(f"{key.decode()} is {value.strip()[:40]!r}"))
                voxels = max(voxels, math.prod(map(int, numbers)))
                if math.prod(map(int, numbers)) not in range(1, _VOXELS + 1):
                    raise UserError(damaged.format(f"{key.decode()} is {value.strip()[:40]!r}"))
            if key == b"elementdatafile" and is_compressed and value.strip() == b"LOCAL":
                _check_compressed(path, file, most=64 * voxels)
            elif key == b"elementdatafile" and is_compressed:
                beside = path.parent / os.fsdecode(value.strip())
                if beside.is_file():
                    with beside.open("rb") as stream:
                        _check_compressed(beside, stream, most=64 * voxels)
            if not line or not line.strip() or key == b"elementdatafile":
                return


def _check_compressed(path: Path, file: BinaryIO, *, most: int) -> None:
    """Refuse a compressed stream, from the position of the file to its end, that is damaged, incomplete or too long."""
    stream = zlib.decompressobj(zlib.MAX_WBITS | 32)  # zlib, as ITK writes it, or gzip
    damaged = f"{path}: its compressed voxels are {{}}; copy or convert the file again"
    count = 0
    try:
        while not stream.eof and (block := stream.unconsumed_tail or file.read(_BLOCK)):
            count += len(stream.decompress(block, _BLOCK))
            if count > most:
                raise UserError(damaged.format(f"more than the {most:,} bytes that its size allows"))
    except zlib.error as error:
        raise UserError(damaged.format(f"damaged ({error})")) from error
    if not stream.eof:
        raise UserError(damaged.format("incomplete"))


def write_itk(array: NDArray[Any], affine: NDArray[np.float64], path: Path, *, axes: int = 3) -> None:
    """Write voxels ``[X, Y, Z]`` with their affine, in the format given by the ending; `axes=2` writes a 2-D file."""
    sitk = import_extra("SimpleITK", extra="simpleitk", needed_for=f"{path}: writing {path.suffix}")
    stored = array if axes == 3 else array[..., 0]
    image = sitk.GetImageFromArray(np.ascontiguousarray(stored.T))
    lps = (_LPS_TO_RAS @ affine)[:, [*range(axes), 3]]
    spacing = np.linalg.norm(lps[:axes, :axes], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:axes, :axes] / spacing).ravel().tolist())
    image.SetOrigin(lps[:axes, 3].tolist())
    sitk.WriteImage(image, str(path), True)
