"""Read every image and label once and record what the rules need; only numbers are kept."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from contrastive_core.app.checks import Finding, Item, Level
from contrastive_core.errors import UserError
from contrastive_core.text import several
from ssl_medseg.datasets.dataset import Case
from ssl_medseg.io import Grid, grid_difference, read_label_values, read_volume
from ssl_medseg.io.dicom import series_datasets
from ssl_medseg.io.file_types import DICOM_ENDINGS, is_series, without_path
from ssl_medseg.io.label_map import ROUNDING, LabelMap
from ssl_medseg.io.nifti import one_volume, open_nifti
from ssl_medseg.io.volume import ImageFile
from ssl_medseg.preprocessing.geometry import axis_letters, slice_axis

_NIFTI_FIELDS = ("descrip", "aux_file", "db_name", "intent_name")
_DICOM_FIELDS = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientAddress", "OtherPatientIDs", "AccessionNumber",
    "InstitutionName", "ReferringPhysicianName", "StudyDate", "StudyDescription", "PatientComments",
)  # fmt: skip


def header_texts(path: Path) -> tuple[tuple[str, str], ...]:
    """Header fields with free text in them: field and text. Of a file that cannot be read, none."""
    try:
        if is_series(path) or path.suffix.lower() in DICOM_ENDINGS:
            first = series_datasets(path, pixels=False)[0]
            found = [(name, str(first.get(name, "") or "")) for name in _DICOM_FIELDS]
        elif path.name.lower().endswith((".nii", ".nii.gz")):
            found = _of_nifti(open_nifti(path).header)
        else:
            return ()
    except (UserError, OSError):
        return ()
    return tuple((name, text) for name, text in found if text.strip())


def _of_nifti(header: Any) -> list[tuple[str, str]]:
    if not isinstance(header, nibabel.Nifti1Header):
        return []
    found = [(name, header[name].tobytes().rstrip(b"\0").decode("latin-1")) for name in _NIFTI_FIELDS]
    return found + [
        (f"extension {number}", f"code {extension.get_code()}, {extension.get_sizeondisk()} bytes")
        for number, extension in enumerate(header.extensions, 1)
    ]


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


_TOLERANCE = 1e-3  # mm
_LARGEST = 2**31 - 1  # that a label map can hold
_SHOWN = 3


@dataclass(frozen=True)
class LabelFacts:
    """One label; of an unreadable one only `problem` is known.

    Attributes:
        problem: why it cannot be read.
        difference: how its grid differs from its image's; empty if it does not, or the image cannot be read.
        values: whole number -> voxels.
        fractions: voxels whose value is no whole number to within 1e-3, or none that a label can have.
        examples: of such values, the first few; those that are no finite numbers before the others.
        rounded: voxels whose value is a whole number only after rounding.
        voxels: of every structure in the map.
        slices: with each structure.
        full_slices: slices with every structure.
        labelled_slices: slices with any.
        at_edge: structures that touch the edge of a slice, where the image may cut them off.
        millilitres: of a voxel; 0 where the file does not know.
        digest: of its values; "" if no structure is in it.
    """

    problem: str | None = None
    difference: str = ""
    values: Mapping[int, int] = field(default_factory=dict)
    fractions: int = 0
    examples: tuple[float, ...] = ()
    rounded: int = 0
    voxels: tuple[int, ...] = ()
    slices: tuple[int, ...] = ()
    full_slices: int = 0
    labelled_slices: int = 0
    at_edge: tuple[str, ...] = ()
    millilitres: float = 0.0
    digest: str = ""

    def unknown(self, labels: LabelMap) -> dict[int, int]:
        """Values that are not in the map -> voxels."""
        return {value: count for value, count in self.values.items() if value not in labels.values}


def look_at_label(path: Path, image: Grid | None, labels: LabelMap | None) -> LabelFacts:
    """Read one label and note what there is to note.

    Args:
        path: its file.
        image: the grid of its image, if that can be read.
        labels: what its values mean, if somebody says so.
    """
    try:
        array, affine = read_label_values(path)
    except UserError as error:
        return LabelFacts(without_path(error, path))
    x, y, z = array.shape
    grid = Grid((x, y, z), affine)
    whole, odd, rounded = _whole(array)
    values, counts = np.unique(whole, return_counts=True)
    structures = [] if labels is None else list(zip(labels.structures, labels.values[1:], strict=True))
    found = _by_structure(whole, slice_axis(grid), structures)
    return LabelFacts(
        difference="" if image is None else _difference(grid, image),
        values=dict(zip(values.tolist(), counts.tolist(), strict=True)),
        fractions=odd.size,
        examples=_examples(odd),
        rounded=rounded,
        millilitres=float(np.prod(grid.spacing)) / 1000 if grid.spacing_known else 0.0,
        digest=digest_of(whole) if len(values) > 1 else "",
        **found,
    )


def _whole(array: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], int]:
    """Whole numbers, those values that are none, and how many had to be rounded."""
    if not np.issubdtype(array.dtype, np.floating):
        return array, array[:0].ravel(), 0
    nearest = np.round(np.nan_to_num(array, nan=0, posinf=0, neginf=0))
    off = np.abs(array - nearest)
    fraction = ~(off <= ROUNDING) | (np.abs(nearest) > _LARGEST)  # NaN among them
    whole = np.where(fraction, 0, nearest).astype(np.int64)
    return whole, array[fraction], int(np.count_nonzero((off > 0) & ~fraction))


def _examples(odd: NDArray[Any]) -> tuple[float, ...]:
    different = np.unique(odd)
    finite = np.isfinite(different)
    return tuple(float(value) for value in (*different[~finite], *different[finite]))[:_SHOWN]


def _by_structure(whole: NDArray[Any], axis: int, structures: list[tuple[str, int]]) -> dict[str, Any]:
    others = tuple(a for a in range(3) if a != axis)
    masks = {name: whole == value for name, value in structures}
    present = np.array([mask.any(axis=others) for mask in masks.values()]).reshape(len(masks), whole.shape[axis])
    return {
        "voxels": tuple(int(np.count_nonzero(mask)) for mask in masks.values()),
        "slices": tuple(int(row.sum()) for row in present),
        "full_slices": int(present.all(axis=0).sum()) if masks else 0,
        "labelled_slices": int(present.any(axis=0).sum()) if masks else 0,
        "at_edge": tuple(name for name, mask in masks.items() if _touches(mask, others)),
    }


def _touches(mask: NDArray[np.bool_], axes: tuple[int, ...]) -> bool:
    return any(bool(np.take(mask, end, axis=axis).any()) for axis in axes for end in (0, -1))


def _difference(label: Grid, image: Grid) -> str:
    words = grid_difference(label, image, tolerance=_TOLERANCE)
    if not words or label.shape != image.shape:
        return words
    shift = image.affine[:3, 3] - label.affine[:3, 3]
    if np.allclose(label.affine[:3, :3], image.affine[:3, :3], atol=_TOLERANCE):
        return f"{words}: shifted by {', '.join(f'{mm:.3g}' for mm in shift)} mm"
    for axis in range(3):
        if np.allclose(_mirrored(label, axis).affine, image.affine, atol=_TOLERANCE):
            return f"{words}: stored the other way along axis {axis}, unless its affine is wrong"
    same_sides = np.allclose(np.abs(label.affine[:3, :3]), np.abs(image.affine[:3, :3]), atol=_TOLERANCE)
    return f"{words}: its axes run the other way" if same_sides else f"{words}: its directions or spacing differ"


def _mirrored(grid: Grid, axis: int) -> Grid:
    flip = np.eye(4)
    flip[axis, axis], flip[axis, 3] = -1, grid.shape[axis] - 1
    return Grid(grid.shape, grid.affine @ flip)


@dataclass(frozen=True)
class Looked:
    """A case with what is known of its files.

    Attributes:
        case: of the data set.
        image: what is known of its image.
        label: what is known of its label, None if it has none.
    """

    case: Case
    image: ImageFacts
    label: LabelFacts | None

    @property
    def is_good(self) -> bool:
        """Whether the image was read."""
        return self.image.problem is None


def about(
    looked: Sequence[Looked], level: Level, kind: str, title: str, detail: Callable[[Looked], str | None], *, noun: str
) -> Iterator[Finding]:
    """A finding about every case that `detail` says something of, if it does of any.

    Args:
        looked: all cases.
        level: of the finding.
        kind: one word.
        title: what follows the number of cases in its title.
        detail: what there is to say of a case; None: nothing.
        noun: what is counted: ``image``, ``label``.
    """
    items = [Item([one.case.name], words) for one in looked if (words := detail(one)) is not None]
    if items:
        yield Finding(level, kind, f"{several(len(items), noun)} {title}", items)
