"""Collect the facts about images and labels that the rules of a check need, without keeping voxels in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from contrastive_core.app.checks import Finding, Item, Level
from contrastive_core.errors import UserError, without_path
from contrastive_core.text import several
from ssl_medseg.datasets.dataset import Case
from ssl_medseg.io import Grid, grid_difference, read_label_values, read_volume
from ssl_medseg.io.channels import share_covered
from ssl_medseg.io.dicom import series_images
from ssl_medseg.io.file_types import DICOM_ENDINGS, is_series
from ssl_medseg.io.label_map import ROUNDING, LabelMap
from ssl_medseg.io.nifti import one_volume, open_nifti
from ssl_medseg.io.volume import REORDERED, ImageFile, rounding_note
from ssl_medseg.preprocessing.prepare import axis_letters, skips_slices

_NIFTI_FIELDS = ("descrip", "aux_file", "db_name", "intent_name")
_DICOM_FIELDS = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientAddress", "OtherPatientIDs", "AccessionNumber",
    "InstitutionName", "ReferringPhysicianName", "StudyDate", "StudyDescription", "PatientComments",
)  # fmt: skip


def header_texts(path: Path) -> tuple[tuple[str, str], ...]:
    """Return the header fields with free text as (field, text) pairs; empty for an unreadable file."""
    try:
        if is_series(path) or path.suffix.lower() in DICOM_ENDINGS:
            first = series_images(path, pixels=False)[0][0].dataset
            texts = [(name, str(first.get(name, "") or "")) for name in _DICOM_FIELDS]
        elif path.name.lower().endswith((".nii", ".nii.gz", ".img")):
            texts = _of_nifti(open_nifti(path).header)
        else:
            return ()
    except (UserError, OSError):
        return ()
    return tuple((name, text) for name, text in texts if text.strip())


def _of_nifti(header: Any) -> list[tuple[str, str]]:
    if not isinstance(header, nibabel.Nifti1Header):
        return []
    fields = [name for name in _NIFTI_FIELDS if name in header.keys()]  # noqa: SIM118 - NIfTI-2 has fewer
    texts = [(name, header[name].tobytes().rstrip(b"\0").decode("latin-1")) for name in fields]
    return texts + [
        (f"extension {number}", f"code {extension.get_code()}, {extension.get_sizeondisk()} bytes")
        for number, extension in enumerate(header.extensions, 1)
    ]


_PERCENTILES = (1, 99)  # intensities that preprocessing scales to 0 and 1 by default


@dataclass(frozen=True)
class ImageFacts:
    """Facts about one image; for an unreadable image only `problem` and `kind` are known.

    Attributes:
        problem: Reason why the image cannot be used; None if it can.
        kind: Kind of the problem: ``unreadable`` or ``several_volumes``.
        grid: Shape and position of the voxels.
        warnings: Warnings of the reader about the geometry.
        bad: Number of voxels that are not finite.
        low: Percentile 1 of the finite voxels.
        high: Percentile 99 of the finite voxels.
        most: Fraction of the voxels whose value equals `low`.
        digest: Hash of the voxels, independent of their order; empty if none is finite.
        texts: Header fields with free text, which may identify the patient; shown on request only.
        axis: Array axis across which slices are taken; the same anatomical direction in all images of the data set.
        name: Name of the channel.
        others: Facts about the further channels of the case.
        difference: Difference between the grid of this further channel and that of the first; empty if there is none.
        covered: Fraction of the first channel's grid that this further channel covers.
    """

    problem: str | None = None
    kind: str = ""
    grid: Grid | None = None
    warnings: tuple[str, ...] = ()
    bad: int = 0
    low: float = 0.0
    high: float = 0.0
    most: float = 0.0
    digest: str = ""
    texts: tuple[tuple[str, str], ...] = ()
    axis: int = 2
    name: str = ""
    others: tuple[ImageFacts, ...] = ()
    difference: str = ""
    covered: float = 1.0

    @property
    def channels(self) -> tuple[ImageFacts, ...]:
        """This image and its further channels."""
        return (self, *self.others)

    @property
    def orientation(self) -> str:
        """Anatomical directions of the axes, such as LPS; empty if unknown."""
        return axis_letters(self.grid) if self.grid is not None else ""

    @property
    def size_known(self) -> bool:
        """Whether the size of a voxel is known."""
        return self.grid is not None and self.grid.size_known

    @property
    def is_constant(self) -> bool:
        """Whether percentiles 1 and 99 are equal, so that intensities cannot be scaled."""
        return bool(self.digest) and not self.high > self.low


def read_image_facts(image: ImageFile) -> ImageFacts:
    """Read one image with all its channels and collect its facts."""
    first, *others = (_look_at_channel(channel) for channel in image.channels)
    if not others:
        return first
    other_channels = tuple(_beside(first, other) for other in others)
    texts = tuple(dict.fromkeys(text for channel in (first, *other_channels) for text in channel.texts))
    problem = next((channel for channel in (first, *other_channels) if channel.problem is not None), None)
    if problem is None:
        return replace(first, others=other_channels, texts=texts)
    return replace(
        first, others=other_channels, texts=texts, problem=f"{problem.name}: {problem.problem}", kind=problem.kind
    )


def _beside(first: ImageFacts, other: ImageFacts) -> ImageFacts:
    """Add to the facts about a further channel how its grid relates to that of the first channel."""
    if first.grid is None or other.grid is None:
        return other
    difference = grid_difference(other.grid, first.grid)
    places_known = first.grid.place_known and other.grid.place_known
    covered = share_covered(other.grid, first.grid) if difference and places_known else float(not difference)
    if difference and not covered:
        apart = "their fields of view do not overlap" if places_known else "a header states no position"
        problem = f"cannot be resampled to the grid of {first.name} ({difference}; {apart})"
        return replace(other, difference=difference, covered=0.0, problem=problem, kind="unreadable")
    return replace(other, difference=difference, covered=covered)


def _look_at_channel(image: ImageFile) -> ImageFacts:
    texts = header_texts(image.path)
    try:
        volume = read_volume(image)
    except UserError as error:
        kind = "several_volumes" if _holds_several(image) else "unreadable"
        return ImageFacts(without_path(error, image.path), kind, texts=texts, name=image.name)
    finite = np.isfinite(volume.array)
    bad = finite.size - int(np.count_nonzero(finite))
    voxels = volume.array[finite] if bad else volume.array
    low, high = np.percentile(voxels, _PERCENTILES) if voxels.size else (0.0, 0.0)
    return ImageFacts(
        grid=volume.grid,
        warnings=() if not volume.grid.place_known else volume.warnings,  # another rule reports unknown positions
        bad=bad,
        low=float(low),
        high=float(high),
        most=float(np.mean(voxels == low)) if voxels.size else 0.0,
        digest=volume.digest if voxels.size else "",
        texts=texts,
        name=image.name,
    )


def _digest(label: NDArray[Any]) -> str:
    """Return a hash of the shape and the values of a label."""
    digest = hashlib.blake2b(str(label.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(label).data)
    return digest.hexdigest()


def _holds_several(image: ImageFile) -> bool:
    try:
        nib_image = open_nifti(image.path)
    except UserError:
        return False
    try:
        one_volume(nib_image, image.path, channel=image.channel, frame=image.frame)
    except UserError:
        return len(nib_image.shape) > 3
    return False


_LARGEST = 2**31 - 1  # largest value that a label map can hold
_SHOWN = 3


@dataclass(frozen=True)
class LabelFacts:
    """Facts about one label; for an unreadable label only `problem` is known.

    Attributes:
        problem: Reason why the label cannot be read; None if it can.
        difference: Difference between the grids of label and image; empty if there is none, or the image is unreadable.
        rounding: Difference between the grids that is too small to matter, as a phrase.
        has_no_place: Whether the label states no position, so that only its shape could be compared with the image's.
        values: Value -> number of voxels.
        fractions: Number of voxels whose value differs from every integer by more than 1e-3, or is out of range.
        examples: First such values, non-finite ones before others.
        rounded: Number of voxels whose value is an integer only after rounding.
        voxels: Number of voxels of every structure in the label map.
        profiles: For each array axis, bool ``[structures, positions]``: whether the structure occurs at the position.
        millilitres: Volume of a voxel in mL; 0 where it is unknown.
        digest: Hash of the values; empty if the label contains no structure.
    """

    problem: str | None = None
    difference: str = ""
    rounding: str = ""
    has_no_place: bool = False
    values: Mapping[int, int] = field(default_factory=dict)
    fractions: int = 0
    examples: tuple[float, ...] = ()
    rounded: int = 0
    voxels: tuple[int, ...] = ()
    profiles: tuple[NDArray[np.bool_], ...] = ()
    millilitres: float = 0.0
    digest: str = ""

    def unknown(self, labels: LabelMap) -> dict[int, int]:
        """Return the values that are not in the label map, with their numbers of voxels."""
        return {value: count for value, count in self.values.items() if value not in labels.values}

    def slices(self, axis: int) -> tuple[int, ...]:
        """Count the slices across an axis that contain each structure."""
        return tuple(int(row.sum()) for row in self.profiles[axis]) if self.profiles else ()

    def full_slices(self, axis: int) -> int:
        """Count the slices that contain every structure."""
        return int(self.profiles[axis].all(axis=0).sum()) if self.voxels else 0

    def labelled_slices(self, axis: int) -> int:
        """Count the slices that contain any structure."""
        return int(self.profiles[axis].any(axis=0).sum()) if self.voxels else 0

    def skips_slices(self, axis: int) -> bool:
        """Return whether only single slices across an axis contain structures."""
        return bool(self.voxels) and skips_slices(np.asarray(self.profiles[axis].any(axis=0)))

    def at_edge(self, structure: int, axis: int) -> bool:
        """Return whether a structure touches the edge of a slice, where the field of view may cut it off."""
        others = [profile[structure] for other, profile in enumerate(self.profiles) if other != axis]
        return any(bool(line[0] or line[-1]) for line in others)


def read_label_facts(
    path: Path, image: Grid | None, labels: LabelMap | None, *, others: Mapping[str, Grid] | None = None
) -> LabelFacts:
    """Read one label and collect its facts.

    Args:
        path: File of the label.
        image: Grid of the image (of its first channel); None if the image cannot be read.
        labels: Label map; None if there is none.
        others: Name -> grid of the further channels.
    """
    try:
        array, grid = read_label_values(path, labels=labels, image=image)
    except UserError as error:
        return LabelFacts(without_path(error, path))
    whole, odd, rounded = _whole(array)
    values, counts = np.unique(whole, return_counts=True)
    voxels, profiles = _by_structure(whole, [] if labels is None else labels.values[1:])
    size = grid.millilitres if image is None else image.millilitres
    same_shape = image is not None and image.shape == grid.shape
    return LabelFacts(
        difference="" if image is None else _difference(grid, image) + _drawn_on(grid, image, others or {}),
        rounding="" if image is None else rounding_note(grid, image),
        has_no_place=same_shape and image is not None and image.place_known and not grid.place_known,
        values=dict(zip(values.tolist(), counts.tolist(), strict=True)),
        fractions=odd.size,
        examples=_examples(odd),
        rounded=rounded,
        voxels=voxels,
        profiles=profiles,
        millilitres=size or 0.0,
        digest=_digest(whole) if len(values) > 1 else "",
    )


def _whole(array: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], int]:
    """Return the values as integers, the values that are not integers, and the number of rounded values."""
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


def _by_structure(whole: NDArray[Any], values: Sequence[int]) -> tuple[tuple[int, ...], tuple[NDArray[np.bool_], ...]]:
    """Count the voxels of every structure and mark its positions along each axis."""
    masks = [whole == value for value in values]
    profiles = tuple(
        np.array([mask.any(axis=tuple(a for a in range(3) if a != axis)) for mask in masks]).reshape(len(masks), n)
        for axis, n in enumerate(whole.shape)
    )
    return tuple(int(np.count_nonzero(mask)) for mask in masks), profiles


def _difference(label: Grid, image: Grid) -> str:
    difference = grid_difference(label, image)
    if difference.startswith(REORDERED):
        return f"{difference}, or its affine is wrong; --repair grid reorders it by the affine, without a loss"
    if not difference or label.shape != image.shape:
        return difference
    if not (label.place_known and image.place_known):
        return f"{difference}, but has the shape of the image: see --repair header"
    shift = (image.affine[:3, 3] - label.affine[:3, 3]).round(3)
    candidate = replace(label, affine=np.block([[label.affine[:, :3], image.affine[:, 3:]]]))
    if not grid_difference(candidate, image) and np.any(shift):
        return f"{difference}: shifted by {', '.join(f'{mm:.3g}' for mm in shift)} mm"
    cosines = np.sum(label.affine[:3, :3] * image.affine[:3, :3], axis=0)
    return f"{difference}: its {'axes are flipped' if (cosines < 0).any() else 'directions or spacing differ'}"


def _drawn_on(label: Grid, image: Grid, others: Mapping[str, Grid]) -> str:
    """Name the further channel on whose grid the label was drawn, with the remedy; empty if there is none."""
    if not grid_difference(label, image):
        return ""
    channels = [name for name, grid in others.items() if not grid_difference(label, grid)]
    return f"; it lies on the grid of {channels[0]}: put that channel first with --channels" if channels else ""


@dataclass(frozen=True)
class CaseFacts:
    """A case with the facts about its files.

    Attributes:
        case: Case of the data set.
        image: Facts about the image.
        label: Facts about the label; None if the case has no label.
    """

    case: Case
    image: ImageFacts
    label: LabelFacts | None

    @property
    def is_good(self) -> bool:
        """Whether the image was read."""
        return self.image.problem is None


def about(
    facts: Sequence[CaseFacts],
    level: Level,
    kind: str,
    title: str,
    detail: Callable[[CaseFacts], str | None],
    *,
    noun: str,
) -> Iterator[Finding]:
    """Yield one finding that lists every case for which `detail` returns a text; nothing if there is no such case.

    Args:
        facts: All cases.
        level: Level of the finding.
        kind: Identifier, one word.
        title: Title of the finding, after the number of cases.
        detail: Function that returns the text about a case, or None.
        noun: Noun for what is counted: ``image`` or ``label``.
    """
    items = [Item([one.case.name], text) for one in facts if (text := detail(one)) is not None]
    if items:
        yield Finding(level, kind, f"{several(len(items), noun)} {title}", items)
