"""A 3-D image in memory: voxels and their positions in the patient."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contrastive_core.errors import UserError

SMALLEST_VOXEL, LARGEST_VOXEL = 0.01, 50.0
"""Sides in mm beyond which no MR scanner makes voxels: the unit or the header is wrong."""

_SAME_GRID = 0.01
"""Two grids are the same if no voxel is further apart than this share of a voxel's side."""
_DECIMALS = 5.1e-5
"""Or if no entry of their affines differs by more than rounding to four decimals does."""
_ROUNDING = 1e-3
"""Share of a voxel's side that is not worth a note."""


@dataclass(frozen=True)
class ImageFile:
    """A 3-D image of one or several channels: a file, or the folder of a DICOM series, with the part that is meant.

    Attributes:
        path: The file or folder; of several channels that of the first.
        channel: Channel of a file with several (T2, ADC, ...), counted from 0.
        frame: Time point of a file with several, counted from 0.
        spacing: Sides of a voxel in mm along the file's axes, as stated by the user for files that do not know it.
        trust_pixdim: Take the sides of a voxel from the header's pixdim where its form codes are 0.
        series: UID of the DICOM series that is meant, of a folder with several.
        name: Name of the channel, such as T2; empty where nobody names it.
        number: Number of the channel in its data set (``_0001``, or the volume of a 4-D file), where it has one.
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
        """The same image at a time point; None leaves it as it is."""
        if frame is None:
            return self
        return join_channels([replace(channel, frame=frame) for channel in self.channels])


def join_channels(channels: Sequence[ImageFile]) -> ImageFile:
    """One image of several channels, the first of which gives the grid."""
    return replace(channels[0], others=tuple(channels[1:]))


@dataclass(frozen=True)
class Grid:
    """The positions of the voxels of a volume.

    Attributes:
        shape: ``(X, Y, Z)``, in the file's own order of axes.
        affine: Float64 ``[4, 4]``, voxel index to mm in nibabel's RAS+ (x grows to the right, y forwards, z upwards).
        size_known: Whether the file, or the user, states the size of a voxel. If not, the affine's lengths mean
            nothing.
        place_known: Whether the file states the position of the voxels in the patient. If not, the patient's sides are
            unknown.
    """

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    size_known: bool = True
    place_known: bool = True

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance in mm between neighbours along each axis, to a millionth of a mm.

        Rounded, because the same volume stored with another order of axes has lengths that differ in the last bit.
        """
        x, y, z = (round(float(length), 6) for length in np.linalg.norm(self.affine[:3, :3], axis=0))
        return x, y, z

    @property
    def millilitres(self) -> float | None:
        """Volume of a voxel in mL; None where its size is unknown."""
        return abs(float(np.linalg.det(self.affine[:3, :3]))) / 1000 if self.size_known else None

    @property
    def corners(self) -> NDArray[np.float64]:
        """Float64 ``[8, 3]``, mm of the centres of the eight outermost voxels."""
        indices = np.array([[*corner, 1.0] for corner in itertools.product(*((0, n - 1) for n in self.shape))])
        return np.asarray((indices @ self.affine.T)[:, :3])

    def with_spacing(self, spacing: Sequence[float]) -> Grid:
        """The grid with stated sides of a voxel, its directions and origin as they are."""
        affine = self.affine.copy()
        affine[:3, :3] *= np.asarray(spacing, dtype=np.float64) / np.linalg.norm(affine[:3, :3], axis=0)
        return replace(self, affine=affine, size_known=True)


@dataclass(frozen=True)
class Volume:
    """A 3-D image.

    Attributes:
        array: Float32 ``[X, Y, Z]`` in the file's own order of axes, with the file's scaling applied; of several
            channels the first.
        grid: The positions of its voxels.
        image: The file or folder it was read from.
        header: nibabel's header where that was a NIfTI file, with everything a mask must keep.
        warnings: Oddities of its geometry, as sentences without a path.
        ndim: Axes of the file: 2 for a single slice, else 3; a mask has as many.
        others: Float32 ``[X, Y, Z]``, the further channels on the grid of the first.
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
        """Name -> voxels of every channel, in order; unnamed ones are called image, image 2 and so on."""
        arrays = (self.array, *self.others)
        names = self.image.channel_names if len(self.image.channels) == len(arrays) else ("",) * len(arrays)
        unnamed = ("image", *(f"image {number}" for number in range(2, len(arrays) + 1)))
        return {name or other: array for name, other, array in zip(names, unnamed, arrays, strict=True)}

    @property
    def affine(self) -> NDArray[np.float64]:
        """Float64 ``[4, 4]``, voxel index to mm in nibabel's RAS+."""
        return self.grid.affine

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance in mm between neighbours along each axis."""
        return self.grid.spacing


def checked_affine(affine: Any, source: object) -> NDArray[np.float64]:
    """An affine as float64, if it maps voxels to places.

    Raises:
        UserError: It has entries that are no numbers, or puts all voxels into a plane.
    """
    array: NDArray[np.float64] = np.array(affine, dtype=np.float64)
    if not np.isfinite(array).all() or abs(np.linalg.det(array[:3, :3])) < np.finfo(np.float32).tiny:
        raise UserError(
            f"{source}: the affine {array[:3].round(4).tolist()} does not give the voxels positions; expected a matrix "
            "of finite numbers with three independent directions. Convert the image from its source again"
        )
    return array


def check_voxel_size(grid: Grid, source: object, *, unit: str = "mm") -> None:
    """Refuse voxels that no scanner makes.

    Args:
        grid: Of the image; of unknown size it is accepted, and so is the thickness of a single slice.
        source: What the error calls it: the file.
        unit: Unit that the file states, for the message.

    Raises:
        UserError: A side under 0.01 or over 50 mm.
    """
    sides = [side for side, voxels in zip(grid.spacing, grid.shape, strict=True) if voxels > 1]
    if grid.size_known and any(not SMALLEST_VOXEL <= side <= LARGEST_VOXEL for side in sides):
        raise UserError(
            f"{source}: the header states voxels of {by(f'{side:.4g}' for side in grid.spacing)} mm (unit: {unit}); "
            f"expected {SMALLEST_VOXEL:g} to {LARGEST_VOXEL:g} mm, as scanners make them. Correct the header's sizes "
            "or unit, or convert the image from its source again"
        )


def grid_difference(first: Grid, second: Grid) -> str:
    """The difference of two grids as a phrase; empty if they are the same.

    Grids of one shape are the same if every voxel lies within 1 % of a voxel's side of its counterpart, or if their
    affines differ by rounding to four decimals only. Where neither file states positions, the shape decides.
    """
    if first.shape != second.shape:
        return f"{by(first.shape)} voxels against {by(second.shape)}"
    if _is_rounding(first, second):
        return ""
    if first.place_known != second.place_known:
        return f"{'the image' if first.place_known else 'it'} has no geometry of its own"
    if not first.place_known:
        return ""
    share, apart = _apart(first, second)
    far = f"{share:.0%} of a voxel" if share < 1 else f"{share:.3g} times a voxel's side"
    return f"voxels up to {apart:.3g} mm apart, {far}" if share > _SAME_GRID else ""


def rounding_note(first: Grid, second: Grid) -> str:
    """The size of a difference that `grid_difference` accepts, as a phrase; empty if below 0.1 % of a voxel."""
    if first.shape != second.shape or not (first.place_known and second.place_known):
        return ""
    share, apart = _apart(first, second)
    accepted = share <= _SAME_GRID or _is_rounding(first, second)
    return f"voxels up to {apart:.2g} mm apart, {share:.2%} of a voxel" if accepted and share > _ROUNDING else ""


def by(numbers: Any) -> str:
    """Numbers with crosses between them: ``320 x 320 x 20``."""
    return " x ".join(map(str, numbers))


def import_extra(module: str, *, extra: str, needed_for: str) -> Any:
    """Import a library that an extra of the package installs.

    Raises:
        UserError: It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f'{needed_for} needs {module.partition(".")[0]}: pip install "ssl-medseg[{extra}]" ({error})'
        ) from error


def _apart(first: Grid, second: Grid) -> tuple[float, float]:
    """The largest distance between voxels of the same index: as a share of a voxel's side, and in mm."""
    apart = first.corners - second.corners
    voxels = apart @ np.linalg.inv(second.affine[:3, :3]).T
    # A single slice has no neighbour to be taken for.
    voxels = voxels[:, [n > 1 for n in second.shape]]
    return float(np.abs(voxels).max(initial=0.0)), float(np.linalg.norm(apart, axis=1).max())


def _is_rounding(first: Grid, second: Grid) -> bool:
    return bool(np.abs(first.affine - second.affine).max() <= _DECIMALS)
