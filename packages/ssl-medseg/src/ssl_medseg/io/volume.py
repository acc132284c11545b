"""A 3-D image in memory: voxels and their positions in the patient."""

from __future__ import annotations

import importlib
import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contrastive_core.errors import UserError


@dataclass(frozen=True)
class ImageFile:
    """A 3-D image: a file, or the folder of one DICOM series, with the part of it that is meant.

    Attributes:
        path: of the file or folder.
        channel: of a file with several (T2, ADC, ...), which; counted from 0.
        frame: of a file with several time points, which; counted from 0.
    """

    path: Path
    channel: int | None = None
    frame: int | None = None


@dataclass(frozen=True)
class Grid:
    """Where the voxels of a volume are.

    Attributes:
        shape: ``(X, Y, Z)``, in the file's own order of axes.
        affine: float64 ``[4, 4]``, voxel index to mm in nibabel's RAS+ (x grows to the right, y forwards, z upwards).
    """

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance in mm between neighbours along each axis."""
        x, y, z = (float(length) for length in np.linalg.norm(self.affine[:3, :3], axis=0))
        return x, y, z

    @property
    def spacing_known(self) -> bool:
        """Whether the affine says anything: 1 x 1 x 1 mm without a rotation is what programs write that do not know."""
        return not np.allclose(np.abs(self.affine[:3, :3]), np.eye(3), atol=1e-6)

    @property
    def corners(self) -> NDArray[np.float64]:
        """Float64 ``[8, 3]``, mm of the centres of the eight outermost voxels."""
        indices = np.array([[*corner, 1.0] for corner in itertools.product(*((0, n - 1) for n in self.shape))])
        return np.asarray((indices @ self.affine.T)[:, :3])


@dataclass(frozen=True)
class Volume:
    """A 3-D image.

    Attributes:
        array: float32 ``[X, Y, Z]`` in the file's own order of axes, with the file's scaling applied.
        affine: float64 ``[4, 4]``, voxel index to mm in nibabel's RAS+.
        image: the file or folder it was read from.
        header: nibabel's header where that was a NIfTI file, with everything a mask must keep.
        warnings: what was found odd about its geometry, in plain words, without a path.
    """

    array: NDArray[np.float32]
    affine: NDArray[np.float64]
    image: ImageFile
    header: Any = field(default=None, repr=False)
    warnings: tuple[str, ...] = ()

    @property
    def grid(self) -> Grid:
        """Where its voxels are."""
        x, y, z = self.array.shape
        return Grid((x, y, z), self.affine)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance in mm between neighbours along each axis."""
        return self.grid.spacing


def checked_affine(affine: Any, source: object) -> NDArray[np.float64]:
    """An affine as float64, if it maps voxels to places.

    Raises:
        UserError: it has entries that are no numbers, or puts all voxels into a plane.
    """
    array: NDArray[np.float64] = np.array(affine, dtype=np.float64)
    if not np.isfinite(array).all() or abs(np.linalg.det(array[:3, :3])) < np.finfo(np.float32).tiny:
        raise UserError(
            f"{source}: its affine {array[:3].round(4).tolist()} does not give voxels a place; expected a matrix of "
            "finite numbers with three independent directions. Convert the image from its source again"
        )
    return array


def grid_difference(first: Grid, second: Grid, *, tolerance: float = 1e-3) -> str:
    """What differs between two grids, in words; nothing where each voxel lies within `tolerance` mm of its like."""
    if first.shape != second.shape:
        return f"{' x '.join(map(str, first.shape))} voxels against {' x '.join(map(str, second.shape))}"
    apart = float(np.linalg.norm(first.corners - second.corners, axis=1).max())
    return f"voxels up to {apart:.3g} mm apart" if apart > tolerance else ""


def import_extra(module: str, *, extra: str, needed_for: str) -> Any:
    """Import a library that an extra of the package brings.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f'{needed_for} needs {module.partition(".")[0]}: pip install "ssl-medseg[{extra}]" ({error})'
        ) from error
