"""Read NIfTI files, and the other formats that nibabel opens."""

from __future__ import annotations

import gzip
import io
import logging
import math
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import nibabel
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from contrastive_core.errors import UserError
from contrastive_core.training.documents import reading
from contrastive_core.training.files import write_atomic
from ssl_medseg.io.file_types import content_of
from ssl_medseg.io.volume import Grid, ImageFile, by, check_voxel_size, checked_affine

_KINDS = "the file is damaged, cut off or of another kind"
_DISAGREE = 0.01
"""Share of a voxel's side by which sform and qform may differ: rounding of quaternions stays far below it."""
_MILLIMETRES = {"mm": 1.0, "meter": 1000.0, "micron": 0.001}

# A half turn in a NIfTI-2 file that was converted from NIfTI-1 has the rounding of float32, which nibabel allows for
# NIfTI-1 alone.
nibabel.Nifti2Header.quaternion_threshold = nibabel.Nifti1Header.quaternion_threshold
# nibabel logs every oddity of a header that it corrects; what matters of them is in warnings and errors here.
logging.getLogger("nibabel.global").addFilter(lambda record: "pixdim" not in record.getMessage())


def open_nifti(path: Path) -> Any:
    """Nibabel's image, whose voxels are read when they are asked for.

    Raises:
        UserError: There is no such file, or it cannot be read.
    """
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; expected a NIfTI image")
    if path.suffix.lower() == ".hdr":
        path = next((other for other in (path.with_suffix(".img"), path.with_suffix(".IMG")) if other.exists()), path)
    what = content_of(path)
    if what:
        raise UserError(f"{path}: {what}")
    with reading(path, "cannot be read as an image", f"{_KINDS}. Copy or convert it again"):
        return nibabel.load(path)


def one_volume(opened: Any, path: Path, *, channel: int | None, frame: int | None) -> tuple[int | slice, ...]:
    """The index that takes one 3-D volume out of an image of any number of axes.

    The fourth axis is time or channels, the fifth channels. A two-dimensional image is one slice.

    Raises:
        UserError: several volumes and no choice, a choice that is not there, no voxels, or not one number for each.
    """
    shape, wanted = opened.shape, {"frame": frame, "channel": channel}
    if 0 in shape:
        raise UserError(f"{path}: has the shape {by(shape)}, so no voxel at all; expected a volume. Export it again")
    chosen = {name: number for name, number in wanted.items() if number is not None}
    if opened.get_data_dtype().fields is not None or np.issubdtype(opened.get_data_dtype(), np.complexfloating):
        found = "colour voxels (RGB)" if opened.get_data_dtype().fields is not None else "complex voxels"
        raise UserError(f"{path}: has {found}; expected one real number each. Save one component")
    index: list[int | slice] = [slice(None)] * min(len(shape), 3)
    more = list(shape[3:])
    axes_of_more = list(range(3, len(shape)))
    # Axes of one hold nothing to choose: vectors are stored as X x Y x Z x 1 x N.
    for axis in reversed(range(len(more))):
        if more[axis] == 1 and len(more) > len(chosen):
            del more[axis], axes_of_more[axis]
    if len(chosen) > len(more) or len(more) > 2:
        raise UserError(
            f"{path}: has the shape {by(shape)}, so {_words(chosen)} cannot be chosen; "
            f"expected {'no channel or frame' if not more else 'an image of 3 to 5 axes'}"
        )
    if len(more) > len(chosen) and len(shape) == 4 and shape[0] == 1:
        raise UserError(
            f"{path}: has the shape {by(shape)}; its first axis has one voxel, as in arrays with the channel first, so "
            "that its header places other axes than it means. Save it as "
            f"{by(shape[1:])}, or choose by --frame or --channels"
        )
    if len(more) > len(chosen):
        axes = "frames or channels" if len(more) == 1 else "frames and channels"
        raise UserError(
            f"{path}: has the shape {by(shape)}, several volumes ({axes}: {by(more)}); expected one. Say which by "
            f"{'--frame or --channels' if len(more) == 1 else '--frame and --channels'}, counted from 0; nothing is "
            "averaged"
        )
    index += [0] * (len(shape) - len(index))
    for (name, number), count, axis in zip(chosen.items(), more, axes_of_more, strict=True):
        if not 0 <= number < count:
            raise UserError(f"{path}: has no {name} {number}; it has {count}, counted from 0")
        index[axis] = number
    return tuple(index)


def nifti_array(opened: Any, path: Path, index: tuple[int | slice, ...], dtype: Any = None) -> NDArray[Any]:
    """The voxels of one 3-D volume; `dtype` None keeps whole numbers whole."""
    with reading(path, "its voxels cannot be read", "the file is damaged or cut off. Copy it again"):
        array = np.asarray(_voxels(opened, path)[index], dtype=dtype)
    return array.reshape(array.shape + (1,) * (3 - array.ndim))


def _voxels(opened: Any, path: Path) -> Any:
    """What voxels are read from when they are asked for.

    A compressed file of one volume is unpacked as a whole, which compares it with the checksum at its end.
    """
    lazy, name = opened.dataobj, path.name.lower()
    holder = Path(opened.file_map["image"].filename)
    stored = holder.stat().st_size
    with holder.open("rb") as file:
        is_packed = file.read(2) == b"\x1f\x8b"
    _see_all(lazy, stored * _DEFLATE if is_packed else stored)
    if name.endswith(".nii.gz") and math.prod(opened.shape[3:]) == 1:
        content = _unpacked(path, most=_needed(lazy) + _BEYOND)
        _see_all(lazy, len(content))
        return ArrayProxy(io.BytesIO(content), (lazy.shape, lazy.dtype, lazy.offset, lazy.slope, lazy.inter))
    return lazy


#: How many bytes a compressed byte can stand for.
_DEFLATE = 1032
#: Bytes that may follow the voxels.
_BEYOND = 16 << 20


def _unpacked(path: Path, *, most: int) -> bytes:
    """The content of a gzip file of one or several members, which zeros may follow.

    Raises:
        UserError: It unpacks to more than so many bytes, or something else follows.
    """
    bomb = UserError(
        f"{path}: unpacks to more than the {most - _BEYOND:,} bytes that its header says; it is damaged or was made to "
        "fill the memory. Export it again"
    )
    packed = path.read_bytes()
    try:
        # Read to the end, where the checksum is compared.
        with gzip.GzipFile(fileobj=io.BytesIO(packed)) as file:
            content = file.read(most + 1)
        if len(content) > most:
            raise bomb
        return content
    except gzip.BadGzipFile as error:
        if "Not a gzipped file" not in str(error):  # a checksum that does not fit
            raise
        rest = packed
        while rest[:2] == b"\x1f\x8b":
            member = zlib.decompressobj(wbits=31)
            member.decompress(rest, most + 1)
            if member.unconsumed_tail:
                raise bomb from error
            if not member.eof:  # damaged within, and not followed by something else
                raise
            rest = member.unused_data
        raise UserError(
            f"{path}: {len(rest):,} bytes that are not gzip-compressed follow its compressed content; the file was "
            "overwritten or joined with another one. Copy it again"
        ) from error


def _needed(lazy: Any) -> int:
    """Bytes of a file up to its last voxel, as its header says."""
    return int(lazy.offset) + math.prod(map(int, lazy.shape)) * int(lazy.dtype.itemsize)


def _see_all(lazy: Any, size: int) -> None:
    """Refuse a file that is too short before there is memory taken for what a damaged header says."""
    needed = _needed(lazy)
    if size < needed:
        raise EOFError(f"{size:,} bytes of the {needed:,} that its header says")


def nifti_grid(opened: Any, path: Path, image: ImageFile | None = None) -> Grid:
    """The grid of an image's volumes in mm: by the sform if its code is above 0, else by the qform, else by pixdim.

    The size of a voxel is known if a form code is above 0 and the header states a unit; a header without a unit is
    taken to be in mm, unless its affine is the bare identity, which programs write that know nothing. Where the codes
    are 0 the header's pixdim is not trusted unless `image` says so.

    Args:
        opened: nibabel's image.
        path: Its file, for errors.
        image: States the size of a voxel for files that do not know it.

    Raises:
        UserError: Sizes that no scanner makes, a unit that is none of length, or no affine.
    """
    x, y, z = (*opened.shape[:3], 1, 1)[:3]
    shape = (x, y, z)
    if not isinstance(opened, nibabel.Nifti1Pair):
        # MGH and the like state sizes and positions; Analyze states sizes only, and those without a unit.
        analyze = isinstance(opened, nibabel.AnalyzeImage)
        grid = Grid(shape, checked_affine(opened.affine, path), size_known=not analyze, place_known=not analyze)
    else:
        _check_pixdim(opened, path)
        unit = _unit(opened.header, path)
        affine = checked_affine(stored_affine(opened), path)
        affine[:3] *= _MILLIMETRES.get(unit, 1.0)
        coded = int(opened.header["sform_code"]) > 0 or int(opened.header["qform_code"]) > 0
        bare = unit == "unknown" and np.array_equal(np.abs(affine), np.eye(4))
        grid = Grid(shape, affine, size_known=coded and not bare, place_known=coded and not bare)
        check_voxel_size(grid, path, unit="none" if unit == "unknown" else unit)
    return _as_stated(grid, image)


def stored_affine(opened: Any) -> NDArray[np.float64]:
    """The affine of a NIfTI image in the unit of its header, as nibabel writes it back."""
    if int(opened.header["sform_code"]) == 0 and int(opened.header["qform_code"]) > 0:
        qform = _qform(opened)
        return np.asarray(opened.header.get_base_affine() if qform is None else qform, dtype=np.float64)
    return np.asarray(opened.header.get_best_affine(), dtype=np.float64)


def nifti_warnings(opened: Any, grid: Grid) -> tuple[str, ...]:
    """Oddities of a NIfTI header's geometry, as sentences."""
    if not isinstance(opened, nibabel.Nifti1Pair):
        return () if grid.place_known else ("the format states no position: the patient's sides are unknown",)
    zooms = by(f"{size:.4g}" for size in opened.header.get_zooms()[:3])
    if not grid.place_known:
        found = (
            "sform and qform both have code 0: sides and orientation of the patient are unknown"
            if int(opened.header["sform_code"]) == int(opened.header["qform_code"]) == 0
            else "the affine is the identity and the header states no unit: sides and orientation are unknown"
        )
        size = "" if grid.size_known else f", and so is the size of a voxel (the header's pixdim holds {zooms})"
        return (f"{found}{size}",)
    apart, more = _forms_apart(opened, grid), _bytes_beyond(opened)
    notes = [f"sform and qform contradict each other, by up to {apart:.3g} mm; the sform is used"] if apart else []
    if not apart and _sizes_differ(opened, grid):
        notes.append(
            f"the voxels are {by(f'{size:.4g}' for size in grid.spacing)} mm large by the sform, which is used, and "
            f"{zooms} by pixdim"
        )
    if more:
        notes.append(f"{more:,} bytes follow the voxels that the header states; they are not read")
    return tuple(notes)


def _bytes_beyond(opened: Any) -> int:
    """Bytes behind the voxels of an uncompressed file, but for padding with zeros."""
    name = opened.file_map["image"].filename
    if name is None or not str(name).lower().endswith(".nii") or not hasattr(opened.dataobj, "offset"):
        return 0
    with Path(name).open("rb") as file:
        file.seek(_needed(opened.dataobj))
        start = file.read(4096)
    return Path(name).stat().st_size - _needed(opened.dataobj) if start.strip(b"\0") else 0


def take_form(path: Path, form: Literal["sform", "qform"]) -> str:
    """Where sform and qform of a NIfTI file contradict each other, set the other one to this; no other byte changes.

    Returns:
        What was done, in words; empty if there was nothing to do.

    Raises:
        UserError: the file cannot be read, or its qform cannot hold the sform (a shear); then it stays as it is.
    """
    opened = open_nifti(path)
    if not isinstance(opened, nibabel.Nifti1Pair) or not (apart := _forms_apart(opened, nifti_grid(opened, path))):
        return ""
    stored = path.read_bytes()
    is_packed = stored[:2] == b"\x1f\x8b"
    content = _unpacked(path, most=_needed(opened.dataobj) + _BEYOND) if is_packed else stored
    # From the bytes: nibabel clears the scaling of voxels in the header of an image it has loaded.
    header = type(opened.header).from_fileobj(io.BytesIO(content))
    if form == "sform":
        header.set_qform(*header.get_sform(coded=True))
    else:
        header.set_sform(*header.get_qform(coded=True))
    block = header.binaryblock
    content = block + content[len(block) :]
    write_atomic(path, gzip.compress(content, mtime=0) if is_packed else content)
    again = open_nifti(path)
    if left := _forms_apart(again, nifti_grid(again, path)):
        write_atomic(path, stored)
        raise UserError(f"{path}: its qform cannot hold its sform, {left:.3g} mm would remain; expected no shear")
    return f"placed by its {form} alone: the other one was up to {apart:.3g} mm off"


def _as_stated(grid: Grid, image: ImageFile | None) -> Grid:
    """The grid with the size of a voxel that the user states, where the file does not; else with sides of 1."""
    if grid.size_known:
        return grid
    if image is not None and image.spacing is not None:
        return grid.with_spacing(image.spacing)
    if image is not None and image.trust_pixdim:
        trusted = replace(grid, size_known=True)
        check_voxel_size(trusted, image.path, unit="none")
        return trusted
    return replace(grid.with_spacing((1.0, 1.0, 1.0)), size_known=False)


def _check_pixdim(opened: Any, path: Path) -> None:
    """Refuse sizes of 0, below 0 or that are no numbers, which nibabel silently replaces by others."""
    holder = opened.file_map.get("header") or opened.file_map["image"]
    with holder.get_prepare_fileobj("rb") as file:
        raw = type(opened.header).from_fileobj(file, check=False)
    sizes = [float(size) for size in raw["pixdim"][1:4]]
    needed = [size for size, voxels in zip(sizes, opened.shape[:3], strict=False) if voxels > 1]
    if not all(math.isfinite(size) and size > 0 for size in needed):
        raise UserError(
            f"{path}: the header states voxels of {by(f'{size:g}' for size in sizes)} (pixdim); expected sizes above "
            "0. Correct the header, or convert the image from its source again"
        )


def _unit(header: Any, path: Path) -> str:
    """The unit of length that a header states: ``mm``, ``meter``, ``micron`` or ``unknown``."""
    code = int(header["xyzt_units"]) & 7
    unit = {0: "unknown", 1: "meter", 2: "mm", 3: "micron"}.get(code)
    if unit is None:
        raise UserError(f"{path}: the header states a unit of length with code {code}; expected 0 to 3 (m, mm or µm)")
    return unit


def _forms_apart(opened: Any, grid: Grid) -> float:
    """By how many mm sform and qform put a voxel to different places; 0 where that is rounding, or one has no code."""
    sform, qform = opened.get_sform(coded=True)[0], _qform(opened)
    if sform is None or qform is None:
        return 0.0
    scale = _MILLIMETRES.get(_unit(opened.header, Path("header")), 1.0)
    first, second = (Grid(grid.shape, np.diag([scale, scale, scale, 1.0]) @ form) for form in (sform, qform))
    apart = float(np.linalg.norm(first.corners - second.corners, axis=1).max())
    return apart if apart > _DISAGREE * min(grid.spacing) else 0.0


def _sizes_differ(opened: Any, grid: Grid) -> bool:
    """Whether pixdim, which some programs read instead, states other sizes of voxels than the sform."""
    scale = _MILLIMETRES.get(_unit(opened.header, Path("header")), 1.0)
    stated = [scale * float(size) for size in opened.header.get_zooms()[:3]]
    return any(
        abs(size / used - 1) * voxels > _DISAGREE
        for size, used, voxels in zip(stated, grid.spacing, grid.shape, strict=False)
        if voxels > 1
    )


def _qform(opened: Any) -> Any:
    """The qform if its code is above 0 and its quaternion is one."""
    try:
        return opened.header.get_qform(coded=True)[0]
    except (HeaderDataError, ValueError):  # a quaternion longer than 1 places nothing
        return None


def _words(chosen: dict[str, int]) -> str:
    return " and ".join(f"{name} {number}" for name, number in chosen.items()) or "one volume"
