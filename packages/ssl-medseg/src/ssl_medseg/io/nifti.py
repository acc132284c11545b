"""Read NIfTI files, and the other formats that nibabel opens."""

from __future__ import annotations

import gzip
import io
import math
import zlib
from pathlib import Path
from typing import Any, Literal

import nibabel
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray

from contrastive_core.errors import UserError
from contrastive_core.training.files import write_atomic
from ssl_medseg.io.volume import Grid, checked_affine

_DAMAGED = (
    ImageFileError, WrapStructError, HeaderDataError, OSError, EOFError, ValueError, OverflowError, zlib.error,
)  # fmt: skip
_DISAGREE = 0.01
"""Share of a voxel's side by which sform and qform may differ: rounding of quaternions stays far below it."""


def open_nifti(path: Path) -> Any:
    """Nibabel's image, whose voxels are read when they are asked for.

    Raises:
        UserError: there is no such file, or it cannot be read.
    """
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; expected a NIfTI image")
    try:
        return nibabel.load(path)
    except _DAMAGED as error:
        raise UserError(
            f"{path}: cannot be read as an image ({_said(error)}); the file is damaged, cut off or of another kind. "
            "Copy or convert it again"
        ) from error


def one_volume(opened: Any, path: Path, *, channel: int | None, frame: int | None) -> tuple[int | slice, ...]:
    """The index that takes one 3-D volume out of an image of any number of axes.

    The fourth axis is time or channels, the fifth channels. A two-dimensional image is one slice.

    Raises:
        UserError: several volumes and no choice, a choice that is not there, no voxels, or not one number for each.
    """
    shape, wanted = opened.shape, {"frame": frame, "channel": channel}
    if 0 in shape:
        raise UserError(f"{path}: has the shape {_by(shape)}, so no voxel at all; expected a volume. Export it again")
    chosen = {name: number for name, number in wanted.items() if number is not None}
    if opened.get_data_dtype().fields is not None or np.issubdtype(opened.get_data_dtype(), np.complexfloating):
        raise UserError(
            f"{path}: has voxels of type {opened.get_data_dtype()}, expected one real number each; save one component"
        )
    index: list[int | slice] = [slice(None)] * min(len(shape), 3)
    more = list(shape[3:])
    while more and more[-1] == 1 and len(more) > len(chosen):
        more.pop()
    if len(chosen) > len(more) or len(more) > 2:
        raise UserError(
            f"{path}: has the shape {_by(shape)}, so {_words(chosen)} cannot be chosen; "
            f"expected {'no channel or frame' if not more else 'an image of 3 to 5 axes'}"
        )
    if len(more) > len(chosen):
        axes = "frames or channels" if len(more) == 1 else "frames and channels"
        raise UserError(
            f"{path}: has the shape {_by(shape)}, several volumes ({axes}: {_by(more)}); expected one. Say which by "
            f"{'frame or channel' if len(more) == 1 else 'frame and channel'}, counted from 0; nothing is averaged"
        )
    for (name, number), count in zip(chosen.items(), more, strict=True):
        if not 0 <= number < count:
            raise UserError(f"{path}: has no {name} {number}; it has {count}, counted from 0")
        index.append(number)
    return tuple(index + [0] * (len(shape) - len(index)))


def nifti_array(opened: Any, path: Path, index: tuple[int | slice, ...], dtype: Any = None) -> NDArray[Any]:
    """The voxels of one 3-D volume; `dtype` None keeps whole numbers whole."""
    try:
        array = np.asarray(_voxels(opened, path)[index], dtype=dtype)
    except _DAMAGED as error:
        raise UserError(
            f"{path}: its voxels cannot be read ({_said(error)}); the file is damaged or cut off. Copy it again"
        ) from error
    return array.reshape(array.shape + (1,) * (3 - array.ndim))


def _voxels(opened: Any, path: Path) -> Any:
    """What voxels are read from when they are asked for.

    A compressed file of one volume is unpacked as a whole, which compares it with the checksum at its end.
    """
    lazy, name = opened.dataobj, path.name.lower()
    if name.endswith(".nii"):
        _see_all(lazy, path.stat().st_size)
    elif name.endswith(".nii.gz") and math.prod(opened.shape[3:]) == 1:
        content = gzip.decompress(path.read_bytes())
        _see_all(lazy, len(content))
        return ArrayProxy(io.BytesIO(content), (lazy.shape, lazy.dtype, lazy.offset, lazy.slope, lazy.inter))
    return lazy


def _see_all(lazy: Any, size: int) -> None:
    """Refuse a file that is too short before there is memory taken for what a damaged header says."""
    needed = int(lazy.offset) + math.prod(map(int, lazy.shape)) * lazy.dtype.itemsize
    if size < needed:
        raise EOFError(f"{size:,} bytes of the {needed:,} that its header says")


def nifti_grid(opened: Any, path: Path) -> Grid:
    """The grid of an image's volumes: by the sform where its code says so, else by the qform, else by the sizes."""
    x, y, z = (*opened.shape[:3], 1, 1)[:3]
    return Grid((x, y, z), checked_affine(opened.affine, path))


def nifti_warnings(opened: Any, grid: Grid) -> tuple[str, ...]:
    """What is odd about a NIfTI header's geometry."""
    if not isinstance(opened, nibabel.Nifti1Pair):
        return ()
    if opened.get_sform(coded=True)[0] is None and _qform(opened) is None:
        return ("sform and qform both have code 0: sides and orientation of the patient are unknown",)
    apart = _forms_apart(opened, grid)
    return (f"sform and qform contradict each other, by up to {apart:.3g} mm; the sform is used",) if apart else ()


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
    content = gzip.decompress(stored) if is_packed else stored
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


def _forms_apart(opened: Any, grid: Grid) -> float:
    """By how many mm sform and qform put a voxel to different places; 0 where that is rounding, or one has no code."""
    sform, qform = opened.get_sform(coded=True)[0], _qform(opened)
    if sform is None or qform is None:
        return 0.0
    apart = float(np.linalg.norm(Grid(grid.shape, qform).corners - Grid(grid.shape, sform).corners, axis=1).max())
    return apart if apart > _DISAGREE * min(grid.spacing) else 0.0


def _qform(opened: Any) -> Any:
    try:
        return opened.get_qform(coded=True)[0]
    except HeaderDataError:  # a quaternion longer than 1: nothing can be said by it
        return None


def _by(shape: Any) -> str:
    return " x ".join(map(str, shape))


def _words(chosen: dict[str, int]) -> str:
    return " and ".join(f"{name} {number}" for name, number in chosen.items()) or "one volume"


def _said(error: BaseException) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
