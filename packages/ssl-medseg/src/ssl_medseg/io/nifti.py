"""Read NIfTI files, and the other formats that nibabel opens."""

from __future__ import annotations

import gzip
import io
import logging
import math
import re
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import nibabel
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from nibabel.fileholders import FileHolder
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from contrastive_core.errors import UserError
from contrastive_core.text import several
from contrastive_core.training.documents import reading
from contrastive_core.training.files import write_atomic
from ssl_medseg.io.file_types import content_of
from ssl_medseg.io.volume import Grid, ImageFile, by, check_rest, check_voxel_size, checked_affine

_KINDS = "the file is damaged, truncated or of another format"
_DISAGREE = 0.01
"""Accepted difference of sform and qform, as a fraction of a voxel's side; rounding of quaternions is far smaller."""
_MILLIMETRES = {"mm": 1.0, "meter": 1000.0, "micron": 0.001}

# A rotation by 180 degrees in a NIfTI-2 file converted from NIfTI-1 has float32 rounding, which nibabel accepts in
# NIfTI-1 only.
nibabel.Nifti2Header.quaternion_threshold = nibabel.Nifti1Header.quaternion_threshold
# nibabel logs every header field that it corrects; the relevant ones are reported as warnings and errors here.
logging.getLogger("nibabel.global").addFilter(lambda record: "pixdim" not in record.getMessage())


def open_nifti(path: Path) -> Any:
    """Open a file with nibabel; voxels are read on access only.

    Raises:
        UserError: The file does not exist or cannot be read.
    """
    if not path.is_file():
        problem = "is a link to a file that does not exist" if path.is_symlink() else "there is no such file"
        raise UserError(f"{path}: {problem}; expected a NIfTI image")
    if path.suffix.lower() == ".hdr":
        path = next((other for other in (path.with_suffix(".img"), path.with_suffix(".IMG")) if other.exists()), path)
    problem = content_of(path)
    if problem:
        raise UserError(f"{path}: {problem}")
    with reading(path, "cannot be read as an image", f"{_KINDS}. Copy or convert it again"):
        return _load(path)


def _load(path: Path) -> Any:
    """Load a file with nibabel, which takes endings in mixed case, such as .Nii.gz, for those in lower case."""
    ending = re.search(r"\.(nii|mgh|img)(\.gz)?$", path.name, re.IGNORECASE)
    if ending is None or ending[1] in (ending[1].lower(), ending[1].upper()):
        return nibabel.load(path)
    if ending[1].lower() == "img":
        raise UserError(f"{path}: the case of its ending prevents reading; rename it to {path.stem}.img")
    kinds = (nibabel.Nifti1Image, nibabel.Nifti2Image, nibabel.MGHImage)
    kind = next((kind for kind in kinds if kind.path_maybe_image(path)[0]), nibabel.Nifti1Image)
    return kind.from_file_map({"image": FileHolder(str(path))})


def one_volume(nib_image: Any, path: Path, *, channel: int | None, frame: int | None) -> tuple[int | slice, ...]:
    """Return the index that selects one 3-D volume from an image with up to five axes.

    The fourth axis is time or channels, the fifth channels. A 2-D image is one slice.

    Args:
        nib_image: Image opened by nibabel.
        path: File to name in errors.
        channel: Channel to select, counted from 0.
        frame: Frame to select, counted from 0.

    Raises:
        UserError: The file contains several volumes and none was selected, the selected one does not exist, there are
            no voxels, or a voxel is not one real number.
    """
    shape, options = nib_image.shape, {"frame": frame, "channel": channel}
    if 0 in shape:
        raise UserError(f"{path}: has the shape {by(shape)}, so no voxels; expected a volume. Export it again")
    selection = {name: number for name, number in options.items() if number is not None}
    if nib_image.get_data_dtype().fields is not None or np.issubdtype(nib_image.get_data_dtype(), np.complexfloating):
        content = "colour voxels (RGB)" if nib_image.get_data_dtype().fields is not None else "complex voxels"
        raise UserError(f"{path}: has {content}; expected one real number per voxel. Save a single component")
    index: list[int | slice] = [slice(None)] * min(len(shape), 3)
    more = list(shape[3:])
    axes_of_more = list(range(3, len(shape)))
    # Axes of length 1 need no choice: vectors are stored as X x Y x Z x 1 x N.
    for axis in reversed(range(len(more))):
        if more[axis] == 1 and len(more) > len(selection):
            del more[axis], axes_of_more[axis]
    if len(selection) > len(more) or len(more) > 2:
        raise UserError(
            f"{path}: has the shape {by(shape)}, so {_describe(selection)} cannot be chosen; "
            f"expected {'no channel or frame' if not more else 'an image of 3 to 5 axes'}"
        )
    if len(more) > len(selection) and len(shape) == 4 and shape[0] == 1:
        raise UserError(
            f"{path}: has the shape {by(shape)}, whose first axis has length 1; if that is a channel axis, the header "
            f"describes the wrong axes. Save the image with the shape {by(shape[1:])}, or select a volume with --frame "
            "or --channels"
        )
    if len(more) > len(selection):
        axes = "frames or channels" if len(more) == 1 else "frames and channels"
        raise UserError(
            f"{path}: has the shape {by(shape)}, several volumes ({axes}: {by(more)}); expected one. Choose one with "
            f"{'--frame or --channels' if len(more) == 1 else '--frame and --channels'}, counted from 0; volumes are "
            "never averaged"
        )
    index += [0] * (len(shape) - len(index))
    for (name, number), count, axis in zip(selection.items(), more, axes_of_more, strict=True):
        if not 0 <= number < count:
            raise UserError(f"{path}: has no {name} {number}; it has {count}, counted from 0")
        index[axis] = number
    return tuple(index)


def nifti_array(nib_image: Any, path: Path, index: tuple[int | slice, ...], dtype: Any = None) -> NDArray[Any]:
    """Read the voxels of one 3-D volume; with `dtype` None, integers stay integers.

    Raises:
        UserError: The voxels cannot be read.
    """
    with reading(path, "its voxels cannot be read", "the file is damaged or truncated. Copy it again"):
        voxels = _voxels(nib_image, path)[index]
    with np.errstate(over="ignore"):  # values beyond float32 become infinite, which is reported
        array = np.asarray(voxels, dtype=dtype)
    return array.reshape(array.shape + (1,) * (3 - array.ndim))


def _voxels(nib_image: Any, path: Path) -> Any:
    """Return the array proxy from which voxels are read on access.

    A compressed file with one volume is unpacked completely, so that the checksum at its end is verified.
    """
    lazy, name = nib_image.dataobj, path.name.lower()
    holder = Path(nib_image.file_map["image"].filename)
    n_bytes = holder.stat().st_size
    with holder.open("rb") as file:
        is_packed = file.read(2) == b"\x1f\x8b"
    _see_all(lazy, n_bytes * _DEFLATE if is_packed else n_bytes)
    if name.endswith(".nii.gz") and math.prod(nib_image.shape[3:]) == 1:
        content = _unpacked(path, most=_needed(lazy) + _BEYOND)
        _see_all(lazy, len(content))
        if len(content) - _needed(lazy) >= _slice(lazy):
            check_rest(content[_needed(lazy) :], _needed(lazy), path)
        return ArrayProxy(io.BytesIO(content), (lazy.shape, lazy.dtype, lazy.offset, lazy.slope, lazy.inter))
    if not is_packed and n_bytes - _needed(lazy) >= _slice(lazy):
        with holder.open("rb") as file:
            file.seek(_needed(lazy))
            check_rest(file.read(_BEYOND), _needed(lazy), holder)
    return lazy


#: Largest compression ratio of deflate.
_DEFLATE = 1032
#: Largest number of bytes that may follow the voxels.
_BEYOND = 16 << 20


def _unpacked(path: Path, *, most: int) -> bytes:
    """Unpack a gzip file with one or several members, which zeros may follow.

    Raises:
        UserError: The content exceeds `most` bytes, or data other than zeros follow the members.
    """
    bomb = UserError(
        f"{path}: unpacks to more than the {most - _BEYOND:,} bytes that its header states; the file is damaged or was "
        "made to exhaust the memory. Export it again"
    )
    packed = path.read_bytes()
    try:
        # Reading to the end verifies the checksum.
        with gzip.GzipFile(fileobj=io.BytesIO(packed)) as file:
            content = file.read(most + 1)
        if len(content) > most:
            raise bomb
        return content
    except gzip.BadGzipFile as error:
        if "Not a gzipped file" not in str(error):  # the checksum is wrong
            raise
        rest = packed
        while rest[:2] == b"\x1f\x8b":
            member = zlib.decompressobj(wbits=31)
            member.decompress(rest, most + 1)
            if member.unconsumed_tail:
                raise bomb from error
            if not member.eof:  # the member itself is damaged
                raise
            rest = member.unused_data
        raise UserError(
            f"{path}: its compressed content is followed by {several(len(rest), 'byte')} that are not gzip-compressed; "
            "the file was overwritten or joined with another one. Copy it again"
        ) from error


def _needed(lazy: Any) -> int:
    """Return the number of bytes up to the last voxel, according to the header."""
    return int(lazy.offset) + math.prod(map(int, lazy.shape)) * int(lazy.dtype.itemsize)


def _slice(lazy: Any) -> int:
    """Return the number of bytes of a slice of the last axis."""
    return int(math.prod(map(int, lazy.shape[:-1])) * lazy.dtype.itemsize)


def _see_all(lazy: Any, size: int) -> None:
    """Refuse a file that is too short, before memory is allocated for the size that a damaged header may state."""
    needed = _needed(lazy)
    if size < needed:
        raise EOFError(f"{size:,} bytes of the {needed:,} that its header states")


def nifti_grid(nib_image: Any, path: Path, image: ImageFile | None = None) -> Grid:
    """Return the grid of an image in mm, from the sform if its code is above 0, otherwise from the qform.

    If both codes are 0, neither position nor voxel size is known; `image` may then state the voxel size or declare
    pixdim as valid. A header without a unit is assumed to be in mm, unless its affine is the identity: programs write
    that if they do not know the geometry, so it counts as unknown.

    Args:
        nib_image: Image opened by nibabel.
        path: File to name in errors.
        image: Image description with the voxel size for files that do not state it.

    Raises:
        UserError: The voxel size is implausible, the unit is not a unit of length, or the affine is not invertible.
    """
    x, y, z = (*nib_image.shape[:3], 1, 1)[:3]
    shape = (int(x), int(y), int(z))  # nibabel gives the axes of MGH as int32, which JSON cannot store
    if not isinstance(nib_image, nibabel.Nifti1Pair):
        # MGH may state sizes and positions; Analyze states only sizes, and no unit.
        has_geometry = isinstance(nib_image, nibabel.MGHImage) and _states_geometry(nib_image)
        grid = Grid(shape, checked_affine(nib_image.affine, path), size_known=has_geometry, place_known=has_geometry)
    else:
        _check_header(nib_image, path)
        unit = _unit(nib_image.header, path)
        affine = checked_affine(stored_affine(nib_image), path)
        affine[:3] *= _MILLIMETRES.get(unit, 1.0)
        coded = int(nib_image.header["sform_code"]) > 0 or int(nib_image.header["qform_code"]) > 0
        bare = unit == "unknown" and np.array_equal(np.abs(affine), np.eye(4))
        grid = Grid(shape, affine, size_known=coded and not bare, place_known=coded and not bare)
        check_voxel_size(grid, path, unit="none" if unit == "unknown" else unit)
    return _as_stated(grid, image)


def _states_geometry(nib_image: nibabel.MGHImage) -> bool:
    """Return whether goodRASFlag of an MGH file is set; otherwise, nibabel replaces the geometry, and the flag."""
    with nib_image.file_map["image"].get_prepare_fileobj("rb") as file:
        start = bytes(file.read(30))
    return start[28:] != b"\0\0"


def stored_affine(nib_image: Any) -> NDArray[np.float64]:
    """Return the affine of a NIfTI image in the unit of its header."""
    if int(nib_image.header["sform_code"]) == 0 and int(nib_image.header["qform_code"]) > 0:
        qform = _qform(nib_image)
        return np.asarray(nib_image.header.get_base_affine() if qform is None else qform, dtype=np.float64)
    return np.asarray(nib_image.header.get_best_affine(), dtype=np.float64)


def nifti_warnings(nib_image: Any, grid: Grid) -> tuple[str, ...]:
    """Return warnings about the geometry in a NIfTI header, as clauses."""
    if not isinstance(nib_image, nibabel.Nifti1Pair):
        return () if grid.place_known else ("the file states no position: the patient's left and right are unknown",)
    zooms = by(f"{size:.4g}" for size in nib_image.header.get_zooms()[:3])
    if not grid.place_known:
        problem = (
            "sform and qform both have code 0: the orientation, and so the patient's left and right, are unknown"
            if int(nib_image.header["sform_code"]) == int(nib_image.header["qform_code"]) == 0
            else "the affine is the identity and the header states no unit: the orientation, and so the patient's left "
            "and right, are unknown"
        )
        size = "" if grid.size_known else f", and so is the voxel size (the header's pixdim is {zooms})"
        return (f"{problem}{size}",)
    apart, more = _forms_apart(nib_image, grid), _bytes_beyond(nib_image)
    notes = [f"sform and qform contradict each other, by up to {apart:.3g} mm; the sform is used"] if apart else []
    if not apart and _sizes_differ(nib_image, grid):
        notes.append(
            f"sform and pixdim state different voxel sizes, {by(f'{size:.4g}' for size in grid.spacing)} mm and "
            f"{zooms}; the sform is used"
        )
    if more:
        notes.append(f"{several(more, 'byte')} after the voxels stated in the header are not read")
    return tuple(notes)


def _bytes_beyond(nib_image: Any) -> int:
    """Return the number of bytes after the voxels of an uncompressed file; 0 if they are padding with zeros."""
    name = nib_image.file_map["image"].filename
    if name is None or not str(name).lower().endswith(".nii") or not hasattr(nib_image.dataobj, "offset"):
        return 0
    with Path(name).open("rb") as file:
        file.seek(_needed(nib_image.dataobj))
        start = file.read(4096)
    return Path(name).stat().st_size - _needed(nib_image.dataobj) if start.strip(b"\0") else 0


def take_form(path: Path, form: Literal["sform", "qform"]) -> str:
    """Resolve a contradiction between the sform and the qform of a NIfTI file by setting the other one to `form`.

    Only the header changes.

    Returns:
        Description of the change; empty if the two do not contradict each other.

    Raises:
        UserError: The file cannot be read, or the qform cannot represent the sform because that contains a shear. The
            file is then left unchanged.
    """
    nib_image = open_nifti(path)
    if not isinstance(nib_image, nibabel.Nifti1Pair) or not (
        apart := _forms_apart(nib_image, nifti_grid(nib_image, path))
    ):
        return ""
    file_bytes = path.read_bytes()
    is_packed = file_bytes[:2] == b"\x1f\x8b"
    content = _unpacked(path, most=_needed(nib_image.dataobj) + _BEYOND) if is_packed else file_bytes
    # The header is read from the bytes, because nibabel clears the scaling in the header of a loaded image.
    header = type(nib_image.header).from_fileobj(io.BytesIO(content))
    if form == "sform":
        header.set_qform(*header.get_sform(coded=True))
    else:
        header.set_sform(*header.get_qform(coded=True))
    block = header.binaryblock
    content = block + content[len(block) :]
    write_atomic(path, gzip.compress(content, mtime=0) if is_packed else content)
    again = open_nifti(path)
    if left := _forms_apart(again, nifti_grid(again, path)):
        write_atomic(path, file_bytes)
        raise UserError(
            f"{path}: the qform cannot represent the sform, a difference of {left:.3g} mm would remain; expected an "
            "sform without shear. Use --repair qform, or resample the image"
        )
    other = "qform" if form == "sform" else "sform"
    return f"its {other} was set to the {form}, from which it differed by up to {apart:.3g} mm"


def _as_stated(grid: Grid, image: ImageFile | None) -> Grid:
    """Give a grid of unknown voxel size the size that the user states; otherwise sides of length 1."""
    if grid.size_known:
        return grid
    if image is not None and image.spacing is not None:
        return grid.with_spacing(image.spacing)
    if image is not None and image.trust_pixdim:
        result = replace(grid, size_known=True)
        check_voxel_size(result, image.path, unit="none")
        return result
    return replace(grid.with_spacing((1.0, 1.0, 1.0)), size_known=False)


def _check_header(nib_image: Any, path: Path) -> None:
    """Refuse voxel sizes and offsets that nibabel replaces or accepts silently.

    Voxel sizes must be finite and above 0. With an offset of 0, nibabel reads the header of a single file as voxels.
    """
    holder = nib_image.file_map.get("header") or nib_image.file_map["image"]
    with holder.get_prepare_fileobj("rb") as file:
        raw = type(nib_image.header).from_fileobj(file, check=False)
    if isinstance(nib_image, nibabel.Nifti1Image) and int(raw["vox_offset"]) < raw.single_vox_offset:
        raise UserError(
            f"{path}: the header states that the voxels begin at byte {int(raw['vox_offset'])} (vox_offset), which is "
            f"inside of the header; expected {raw.single_vox_offset} or more. Correct the header, or convert the image "
            "from its source again"
        )
    sizes = [float(size) for size in raw["pixdim"][1:4]]
    needed = [size for size, voxels in zip(sizes, nib_image.shape[:3], strict=False) if voxels > 1]
    if not all(math.isfinite(size) and size > 0 for size in needed):
        raise UserError(
            f"{path}: the header states a voxel size of {by(f'{size:g}' for size in sizes)} (pixdim); expected sizes "
            "above 0. Correct the header, or convert the image from its source again"
        )


def _unit(header: Any, path: Path) -> str:
    """Return the unit of length that a header states: ``mm``, ``meter``, ``micron`` or ``unknown``."""
    code = int(header["xyzt_units"]) & 7
    unit = {0: "unknown", 1: "meter", 2: "mm", 3: "micron"}.get(code)
    if unit is None:
        raise UserError(f"{path}: the header states a unit of length with code {code}; expected 0 to 3 (m, mm or µm)")
    return unit


def _forms_apart(nib_image: Any, grid: Grid) -> float:
    """Return the largest distance in mm between the positions that sform and qform give a voxel.

    The result is 0 if the difference is rounding, or if either has code 0.
    """
    sform, qform = nib_image.get_sform(coded=True)[0], _qform(nib_image)
    if sform is None or qform is None:
        return 0.0
    scale = _MILLIMETRES.get(_unit(nib_image.header, Path("header")), 1.0)
    first, second = (Grid(grid.shape, np.diag([scale, scale, scale, 1.0]) @ form) for form in (sform, qform))
    apart = float(np.linalg.norm(first.corners - second.corners, axis=1).max())
    return apart if apart > _DISAGREE * min(grid.spacing) else 0.0


def _sizes_differ(nib_image: Any, grid: Grid) -> bool:
    """Return whether pixdim, which some programs use instead of the sform, states a different voxel size."""
    scale = _MILLIMETRES.get(_unit(nib_image.header, Path("header")), 1.0)
    sizes = [scale * float(size) for size in nib_image.header.get_zooms()[:3]]
    return any(
        abs(size / used - 1) * voxels > _DISAGREE
        for size, used, voxels in zip(sizes, grid.spacing, grid.shape, strict=False)
        if voxels > 1
    )


def _qform(nib_image: Any) -> Any:
    """Return the qform if its code is above 0 and its quaternion is valid; otherwise None."""
    try:
        return nib_image.header.get_qform(coded=True)[0]
    except (HeaderDataError, ValueError):  # a quaternion longer than 1 is not a rotation
        return None


def _describe(selection: dict[str, int]) -> str:
    return " and ".join(f"{name} {number}" for name, number in selection.items()) or "one volume"
