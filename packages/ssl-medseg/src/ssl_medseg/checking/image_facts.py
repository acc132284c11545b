"""What is known of each image after looking at it once; nothing of it is kept but numbers."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contrastive_core.errors import UserError
from ssl_medseg.checking.headers import header_texts
from ssl_medseg.data.cases import ImageFile
from ssl_medseg.data.files import without_path
from ssl_medseg.preprocessing.geometry import axis_letters, slice_axis
from ssl_medseg.volumes import Grid, read_volume
from ssl_medseg.volumes.nifti import one_volume, open_nifti

_PERCENTILES = (1, 99)  # what intensities are scaled by


@dataclass(frozen=True)
class ImageFacts:
    """One image; of an unreadable one only `problem` and `kind` are known.

    Attributes:
        problem: why it cannot be used.
        kind: of the problem: ``unreadable``, ``several_volumes``.
        grid: where its voxels are.
        warnings: what its reader found odd about its geometry.
        bad: voxels that are no finite numbers.
        low, high: percentiles 1 and 99 of the finite voxels.
        digest: of its voxels; "" if there are none that are finite.
        texts: header field -> text, which may say who the patient is: for those who ask for it only.
    """

    problem: str | None = None
    kind: str = ""
    grid: Grid | None = None
    warnings: tuple[str, ...] = ()
    bad: int = 0
    low: float = 0.0
    high: float = 0.0
    digest: str = ""
    texts: tuple[tuple[str, str], ...] = ()

    @property
    def axis(self) -> int:
        """The axis that slices are counted along."""
        return 0 if self.grid is None else slice_axis(self.grid)

    @property
    def orientation(self) -> str:
        """Where the axes grow to, such as LPS; empty if oblique by over 30 degrees or unknown."""
        return axis_letters(self.grid.affine) if self.grid is not None and self.spacing_known else ""

    @property
    def spacing_known(self) -> bool:
        """Whether the file knows the size of its voxels."""
        return self.grid is not None and self.grid.spacing_known

    @property
    def is_constant(self) -> bool:
        """There is nothing to scale intensities by."""
        return bool(self.digest) and not self.high > self.low


def look_at_image(image: ImageFile) -> ImageFacts:
    """Read one image and note what there is to note."""
    texts = header_texts(image.path)
    try:
        volume = read_volume(image)
    except UserError as error:
        kind = "several_volumes" if _holds_several(image) else "unreadable"
        return ImageFacts(without_path(error, image.path), kind, texts=texts)
    finite = np.isfinite(volume.array)
    bad = finite.size - int(np.count_nonzero(finite))
    voxels = volume.array[finite] if bad else volume.array
    low, high = np.percentile(voxels, _PERCENTILES) if voxels.size else (0.0, 0.0)
    return ImageFacts(
        grid=volume.grid,
        warnings=volume.warnings,
        bad=bad,
        low=float(low),
        high=float(high),
        digest=digest_of(volume.array) if voxels.size else "",
        texts=texts,
    )


def digest_of(array: NDArray[Any]) -> str:
    """Hash of shape and values."""
    digest = hashlib.blake2b(str(array.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _holds_several(image: ImageFile) -> bool:
    try:
        opened = open_nifti(image.path)
    except UserError:
        return False
    try:
        one_volume(opened, image.path, channel=image.channel, frame=image.frame)
    except UserError:
        return len(opened.shape) > 3
    return False
