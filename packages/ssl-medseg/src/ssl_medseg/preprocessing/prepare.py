"""Prepare a volume as slices for the network, and restore the network's output to the volume's grid.

MONAI's ``Spacing`` and ``ResizeWithPadOrCrop`` give the same numbers, and the tests compare with them. They are not
called here because importing MONAI takes several seconds, longer than segmenting a volume, and because slices can be
restored a few at a time this way.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import nibabel
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from contrastive_core.errors import UserError
from contrastive_core.text import several
from ssl_medseg.datasets.channels import UNNAMED
from ssl_medseg.io.volume import Grid, Volume, import_extra
from ssl_medseg.preprocessing.settings import Preprocessing

_THICK = 1.5
"""Ratio of slice distance to pixel size from which a volume counts as acquired in slices along that axis."""
_HALFWAY = 0.2
"""Two assignments of axes are ambiguous if their agreement with the wanted directions differs by less than this."""
_TIE = 1e-4
"""Difference of agreement below which two assignments count as equally good; rounding of the affine is smaller."""
_AIR, _BELOW_CT = -1024.0, -1500.0
"""Smallest value of CT in HU, and a value that no voxel inside the scanned circle has."""
_PADDING, _CONSTANT = 0.005, 0.9
"""Smallest fraction of such voxels that count as padding, and of them that must have the same value."""
_GREY_LEVELS = 50
"""Smallest number of grey values that float32 must distinguish between the percentiles of an image."""
_NEGLIGIBLE = 0.01
"""Largest offset between pixels and voxels, in voxels at the far end of an axis, for which nothing is resampled."""


@dataclass(frozen=True)
class Geometry:
    """Geometry of the slices of a volume, used to map predictions back to the volume.

    Pixel p along an axis of a slice is at voxel ``step * (p + shift)`` along the axis of the volume; ``shift`` is the
    number of pixels removed by centred cropping, or minus the number added by padding.

    Attributes:
        shape: ``(X, Y, Z)`` of the volume, in the axis order of the file.
        affine: ``[4][4]``, voxel index to mm in RAS+.
        axes: Axes of the file that correspond to slices, rows and columns.
        flips: Whether each of these axes is reversed.
        step: Voxels per pixel, down a column and along a row.
        resampled: Number of pixels before cropping, down a column and along a row.
        size: Height and width of the slices.
        size_known: Whether the voxel size is known.
        place_known: Whether the positions of the voxels in the patient are known.
        any_order: Whether the voxels have no order of their own, as in a DICOM series.
    """

    shape: tuple[int, int, int]
    affine: tuple[tuple[float, ...], ...]
    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    step: tuple[float, float]
    resampled: tuple[int, int]
    size: tuple[int, int]
    size_known: bool = True
    place_known: bool = True
    any_order: bool = False

    @property
    def grid(self) -> Grid:
        """Grid of the volume."""
        return Grid(self.shape, np.array(self.affine), self.size_known, self.place_known, self.any_order)

    @property
    def slices(self) -> int:
        """Number of slices."""
        return self.shape[self.axes[0]]

    @property
    def plane(self) -> tuple[int, int]:
        """Height and width of a slice in voxels of the volume."""
        return self.shape[self.axes[1]], self.shape[self.axes[2]]

    @property
    def shift(self) -> tuple[int, int]:
        """Number of pixels cropped at the top and the left; negative for padding."""
        # Half of the difference, rounded down, as in MONAI's ResizeWithPadOrCrop and the released code.
        first, second = (
            (n - s) // 2 if n >= s else -((s - n) // 2) for n, s in zip(self.resampled, self.size, strict=True)
        )
        return first, second

    def to_slices(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return a volume ``[X, Y, Z]`` as slices ``[S, rows, columns]`` of its own voxels, as a view."""
        turned = array.transpose(self.axes)
        return turned[tuple(slice(None, None, -1) if flip else slice(None) for flip in self.flips)]

    def to_json(self) -> dict[str, Any]:
        """Return the content for a JSON file, which `from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Geometry:
        """Create a geometry from the result of `to_json`."""
        fields: dict[str, Any] = {n: tuple(value) if isinstance(value, list) else value for n, value in content.items()}
        return cls(**{**fields, "affine": tuple(tuple(row) for row in content["affine"])})


def slice_geometry(grid: Grid, p: Preprocessing) -> tuple[Geometry, tuple[str, ...]]:
    """Compute the geometry of the slices of a volume from its grid, with notes."""
    axes, flips, notes = _axes(grid, p)
    spacing = grid.spacing
    native = spacing[axes[1]], spacing[axes[2]]
    plane = grid.shape[axes[1]], grid.shape[axes[2]]
    target = native
    if p.spacing is not None:
        target = p.spacing
    elif p.fit:
        longer = max(n * s for n, s in zip(plane, native, strict=True)) / p.fit
        target = longer, longer
    down, right = (
        1.0 if abs(t / s - 1) * n < _NEGLIGIBLE else t / s for n, s, t in zip(plane, native, target, strict=True)
    )
    counts = _count(plane[0], down), _count(plane[1], right)
    affine = tuple(tuple(float(v) for v in row) for row in grid.affine)
    known = grid.size_known, grid.place_known, grid.any_order
    return Geometry(grid.shape, affine, axes, flips, (down, right), counts, p.size, *known), notes


def axis_directions(grid: Grid) -> NDArray[np.float64]:
    """Return float64 [3, 3], in which row k is the unit vector (RAS) along axis k of a volume."""
    matrix = grid.affine[:3, :3]
    return np.asarray((matrix / np.linalg.norm(matrix, axis=0)).T)


def flat_axis(grid: Grid) -> int | None:
    """Return the slice axis of a single-slice image, the only axis with one voxel; None for a volume."""
    single = [axis for axis, voxels in enumerate(grid.shape) if voxels == 1]
    return single[0] if len(single) == 1 else None


def thick_axis(grid: Grid, *, ratio: float = _THICK) -> int | None:
    """Return the axis along which a volume was acquired in slices; None if its voxels are isotropic or of unknown size.

    This is the axis of a single slice, or the axis whose spacing is at least `ratio` times that of the others. The
    number of voxels is not considered.
    """
    flat = flat_axis(grid)
    if flat is not None or not grid.size_known:
        return flat
    order = np.argsort(grid.spacing)
    return int(order[2]) if grid.spacing[order[2]] >= ratio * grid.spacing[order[1]] else None


def display_axis(grid: Grid) -> int:
    """Return the axis for displaying slices: the acquisition axis, otherwise the one closest to head-foot."""
    thick = thick_axis(grid)
    if thick is not None:
        return thick
    return int(np.abs(axis_directions(grid)[:, 2]).argmax()) if grid.place_known else 2


def axis_letters(grid: Grid) -> str:
    """Return the letters of the directions of the axes of a volume, such as ``LPS``; empty if they are unknown."""
    return "".join(nibabel.aff2axcodes(grid.affine)) if grid.place_known else ""


def match_axes(
    grid: Grid, directions: NDArray[np.float64], *, across: int = 2
) -> tuple[tuple[int, ...], tuple[bool, ...], bool]:
    """Assign the axes of a volume to three directions, independently of how the volume is stored.

    Args:
        grid: Grid of the volume.
        directions: Float64 ``[3, 3]``, unit vectors (RAS).
        across: Index of the slice direction. If several assignments fit equally well, as for a volume tilted by 45
            degrees, the one with the largest distance between slices is used.

    Returns:
        The axis for each direction, whether it is reversed, and whether the assignment is ambiguous.
    """
    along = axis_directions(grid)
    cosines = directions @ along.T  # [direction, axis]
    choices = list(itertools.permutations(range(3)))
    scores = [sum(abs(cosines[k, axis]) for k, axis in enumerate(choice)) for choice in choices]
    best, second = np.argsort(scores)[[-1, -2]]

    def preference(choice: tuple[int, ...]) -> tuple[float, ...]:
        turned = [along[axis] * np.sign(cosines[k, axis]) for k, axis in enumerate(choice)]
        return (round(grid.spacing[choice[across]], 3), *np.round(np.ravel(turned), 3))

    tied = [choice for choice, score in zip(choices, scores, strict=True) if scores[int(best)] - score < _TIE]
    axes = max(tied, key=preference)
    flips = tuple(bool(cosines[k, axis] < 0) for k, axis in enumerate(axes))
    return axes, flips, bool(scores[int(best)] - scores[int(second)] < _HALFWAY)


def _axes(grid: Grid, p: Preprocessing) -> tuple[tuple[int, int, int], tuple[bool, bool, bool], tuple[str, ...]]:
    """Return the axes for slices, rows and columns, whether they are reversed, and notes."""
    notes = []
    axes, flips = (0, 1, 2), (False, False, False)
    if p.directions is not None and grid.place_known:
        axes, flips, is_halfway = match_axes(grid, p.directions, across=p.slice_axis)  # type: ignore[assignment]
        if is_halfway:
            notes.append("its axes lie halfway between those of the training images, so its slices may be rotated")
    elif p.directions is not None:
        notes.append("the patient orientation is unknown, so it is used as stored")
    order = [p.slice_axis, *(k for k in range(3) if k != p.slice_axis)]
    flat = flat_axis(grid)
    if flat is not None and axes[p.slice_axis] != flat:
        order = [axes.index(flat), *(k for k in range(3) if axes[k] != flat)]
        notes.append("it is a single slice in a different plane from the training slices")
    thick = thick_axis(grid)
    if flat is None and thick not in (None, axes[p.slice_axis]):
        plane = f" ({p.plane})" if p.plane else ""
        notes.append(
            f"it was acquired in slices {grid.spacing[thick]:.3g} mm apart along a different axis from the training "
            f"images, but is sliced along theirs{plane}: expect a poorer mask"
        )
    first, second, third = order
    return (axes[first], axes[second], axes[third]), (flips[first], flips[second], flips[third]), tuple(notes)


def _count(voxels: int, step: float) -> int:
    """Return the number of pixels along an axis, starting on the first voxel, as in MONAI's ``Spacing``."""
    return max(1, round((voxels - 1) / step + 1))


def to_pixels(slices: Tensor, geometry: Geometry) -> Tensor:
    """Resample slices ``[S, rows, columns]`` of voxels linearly to ``[S, H, W]`` pixels; 0 outside the volume."""
    for axis in (0, 1):
        places, mask = _of_pixels(geometry, axis)
        slices = _linear(slices, places, dim=axis - 2, mask=mask)
    return slices


def to_nearest_pixels(slices: Tensor, geometry: Geometry) -> Tensor:
    """Resample as in `to_pixels`, but by nearest neighbour."""
    for axis in (0, 1):
        places, mask = _of_pixels(geometry, axis)
        pixels = slices.index_select(axis - 2, torch.from_numpy(np.rint(places).astype(np.int64)))
        slices = pixels * _along(torch.from_numpy(mask).to(slices), axis - 2)
    return slices


def to_voxels(images: Tensor, geometry: Geometry) -> Tensor:
    """Resample images ``[..., H, W]`` of pixels linearly to ``[..., rows, columns]`` voxels; 0 outside the slices."""
    for axis in (0, 1):
        images = _linear(images, _of_voxels(geometry, axis), dim=axis - 2)
    return images


def is_inside(geometry: Geometry, axis: int) -> NDArray[np.bool_]:
    """Return whether each voxel along the rows (axis 0) or columns (axis 1) is covered by a pixel of the slice."""
    places = _of_voxels(geometry, axis)
    return np.asarray((places >= -0.5) & (places < geometry.size[axis] - 0.5))


def _of_pixels(geometry: Geometry, axis: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the voxel position of each pixel, and whether it is inside the volume."""
    pixels = np.arange(geometry.size[axis]) + geometry.shift[axis]
    places = geometry.step[axis] * pixels
    mask = (pixels >= 0) & (pixels < geometry.resampled[axis])
    return np.clip(places, 0, geometry.plane[axis] - 1), mask


def _of_voxels(geometry: Geometry, axis: int) -> NDArray[np.float64]:
    """Return the pixel position of each voxel; voxels beyond the outermost pixel centre use its value, as in MONAI."""
    pixels = np.arange(geometry.plane[axis]) / geometry.step[axis]
    return np.asarray(np.clip(pixels, 0, geometry.resampled[axis] - 1) - geometry.shift[axis])


def _linear(values: Tensor, places: NDArray[np.float64], *, dim: int, mask: NDArray[np.bool_] | None = None) -> Tensor:
    """Interpolate linearly along an axis; beyond its ends the values decrease to 0 within one entry."""
    size = values.shape[dim]
    below = np.floor(places).astype(np.int64)
    result = torch.zeros(())
    for index, weight in ((below, below + 1 - places), (below + 1, places - below)):
        weight = np.where((index >= 0) & (index < size), weight, 0.0)  # noqa: PLW2901
        if mask is not None:
            weight = weight * mask  # noqa: PLW2901
        entries = torch.from_numpy(np.clip(index, 0, size - 1)).to(values.device)
        part = values.index_select(dim, entries) * _along(torch.from_numpy(weight).to(values), dim)
        result = part if result.ndim == 0 else result.add_(part)
    return result


def _along(weights: Tensor, dim: int) -> Tensor:
    return weights[:, None] if dim == -2 else weights


_MOSTLY, _NEARLY_ALL = 0.9, 0.999
_LEAST_AREA = 0.5
"""Fraction of the area of a structure that must remain after resampling; otherwise a note is reported."""
_LEVELS = (50, 50, 50, 50)
_THRESHOLD = 0.001


def correct_bias_field(array: NDArray[np.float32], *, shrink: int) -> NDArray[np.float32]:
    """Divide a volume by its bias field, estimated with N4.

    Uses four levels of up to 50 iterations and a convergence threshold of 0.001, without a mask, as in the released
    code (with `shrink` 1). N4 works on logarithms, so voxels at or below 0 are ignored in the estimate.

    Args:
        array: ``[X, Y, Z]``.
        shrink: Estimate the field on every n-th voxel along each axis that has enough voxels, and evaluate it on all
            voxels. The field is smooth, so the loss of accuracy is small.
    """
    sitk = import_extra("SimpleITK", extra="simpleitk", needed_for="N4 bias field correction")
    image = sitk.GetImageFromArray(np.ascontiguousarray(array, dtype=np.float32))
    factors = [max(1, min(shrink, n // 16)) for n in image.GetSize()]
    small = sitk.Shrink(image, factors)
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetMaximumNumberOfIterations(_LEVELS)
    n4.SetConvergenceThreshold(_THRESHOLD)
    n4.Execute(small)
    field = sitk.GetArrayFromImage(sitk.Exp(n4.GetLogBiasFieldAsImage(image)))
    return np.asarray(array / field, dtype=np.float32)


@dataclass(frozen=True)
class Prepared:
    """A volume converted to slices.

    Attributes:
        slices: float32 ``[S, C, H, W]`` with C channels.
        geometry: Geometry of the slices in the volume.
        notes: Remarks about unusual properties and additional processing, without file paths.
    """

    slices: Tensor
    geometry: Geometry
    notes: tuple[str, ...] = ()


def prepare(volume: Volume, p: Preprocessing) -> Prepared:
    """Scale intensities, resample slices in-plane, and crop or pad them; the slice distance is not changed.

    The steps are those of the released code: N4 if requested; x <- (x - p1) / (p99 - p1) with the percentiles of the
    whole volume including air, without clipping; linear resampling; cropping or zero-padding around the centre. Each
    channel is processed independently. Before them, the padding that scanners write around the circle of a CT (such as
    -2000 or -3024) is raised to air.

    Raises:
        UserError: Voxels are not finite, intensities are constant, or the channels differ from those of the settings.
    """
    if len(volume.channels) != len(p.channels):
        raise UserError(
            f"{volume.image.path} has {several(len(volume.channels), 'channel')} ({', '.join(volume.channels)}); "
            f"expected {len(p.channels)} ({', '.join(p.channels)}), as in training"
        )
    if p.spacing is not None and not volume.grid.size_known:
        raise UserError(
            f"{volume.image.path}: the header does not state the voxel size, which is needed to resample to "
            f"{p.spacing[0]:g} mm; state it with --voxel-size X,Y,Z in mm along the axes of the file"
        )
    geometry, notes = slice_geometry(volume.grid, p)
    (channel, *_), (name, *others) = volume.image.channel_names, p.channels
    if channel and not channel.isdecimal() and name != UNNAMED and not others and channel.casefold() != name.casefold():
        notes += (f"its channel is named {channel}, and that of the training images {name}: a mask needs the same one",)
    pixels, all_remarks = [], []
    for image, array in zip(volume.image.channels, volume.channels.values(), strict=True):
        source = f"{image.path}{f': channel {image.name}' if volume.others and image.name else ''}"
        finite, remarks = _finite(array, p, source)
        finite, more = raise_padding(finite)
        remarks += more
        if p.n4:
            finite = correct_bias_field(finite, shrink=p.n4_shrink)
        slices = np.ascontiguousarray(geometry.to_slices(_scaled(finite, p, source)))
        if p.antialias:
            slices = _smoothed(slices, geometry)
        pixels.append(to_pixels(torch.from_numpy(slices), geometry))
        all_remarks += [f"{image.name}: {remark}" if volume.others else remark for remark in remarks]
    return Prepared(torch.stack(pixels, 1), geometry, (*volume.warnings, *all_remarks, *notes))


def prepare_label(classes: NDArray[np.uint8], geometry: Geometry) -> tuple[Tensor, NDArray[np.float64]]:
    """Convert the label of a volume to slices by nearest neighbour.

    Args:
        classes: ``[X, Y, Z]``, on the grid of the volume.
        geometry: Geometry of the slices.

    Returns:
        uint8 ``[S, H, W]``, and for each class from 0 to the largest one the fraction of its voxels outside the slices
        (float64; 0 for absent classes).
    """
    slices = np.ascontiguousarray(geometry.to_slices(classes))
    return to_nearest_pixels(torch.from_numpy(slices), geometry), share_outside(slices, geometry)


def erased_structures(classes: NDArray[np.uint8], pixels: Tensor, geometry: Geometry) -> dict[int, tuple[int, int]]:
    """Find structures that resampling removes from the slices completely or mostly.

    Args:
        classes: Label ``[X, Y, Z]``.
        pixels: Result of `prepare_label`, ``[S, H, W]``.
        geometry: Geometry of the slices.

    Returns:
        Class -> voxels within the slices and remaining pixels, for structures of which less than half of the area
        remains.
    """
    inside = [is_inside(geometry, axis) for axis in (0, 1)]
    before = np.bincount(geometry.to_slices(classes)[:, inside[0]][:, :, inside[1]].ravel(), minlength=256)
    after = np.bincount(pixels.numpy().ravel(), minlength=256)
    area = geometry.step[0] * geometry.step[1]
    return {
        number: (int(before[number]), int(after[number]))
        for number in range(1, 256)
        if before[number] and after[number] * area < _LEAST_AREA * before[number]
    }


SKIPPED = (
    "single labelled slices with unlabelled ones between them, which training takes as background; if these are not "
    "annotated, complete the label, for example with Fill between slices in 3D Slicer"
)


def skips_slices(labelled: NDArray[np.bool_]) -> bool:
    """Return whether only single slices contain structures, as in a label of every fifth slice.

    At least three such slices are needed, because a volume may have two small lesions.

    >>> [skips_slices(np.array(labelled, dtype=bool)) for labelled in ([1, 0, 1, 0, 0, 1], [1, 1, 0, 1], [1, 0, 1])]
    [True, False, False]
    """
    places = np.flatnonzero(labelled)
    return len(places) > 2 and bool((np.diff(places) > 1).all())


def describe_erased(name: str, voxels: int, pixels: int, geometry: Geometry) -> str:
    """Describe an erased structure, such as ``seed: 2 voxels of 0.6 mm before, 0 pixels of 1.8 mm after``."""
    rows, columns = (geometry.grid.spacing[axis] for axis in geometry.axes[1:])
    unit = "mm"
    if not geometry.size_known:
        rows, columns, unit = 1.0, 1.0, "voxels"
    voxel = f" of {_sides(rows, columns)} mm" if geometry.size_known else ""
    pixel = _sides(geometry.step[0] * rows, geometry.step[1] * columns)
    return f"{name}: {several(voxels, 'voxel')}{voxel} before, {several(pixels, 'pixel')} of {pixel} {unit} after"


def _sides(rows: float, columns: float) -> str:
    first, second = f"{rows:.2g}", f"{columns:.2g}"
    return first if first == second else f"{first} x {second}"


def share_outside(slices: NDArray[np.uint8], geometry: Geometry) -> NDArray[np.float64]:
    """Return, for each class from 0 to the largest one, the fraction of its voxels outside the slices.

    Args:
        slices: Classes ``[S, rows, columns]``, from `Geometry.to_slices`.
        geometry: Geometry of the slices.
    """
    rows, columns = (is_inside(geometry, axis) for axis in (0, 1))
    total = np.bincount(slices.ravel())
    inside = np.bincount(slices[:, rows][:, :, columns].ravel(), minlength=len(total))
    lost = 1 - inside / np.maximum(total, 1)
    lost[total == 0] = 0
    return np.asarray(lost)


def _finite(array: NDArray[np.float32], p: Preprocessing, source: str) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    finite = np.isfinite(array)
    if finite.all():
        return array, ()
    count = finite.size - int(np.count_nonzero(finite))
    if not p.fill_nan or not finite.any():
        raise UserError(
            f"{source}: {count:,} of {finite.size:,} voxels are not finite or exceed float32 (3.4e38); expected none. "
            "Repair the image, or fill them with its smallest value by training with --fill-nan"
        )
    filled = np.where(finite, array, array[finite].min())
    return filled, (f"non-finite voxels filled ({count:,}) with the smallest value of the image",)


def raise_padding(array: NDArray[Any]) -> tuple[NDArray[Any], tuple[str, ...]]:
    """Raise padding around the scanned region to -1024 in a CT, and to the smallest other value elsewhere; with a note.

    An image counts as CT if it contains air: other values below -512. Images without padding are returned unchanged.
    The value of padding depends on the scanner of a CT, or on the program that registered an MRI. As the smallest
    percentile, it would compress all tissues into a part of the range that also depends on it. Phase images have values
    as low, but not the same one in most of these voxels.
    """
    low = array[array < _BELOW_CT].astype(np.float64)  # the median of large float32 values overflows
    if low.size < _PADDING * array.size or np.mean(low == np.median(low)) < _CONSTANT:
        return array, ()
    smallest = float(np.min(array, where=array >= _BELOW_CT, initial=array.max()))
    floor = _AIR if smallest < _AIR / 2 else smallest
    note = f"voxels of {np.median(low):g}, padding around the scanned region, count as {floor:g}"
    return np.maximum(array, np.float32(floor)), (note,)


def _scaled(array: NDArray[np.float32], p: Preprocessing, source: str) -> NDArray[np.float32]:
    low, high = np.percentile(array, p.percentiles)
    if not high > low:
        most = float(np.mean(array == low))
        raise UserError(
            f"{source}: percentiles {p.percentiles[0]:g} and {p.percentiles[1]:g} of its intensities are "
            f"equal; {nothing_to_scale(float(low), most)}"
        )
    if np.spacing(np.float32(max(abs(low), abs(high)))) * _GREY_LEVELS > high - low:
        raise UserError(
            f"{source}: most of its intensities lie between {low:.9g} and {high:.9g}, where float32 distinguishes "
            f"fewer than {_GREY_LEVELS} of them; subtract an offset from the image"
        )
    return np.asarray((array - np.float32(low)) / np.float32(high - low))


def nothing_to_scale(value: float, share: float) -> str:
    """Describe a volume in which most voxels have the same value, with a remedy.

    >>> nothing_to_scale(0.0, 0.992)
    '99.2 % of the voxels are 0: train with a higher percentile, such as --high 99.92'
    """
    if share >= 1:
        return f"all voxels are {value:g}: the image is empty. Export it again, or leave the case out"
    if share > _NEARLY_ALL:
        return (
            f"all but {100 * (1 - share):.2g} % of the voxels are {value:g}: the image is nearly empty. Export it "
            "again, or leave the case out"
        )
    if share < _MOSTLY:
        return f"both percentiles are {value:g}; expected more than one grey value"
    high = 100 - 10 * (1 - share)
    return f"{100 * share:.3g} % of the voxels are {value:g}: train with a higher percentile, such as --high {high:.4g}"


def _smoothed(slices: NDArray[np.float32], geometry: Geometry) -> NDArray[np.float32]:
    """Smooth slices before downsampling, which would otherwise sample single voxels with their noise."""
    sigma = [max(0.0, (step - 1) / 2) for step in geometry.step]
    if not any(sigma):
        return slices
    from scipy.ndimage import gaussian_filter  # noqa: PLC0415

    return np.asarray(gaussian_filter(slices, (0.0, *sigma), mode="nearest"), dtype=np.float32)


def restore(probabilities: Tensor, geometry: Geometry) -> NDArray[np.float32]:
    """Map the probabilities of all slices back to the grid of the volume.

    Pixels are interpolated linearly, as in MONAI's ``Invertd``. Voxels more than a pixel outside the slices are
    background.

    Args:
        probabilities: ``[S, C, H, W]``; class 0 is the background.
        geometry: Geometry of the slices.

    Returns:
        float32 ``[C, X, Y, Z]`` in the axis order of the file.
    """
    native = restore_slices(probabilities, geometry).float().cpu().numpy()
    return np.stack([place(native[:, c], geometry) for c in range(native.shape[1])])


def restore_slices(probabilities: Tensor, geometry: Geometry) -> Tensor:
    """Map the probabilities of some slices back to the voxels of their volume.

    Slices are independent, so a large volume can be restored a few slices at a time.

    Args:
        probabilities: ``[N, C, H, W]``; class 0 is the background.
        geometry: Geometry of the slices.

    Returns:
        ``[N, C, rows, columns]``; rows and columns are voxels of the volume.
    """
    native = to_voxels(probabilities, geometry)
    # Voxels just outside the outermost pixel have weights below 1, so the probabilities are renormalised.
    coverage = to_voxels(torch.ones_like(probabilities[:1, 0]), geometry)
    native /= coverage.clamp_min(torch.finfo(coverage.dtype).tiny)
    native[:, 0] += coverage == 0
    return native


def place(slices: NDArray[Any], geometry: Geometry) -> NDArray[Any]:
    """Assemble slices ``[S, rows, columns]`` of voxels into the volume ``[X, Y, Z]``."""
    volume = np.empty(geometry.shape, dtype=slices.dtype)
    geometry.to_slices(volume)[...] = slices
    return volume
