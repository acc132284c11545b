"""Image files, voxel grids and volumes in memory."""

from __future__ import annotations

import hashlib
import importlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from contrastive_core.errors import UserError

SMALLEST_VOXEL, LARGEST_VOXEL = 0.01, 50.0
"""Range of plausible voxel sides in mm; outside it, the unit or the header is wrong."""

SAME_GRID = 0.01
"""Largest distance between corresponding voxels of equal grids, as a fraction of a voxel's side."""
REORDERED = "the same voxels in another order"
"""How the difference between grids begins that only have other axes."""
_DECIMALS = 5.1e-5
"""Largest difference between affines that is explained by rounding to four decimals."""
_ROUNDING = 1e-3
"""Largest distance that is not mentioned in a note, as a fraction of a voxel's side."""


@dataclass(frozen=True)
class ImageFile:
    """Location of a 3-D image with one or several channels: a file, or the folder of a DICOM series.

    Attributes:
        path: File or folder of the (first) channel.
        channel: Channel to read from a file with several (T2, ADC, ...), counted from 0.
        frame: Time point to read from a file with several, counted from 0.
        spacing: Voxel size in mm along the axes of the file, stated by the user for files that do not state it.
        trust_pixdim: Whether to use the header's pixdim as the voxel size if the form codes are 0.
        series: UID of the DICOM series to read from a folder with several.
        name: Name of the channel, such as T2; empty if it has none.
        number: Number of the channel in its data set (``_0001``, or the volume of a 4-D file); None if it has none.
        others: Further channels of the same anatomy, in order; they are resampled to the grid of this one.
    """

    path: Path
    channel: int | None = None
    frame: int | None = None
    spacing: tuple[float, float, float] | None = None
    trust_pixdim: bool = False
    series: str | None = None
    name: str = ""
    number: int | None = None
    others: tuple[ImageFile, ...] = ()

    @property
    def channels(self) -> tuple[ImageFile, ...]:
        """Every channel as an image of its own, in order."""
        return (replace(self, others=()), *self.others)

    @property
    def channel_names(self) -> tuple[str, ...]:
        """Names of the channels, in order."""
        return tuple(channel.name for channel in self.channels)

    @property
    def paths(self) -> tuple[Path, ...]:
        """Files and folders of all channels, each once."""
        return tuple(dict.fromkeys(Path(channel.path) for channel in self.channels))

    def at_frame(self, frame: int | None) -> ImageFile:
        """Return the image at a time point; None returns it unchanged."""
        if frame is None:
            return self
        return join_channels([replace(channel, frame=frame) for channel in self.channels])


def join_channels(channels: Sequence[ImageFile]) -> ImageFile:
    """Combine several channels into one image, on the grid of the first."""
    return replace(channels[0], others=tuple(channels[1:]))


@dataclass(frozen=True)
class Grid:
    """Shape of a volume and position of its voxels in the patient.

    Attributes:
        shape: ``(X, Y, Z)``, in the axis order of the file.
        affine: Float64 ``[4, 4]``, voxel indices to mm in nibabel's RAS+ (x increases to the patient's right, y to the
            front, z to the head).
        size_known: Whether the file or the user states the voxel size; if not, lengths in the affine are meaningless.
        place_known: Whether the file states the position of the voxels in the patient; if not, the patient's left and
            right are unknown.
        any_order: Whether the voxels have no order of their own, as in a DICOM series: each program counts its slices,
            rows and columns from either end, so that a label of the same voxels may be stored in another order.
    """

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    size_known: bool = True
    place_known: bool = True
    any_order: bool = False

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance in mm between neighbouring voxels along each axis.

        The values are rounded to 1e-6 mm, because they would otherwise depend on the axis order in the last bit.
        """
        x, y, z = (round(float(length), 6) for length in np.linalg.norm(self.affine[:3, :3], axis=0))
        return x, y, z

    @property
    def millilitres(self) -> float | None:
        """Volume of a voxel in mL; None if its size is unknown."""
        return abs(float(np.linalg.det(self.affine[:3, :3]))) / 1000 if self.size_known else None

    @property
    def corners(self) -> NDArray[np.float64]:
        """Float64 ``[8, 3]``: positions in mm of the centres of the eight corner voxels."""
        indices = np.array([[*corner, 1.0] for corner in itertools.product(*((0, n - 1) for n in self.shape))])
        return np.asarray((indices @ self.affine.T)[:, :3])

    def with_spacing(self, spacing: Sequence[float]) -> Grid:
        """Return the grid with another voxel size, and with the same directions and origin."""
        affine = self.affine.copy()
        affine[:3, :3] *= np.asarray(spacing, dtype=np.float64) / np.linalg.norm(affine[:3, :3], axis=0)
        return replace(self, affine=affine, size_known=True)


@dataclass(frozen=True)
class Volume:
    """3-D image in memory, with its geometry and further channels.

    Attributes:
        array: Float32 ``[X, Y, Z]``: the (first) channel in the axis order of the file, with the file's intensity
            scaling applied.
        grid: Position of the voxels.
        image: File or folder that was read.
        header: nibabel's header if the file was NIfTI, from which masks copy their geometry.
        warnings: Warnings about the geometry, without paths.
        ndim: Number of axes of the file: 2 for a single slice, otherwise 3. Masks get the same number.
        others: Float32 ``[X, Y, Z]`` each: the further channels on the grid of the first.
    """

    array: NDArray[np.float32]
    grid: Grid
    image: ImageFile
    header: Any = field(default=None, repr=False)
    warnings: tuple[str, ...] = ()
    ndim: int = 3
    others: tuple[NDArray[np.float32], ...] = ()

    @property
    def channels(self) -> dict[str, NDArray[np.float32]]:
        """Name -> voxels of every channel, in order; unnamed channels are called image, image 2 and so on."""
        arrays = (self.array, *self.others)
        names = self.image.channel_names if len(self.image.channels) == len(arrays) else ("",) * len(arrays)
        unnamed = ("image", *(f"image {number}" for number in range(2, len(arrays) + 1)))
        return {name or other: array for name, other, array in zip(names, unnamed, arrays, strict=True)}

    @property
    def affine(self) -> NDArray[np.float64]:
        """Float64 ``[4, 4]``, voxel indices to mm in nibabel's RAS+."""
        return self.grid.affine

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance in mm between neighbouring voxels along each axis."""
        return self.grid.spacing

    @property
    def digest(self) -> str:
        """Hash of the sorted voxel values of the (first) channel.

        It stays the same if an image is compressed, reoriented or converted to another format, and differs between
        acquisitions.
        """
        values = np.sort(self.array, axis=None) + np.float32(0)  # without -0, which has other bytes than 0
        values[np.isnan(values)] = np.nan
        return hashlib.blake2b(values.data, digest_size=16).hexdigest()


def checked_affine(affine: Any, source: object) -> NDArray[np.float64]:
    """Return an affine as float64 ``[4, 4]`` after checking that it is invertible.

    Raises:
        UserError: The affine has entries that are not finite, or maps all voxels into a plane.
    """
    array: NDArray[np.float64] = np.array(affine, dtype=np.float64)
    if not np.isfinite(array).all() or abs(np.linalg.det(array[:3, :3])) < np.finfo(np.float32).tiny:
        raise UserError(
            f"{source}: the affine {array[:3].round(4).tolist()} is not invertible; expected finite numbers and three "
            "independent directions. Convert the image from its source again"
        )
    return array


def check_voxel_size(grid: Grid, source: object, *, unit: str = "mm") -> None:
    """Refuse implausible voxel sizes.

    Args:
        grid: Grid of the image; an unknown voxel size and the thickness of a single slice are not checked.
        source: File to name in errors.
        unit: Unit that the file states, for the message.

    Raises:
        UserError: A side is shorter than 0.01 mm or longer than 50 mm.
    """
    sides = [side for side, voxels in zip(grid.spacing, grid.shape, strict=True) if voxels > 1]
    if grid.size_known and any(not SMALLEST_VOXEL <= side <= LARGEST_VOXEL for side in sides):
        raise UserError(
            f"{source}: the header states a voxel size of {by(f'{side:.4g}' for side in grid.spacing)} mm (unit: "
            f"{unit}); expected {SMALLEST_VOXEL:g} to {LARGEST_VOXEL:g} mm. Correct the sizes or the unit in the "
            "header, or convert the image from its source again"
        )


def check_rest(rest: bytes, stated: int, source: object) -> None:
    """Refuse bytes behind the voxels of a file, unless they are zeros.

    A header that states fewer slices than the file holds would cut the volume silently.

    Args:
        rest: Bytes after the last voxel, at least as many as a slice has; fewer are padding and not passed here.
        stated: Number of bytes that the size in the header accounts for.
        source: File to name in errors.

    Raises:
        UserError: Some of the bytes are not zero.
    """
    if rest.strip(b"\0"):
        raise UserError(
            f"{source}: {len(rest):,} bytes follow the {stated:,} that its header states, at least one slice; the "
            "header was changed, or the file was joined with another one. Export it again"
        )


def grid_difference(first: Grid, second: Grid) -> str:
    """Describe the difference between two grids as a phrase; empty if they are equal.

    Grids of the same shape are equal if the distance between corresponding voxels is at most 1 % of a voxel's side, or
    if the affines differ only by rounding to four decimals. If neither file states a position, only the shapes are
    compared. Grids of the same voxels whose axes are permuted or flipped are not equal, because a program may have
    changed only the header, or only the voxels.
    """
    if first.shape != second.shape:
        return _order(first, second) or f"{by(first.shape)} voxels against {by(second.shape)}"
    if _is_rounding(first, second):
        return ""
    if first.place_known != second.place_known:
        return f"{'the image' if first.place_known else 'it'} states no position"
    if not first.place_known:
        return ""
    share, apart = _apart(first, second)
    if share <= SAME_GRID:
        return ""
    far = f"{share:.0%} of a voxel" if share < 1 else f"{share:.3g} times a voxel's side"
    return _order(first, second) or f"voxels up to {apart:.3g} mm apart, {far}"


def turn_grid(grid: Grid, target: Grid) -> tuple[Grid, NDArray[np.float64]] | None:
    """Permute and flip the axes of a grid so that they follow those of another.

    Returns:
        The grid, and the orientation for `nibabel.apply_orientation`, which turns an array to it; None if a position is
        unknown or no axes correspond to each other.
    """
    if not (grid.place_known and target.place_known):
        return None
    axes = nibabel.io_orientation(np.linalg.inv(target.affine) @ grid.affine)
    if np.isnan(axes).any():
        return None
    x, y, z = (grid.shape[number] for number in np.argsort(axes[:, 0]))
    affine = grid.affine @ nibabel.orientations.inv_ornt_aff(axes, grid.shape)
    return replace(grid, shape=(x, y, z), affine=affine), axes


def rounding_note(first: Grid, second: Grid) -> str:
    """Describe a difference that `grid_difference` accepts, as a phrase; empty if it is below 0.1 % of a voxel."""
    if first.shape != second.shape or not (first.place_known and second.place_known):
        return ""
    share, apart = _apart(first, second)
    accepted = share <= SAME_GRID or _is_rounding(first, second)
    return f"voxels up to {apart:.2g} mm apart, {share:.2%} of a voxel" if accepted and share > _ROUNDING else ""


def by(numbers: Any) -> str:
    """Format numbers with crosses between them: ``320 x 320 x 20``."""
    return " x ".join(map(str, numbers))


def import_extra(module: str, *, extra: str, needed_for: str) -> Any:
    """Import a library that belongs to an extra of this package.

    Args:
        module: Module to import.
        extra: Extra that installs it.
        needed_for: Purpose, for the message.

    Raises:
        UserError: The library is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f'{needed_for} needs {module.partition(".")[0]}: pip install "ssl-medseg[{extra}]" ({error})'
        ) from error


def _order(first: Grid, second: Grid) -> str:
    """Describe how the axes of a grid are permuted and flipped against those of another; empty if voxels differ."""
    alignment = turn_grid(first, second)
    if alignment is None or alignment[0].shape != second.shape or _apart(alignment[0], second)[0] > SAME_GRID:
        return ""
    order = alignment[1][:, 0].astype(int).tolist()
    flips = [str(axis) for axis, sign in enumerate(alignment[1][:, 1]) if sign < 0]
    parts = [f"axes in the order {', '.join(map(str, order))}"] if order != [0, 1, 2] else []
    parts += [f"{'axes' if len(flips) > 1 else 'axis'} {' and '.join(flips)} flipped"] if flips else []
    return f"{REORDERED}: {', '.join(parts)}"


def _apart(first: Grid, second: Grid) -> tuple[float, float]:
    """Return the largest distance between voxels of the same index, as a fraction of a voxel's side and in mm."""
    apart = first.corners - second.corners
    voxels = apart @ np.linalg.inv(second.affine[:3, :3]).T
    # Along an axis with a single voxel there is no neighbour that it could be confused with.
    voxels = voxels[:, [n > 1 for n in second.shape]]
    return float(np.abs(voxels).max(initial=0.0)), float(np.linalg.norm(apart, axis=1).max())


def _is_rounding(first: Grid, second: Grid) -> bool:
    return bool(np.abs(first.affine - second.affine).max() <= _DECIMALS)
