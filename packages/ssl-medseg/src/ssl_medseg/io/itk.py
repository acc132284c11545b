"""Read and write NRRD and MetaImage files with SimpleITK."""

from __future__ import annotations

import math
import os
import re
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from contrastive_core.errors import UserError
from ssl_medseg.io.file_types import content_of
from ssl_medseg.io.volume import Grid, ImageFile, check_rest, check_voxel_size, checked_affine, import_extra

ITK_ENDINGS = (".nrrd", ".nhdr", ".mha", ".mhd")

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_SIZES = (b"space directions:", b"spacings:", b"elementspacing", b"elementsize")
_PLACES = re.compile(
    rb"^(?:space\s*:\s*(?:(?:left|right)-(?:anterior|posterior)-(?:superior|inferior)|[lr][ap][si])(?:-time|t)?\s*$"
    rb"|(?:transformmatrix|orientation|rotation)\s*=)",
    re.MULTILINE,
)
"""Lines that relate axes to the patient; NRRD's `space dimension`, `scanner-xyz` and `3D-right-handed` do not."""
_HEADER = 4096
_IN_MM = frozenset(("", "?", "mm", "none", "unknown", "millimeter", "millimeters", "millimetre", "millimetres"))
"""Units of length that are mm, or that programs write if they know none."""


def read_itk(path: Path, image: ImageFile | None = None, *, layers: bool = False) -> tuple[NDArray[Any], Grid, int]:
    """Read a NRRD or MetaImage file.

    Args:
        path: File to read.
        image: Image description, whose voxel size is used if the header states none.
        layers: Whether several numbers per voxel are allowed, which become a further axis.

    Returns:
        Voxels ``[X, Y, Z]`` in the data type of the file, their grid, and the number of axes of the file, 2 or 3.

    Raises:
        UserError: The file cannot be read, has another number of axes or an implausible voxel size, or SimpleITK is not
            installed.
    """
    sitk = import_extra("SimpleITK", extra="simpleitk", needed_for=f"{path}: reading {path.suffix}")
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; expected an image")
    if (problem := content_of(path)) and "NRRD" not in problem:
        raise UserError(f"{path}: {problem}")
    _check_header(path)
    beside = ", or the file with its voxels is missing" if path.suffix.lower() in (".mhd", ".nhdr") else ""
    try:
        # ITK recognises MetaImage by an ending in lower case only.
        is_meta = path.suffix != path.suffix.lower() and path.suffix.lower() in (".mha", ".mhd")
        itk_image = sitk.ReadImage(str(path), imageIO="MetaImageIO" if is_meta else "")
    except RuntimeError as error:  # ITK's own message spans many lines and names ITK's source files
        raise UserError(
            f"{path}: cannot be read as an image; the file is damaged, truncated or of another format{beside}. Copy or "
            "convert it again"
        ) from error
    axes, numbers = itk_image.GetDimension(), itk_image.GetNumberOfComponentsPerPixel()
    if axes not in (2, 3) or (numbers != 1 and not layers):
        raise UserError(
            f"{path}: has {axes} axes and {numbers} numbers per voxel; expected 2 or 3 axes and one number. Save one "
            "channel or frame"
        )
    if "complex" in itk_image.GetPixelIDTypeAsString():
        raise UserError(f"{path}: has complex voxels; expected one real number per voxel. Save a single component")
    affine = np.eye(4)
    affine[:axes, :axes] = np.asarray(itk_image.GetDirection()).reshape(axes, axes) * np.asarray(itk_image.GetSpacing())
    affine[:axes, 3] = itk_image.GetOrigin()
    array = np.moveaxis(sitk.GetArrayFromImage(itk_image), range(axes), range(axes - 1, -1, -1))
    array = array.reshape(*array.shape[:axes], *(1,) * (3 - axes), *array.shape[axes:])
    with path.open("rb") as file:
        header = file.read(_HEADER).lower()
    grid = Grid(
        (array.shape[0], array.shape[1], array.shape[2]),
        checked_affine(_LPS_TO_RAS @ affine, path),
        size_known=any(key in header for key in _SIZES),
        place_known=_PLACES.search(header) is not None,
    )
    if not grid.size_known:
        spacing = None if image is None else image.spacing
        grid = replace(grid.with_spacing(spacing or (1.0, 1.0, 1.0)), size_known=spacing is not None)
    check_voxel_size(grid, path)
    return array, grid, axes


def nrrd_fields(path: Path) -> dict[str, str]:
    """Return the key-value pairs (``key:=value``) in the header of a NRRD file, such as those of its segments.

    Raises:
        UserError: The file does not exist, or its header is damaged.
    """
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; expected an image")
    _check_header(path)
    fields = {}
    with path.open("rb") as file:
        for line in file:
            key, separator, value = line.decode("utf-8", errors="replace").rstrip("\r\n").partition(":=")
            if separator:
                fields[key] = re.sub(r"\\([n\\])", lambda escaped: escaped[1].replace("n", "\n"), value)
            if not line.strip():
                break
    return fields


_LINE, _PAIR, _LINES, _AXES, _VOXELS = 2000, 1 << 20, 20_000, 16, 1 << 36
"""Limits of a header; pairs of NRRD, such as the parameters of 3D Slicer or the labels of MITK, may be longer."""
_BLOCK = 1 << 20
_BYTES = {
    **dict.fromkeys(("char", "signed char", "int8", "int8_t", "uchar", "unsigned char", "uint8", "uint8_t"), 1),
    **dict.fromkeys(("short", "short int", "signed short", "int16", "int16_t", "signed short int"), 2),
    **dict.fromkeys(("ushort", "unsigned short", "uint16", "uint16_t", "unsigned short int"), 2),
    **dict.fromkeys(
        ("int", "signed int", "int32", "int32_t", "uint", "unsigned int", "uint32", "uint32_t", "float"), 4
    ),
    **dict.fromkeys(("longlong", "long long", "long long int", "signed long long", "int64", "int64_t", "double"), 8),
    **dict.fromkeys(("ulonglong", "unsigned long long", "uint64", "uint64_t", "unsigned long long int"), 8),
    **dict.fromkeys(("met_char", "met_uchar"), 1),
    **dict.fromkeys(("met_short", "met_ushort"), 2),
    **dict.fromkeys(("met_int", "met_uint", "met_float"), 4),
    **dict.fromkeys(("met_long_long", "met_ulong_long", "met_double"), 8),
}  # bytes per number, by the names of types in NRRD and MetaImage; others are left to ITK


def _check_header(path: Path) -> None:
    """Refuse what crashes ITK's native readers or passes them unnoticed.

    These are very long lines, bytes that are no text, impossible sizes, compressed voxels that do not decompress, for
    which ITK returns arbitrary values, and more voxels than the header states, of which ITK reads the first.

    Raises:
        UserError: The file is damaged.
    """
    damaged = f"{path}: its header is damaged ({{}}); copy or convert the file again"
    fields: dict[str, str] = {}
    with path.open("rb") as file:
        is_nrrd = file.read(4) == b"NRRD"
        file.seek(0)
        for _ in range(_LINES):
            line = file.readline(_PAIR + 1)
            limit = _PAIR if is_nrrd and b":=" in line[:_LINE] else _LINE
            if len(line) > limit:
                raise UserError(damaged.format(f"a line of more than {limit} bytes"))
            key, _, value = line.replace(b"=", b":", 1).partition(b":")
            key = key.strip().lower()
            if any(byte < 32 and byte not in b"\t\r\n" for byte in line):
                raise UserError(damaged.format("it contains bytes that are no text"))
            if key in (b"sizes", b"dimsize", b"dimension", b"ndims"):
                numbers = value.split()
                if not numbers or len(numbers) > _AXES or not all(n.isdigit() and len(n) <= 9 for n in numbers):
                    raise UserError(damaged.format(f"{key.decode()} is {value.strip()[:40]!r}"))
                counts_axes = key in (b"dimension", b"ndims")
                if counts_axes and (len(numbers) != 1 or int(numbers[0]) > _AXES):
                    raise UserError(damaged.format(f"{key.decode()} is {value.strip()[:40]!r}"))
                if math.prod(map(int, numbers)) not in range(1, _VOXELS + 1):
                    raise UserError(damaged.format(f"{key.decode()} is {value.strip()[:40]!r}"))
            fields[os.fsdecode(key)] = os.fsdecode(value.strip())
            if not line or not line.strip() or key == b"elementdatafile":
                break
        else:
            return  # without an end in so many lines, this is no header; ITK says so
        _check_unit(path, fields)
        _check_voxels(path, file, fields)


def _check_unit(path: Path, fields: dict[str, str]) -> None:
    """Refuse lengths in another unit than mm; ITK ignores the unit, and so do the viewers that use it.

    Raises:
        UserError: The header states another unit of length.
    """
    units = [
        *re.findall(r'"([^"]*)"', f"{fields.get('space units', '')} {fields.get('units', '')}"),
        fields.get("distanceunits", ""),
    ]
    others = [unit for unit in units if unit.strip().lower() not in _IN_MM]
    if others:
        raise UserError(
            f"{path}: its header states lengths in {others[0][:40]!r}; expected mm. Convert lengths and unit in "
            "the header to mm"
        )


def _check_voxels(path: Path, file: BinaryIO, fields: dict[str, str]) -> None:
    """Compare the stored bytes, behind the header or in a file beside it, with the size in the header.

    Raises:
        UserError: There are too many bytes, or a compressed stream is damaged or incomplete.
    """
    if "dimsize" in fields:
        is_packed = fields.get("compresseddata", "").lower()[:1] in ("t", "1")
        plain = not is_packed and "headersize" not in fields and fields.get("binarydata", "").lower()[:1] in ("t", "1")
        name, channels = fields.get("elementdatafile", ""), fields.get("elementnumberofchannels", "1")
        sizes, kind = fields["dimsize"], fields.get("elementtype", "")
        is_inside = name == "LOCAL"
    else:
        skips = any(key in fields for key in ("line skip", "lineskip", "byte skip", "byteskip"))
        is_packed = fields.get("encoding", "").lower() in ("gzip", "gz") and not skips
        plain = fields.get("encoding", "").lower() == "raw" and not skips
        name, channels = fields.get("data file", fields.get("datafile", "")), "1"
        sizes, kind = fields.get("sizes", ""), fields.get("type", "")
        is_inside = not name
    numbers = [int(n) for n in sizes.split()]
    if not numbers or not (is_packed or plain) or not channels.isdigit():
        return  # left to ITK
    width = _BYTES.get(kind.lower())
    whole = math.prod(numbers) * int(channels) * (width or 64)
    limit = whole + math.ceil(whole / numbers[-1]) - 1 if width else whole  # less than a slice more is padding
    beside = path.parent / name
    if not is_inside and not os.path.isfile(beside):  # noqa: PTH113 - also false for names that are too long
        if name.upper().startswith("LIST") or "%" in name:
            return  # several files: left to ITK
        raise UserError(
            f"{path}: cannot be read as an image; the file with its voxels, {name[:80]!r}, is missing. Copy that, too"
        )
    with path.open("rb") if is_inside else beside.open("rb") as stream:
        stream.seek(file.tell() if is_inside else 0)
        n_bytes = os.fstat(stream.fileno()).st_size - stream.tell()
        if is_packed:
            if not (length := fields.get("compresseddatasize", "0")).isdigit():
                raise UserError(
                    f"{path}: its header is damaged (compresseddatasize is {length[:40]!r}); copy or convert the file "
                    "again"
                )
            _check_compressed(path if is_inside else beside, stream, whole=whole if width else None, limit=limit)
        elif width and n_bytes < whole:
            raise UserError(
                f"{path}: cannot be read as an image; it is truncated to {n_bytes:,} of the {whole:,} bytes that its "
                "header states. Copy or convert it again"
            )
        elif width and n_bytes > limit:
            stream.seek(whole, os.SEEK_CUR)
            check_rest(stream.read(_REST), whole, path if is_inside else beside)


_REST = 64 << 20  # bytes behind the voxels that are searched for other values than zeros


def _check_compressed(path: Path, file: BinaryIO, *, whole: int | None, limit: int) -> None:
    """Refuse a compressed stream, from the position of the file on, that is damaged, incomplete or too long."""
    stream = zlib.decompressobj(zlib.MAX_WBITS | 32)  # zlib, as ITK writes it, or gzip
    damaged = f"{path}: its compressed voxels are {{}}; copy or convert the file again"
    count = 0
    try:
        while not stream.eof and (block := stream.unconsumed_tail or file.read(_BLOCK)):
            count += len(stream.decompress(block, _BLOCK))
            if count > limit:
                raise UserError(damaged.format(f"more than the {whole or limit:,} bytes that its size allows"))
    except zlib.error as error:
        raise UserError(damaged.format(f"damaged ({error})")) from error
    if not stream.eof or (whole is not None and count < whole):
        raise UserError(damaged.format("incomplete"))


def write_itk(array: NDArray[Any], affine: NDArray[np.float64], path: Path, *, axes: int = 3) -> None:
    """Write voxels ``[X, Y, Z]`` with their affine, in the format given by the ending; `axes=2` writes a 2-D file."""
    sitk = import_extra("SimpleITK", extra="simpleitk", needed_for=f"{path}: writing {path.suffix}")
    voxels = array if axes == 3 else array[..., 0]
    image = sitk.GetImageFromArray(np.ascontiguousarray(voxels.T))
    lps = (_LPS_TO_RAS @ affine)[:, [*range(axes), 3]]
    spacing = np.linalg.norm(lps[:axes, :axes], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:axes, :axes] / spacing).ravel().tolist())
    image.SetOrigin(lps[:axes, 3].tolist())
    sitk.WriteImage(image, str(path), True)
