"""Derive the preprocessing from a data set, with a reason for every decision."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from contrastive_core.errors import UserError
from contrastive_core.text import several, some_of
from ssl_medseg.datasets.dataset import Case, DataSet
from ssl_medseg.io import Grid, read_grid, read_label
from ssl_medseg.preprocessing.prepare import axis_directions, axis_letters, slice_geometry, thick_axis
from ssl_medseg.preprocessing.settings import DIRECTIONS, MULTIPLE, Preprocessing, plane_of

_MARGIN = 1.2
_LEAST_VIEW = 0.6
"""Smallest fraction of the median field of view that slices cover, because a few labels do not show how much the
position of a structure varies between patients."""
_ORIENTATION = "LPS"
"""Orientation that volumes are converted to, so that a model does not depend on how they are stored."""
_SLIGHTLY_THICK = 1.05
_SNAP = np.cos(np.deg2rad(30))
"""Cosine of the largest tilt at which slices are converted to the axes of the patient; others keep oblique axes."""
_ONE_PLANE = np.cos(np.deg2rad(45))

SliceAxis = Literal["auto", "axial", "coronal", "sagittal", "0", "1", "2"]


@dataclass(frozen=True)
class PreprocessingOptions:
    """Preprocessing settings that are given rather than derived from the data.

    Args:
        spacing: Pixel size in mm that slices are resampled to; 0 uses the median of the data.
        image_size: Height and width of the slices in pixels, a multiple of 32; 0 derives them from the labelled voxels.
        fit: Longer side of a slice in pixels, for images of unknown voxel size; 0 derives it.
        slice_axis: Plane of the slices in all volumes; auto uses the plane of acquisition; 0, 1 or 2 is an array axis
            of the files.
        orientation: Orientation of the volumes: auto converts all to the same, stored uses them as stored.
        low: Percentile of the intensities of a volume that is scaled to 0.
        high: Percentile of the intensities of a volume that is scaled to 1.
        antialias: Smooth an image before downsampling.
        n4: Correct the bias field with N4 (extra "simpleitk").
        n4_shrink: Subsampling factor at which N4 estimates the bias field.
        fill_nan: Replace voxels that are not finite by the smallest value of the image, instead of rejecting the image.
    """

    spacing: float = 0.0
    image_size: int = 0
    fit: int = 0
    slice_axis: SliceAxis = "auto"
    orientation: Literal["auto", "stored"] = "auto"
    low: float = 1.0
    high: float = 99.0
    antialias: bool = True
    n4: bool = False
    n4_shrink: int = 4
    fill_nan: bool = False

    def __post_init__(self) -> None:
        if self.spacing < 0 or self.fit < 0 or self.image_size < 0 or self.image_size % MULTIPLE:
            raise UserError(
                f"preprocessing has spacing {self.spacing:g}, fit {self.fit} and image_size {self.image_size}; "
                f"expected no value below 0, and an image_size that is a multiple of {MULTIPLE}"
            )
        if self.spacing and self.fit:
            raise UserError(
                "preprocessing has both spacing and fit; expected one of them (fit is for images of unknown voxel size)"
            )


@dataclass(frozen=True)
class Slicing:
    """Plane and orientation of the slices of all volumes of a data set, see `Preprocessing` for the fields."""

    slice_axis: int
    orientation: str = ""
    frame: tuple[tuple[float, float, float], ...] | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """Keyword arguments of `Preprocessing`."""
        return {"slice_axis": self.slice_axis, "orientation": self.orientation, "frame": self.frame}

    def axes(self, grid: Grid) -> tuple[int, int, int]:
        """Return the array axes of a volume that correspond to slices, rows and columns."""
        return slice_geometry(grid, Preprocessing(size=(MULTIPLE, MULTIPLE), **self.settings))[0].axes


def choose_preprocessing(
    dataset: DataSet,
    names: Sequence[str],
    *,
    labelled: Sequence[str] = (),
    options: PreprocessingOptions | None = None,
    grids: Mapping[str, Grid] | None = None,
    largest: int = 0,
) -> tuple[Preprocessing, list[str]]:
    """Derive the preprocessing from the grids of the training images and the labels of some of them.

    Args:
        dataset: Data set.
        names: Cases used for training, whose images are considered.
        labelled: Cases whose labels may be opened. The extent of their structures determines the size of the slices.
        options: Settings that are given rather than derived.
        grids: Case -> grid, for images whose grid has been read already.
        largest: Largest side of the slices in pixels if the options state neither size nor spacing; larger slices are
            downsampled. 0 for no limit.

    Returns:
        Settings, and one sentence per decision.

    Raises:
        UserError: There are no cases, a file cannot be read, or the cases differ in plane, orientation or voxel size in
            a way that no option resolves.
    """
    options = options or PreprocessingOptions()
    grids = _grids(dataset, names, grids or {})
    settings, reasons = _derive(dataset, grids, labelled, options)
    if largest and max(settings.size) > largest and not (options.image_size or options.spacing or options.fit):
        settings, reasons = _derive(dataset, grids, labelled, replace(options, image_size=largest))
        reasons.append(f"the effort limits slices to {largest} pixels per side; the data have more")
    return settings, reasons


def _grids(dataset: DataSet, names: Sequence[str], known: Mapping[str, Grid]) -> dict[str, Grid]:
    cases = dataset.select(names)
    if not cases:
        raise UserError(f"{dataset.name}: no cases to derive the preprocessing from")
    return {case.name: known.get(case.name) or read_grid(case.image) for case in cases}


def _derive(
    dataset: DataSet, grids: Mapping[str, Grid], labelled: Sequence[str], options: PreprocessingOptions
) -> tuple[Preprocessing, list[str]]:
    """Derive the preprocessing without a limit on the size of the slices."""
    try:
        slicing, reasons = choose_slicing(grids, options)
        known = check_sizes(grids, options)
    except UserError as error:
        raise UserError(f"{dataset.name}: {error}") from error
    views = [_View.of(grid, slicing) for grid in grids.values()]
    unit = "mm" if known else "of the longer side"
    field_of_view, reason = _field_of_view(dataset, dataset.select(labelled), views, slicing, grids, known=known)
    reasons.append(reason)

    spacing, fit = options.spacing, options.fit
    if known and not spacing and not fit:
        spacing = round(float(np.median([side for view in views for side in view.spacing])), 4)
        if options.image_size and field_of_view > spacing * options.image_size:
            spacing = field_of_view / options.image_size
            reasons.append(f"pixels of {spacing:.4g} mm, so that {options.image_size} pixels cover this field of view")
        else:
            reasons.append(f"pixels of {spacing:.4g} mm, the median of {len(views)} volumes")
    elif not known and not fit and not spacing:
        fit = (
            round(options.image_size / field_of_view)
            if options.image_size
            else round(float(np.median([max(v.voxels) for v in views])))
        )
        reasons.append(
            "no file states its voxel size (form codes of 0, or an identity affine without a unit), so the longer side "
            f"of every image is scaled to {fit} pixels; state the voxel size with --voxel-size X,Y,Z"
        )
    size = options.image_size or MULTIPLE * max(
        1, math.ceil(_pixels(field_of_view, spacing, fit, known=known, views=views) / MULTIPLE)
    )
    suffix = (
        "" if options.image_size else f", the smallest multiple of {MULTIPLE} that covers {field_of_view:.3g} {unit}"
    )
    reasons.append(f"slices of {size} x {size} pixels{suffix}")
    first, second = np.median([view.spacing for view in views], axis=0)
    settings = Preprocessing(
        size=(size, size),
        spacing=(spacing, spacing) if spacing else None,
        fit=fit,
        **slicing.settings,
        percentiles=(options.low, options.high),
        antialias=options.antialias,
        n4=options.n4,
        n4_shrink=options.n4_shrink,
        fill_nan=options.fill_nan,
        usual_spacing=(round(float(first), 4), round(float(second), 4)),
        channels=dataset.channels,
        channel_numbers=dataset.channel_numbers,
    )
    if len(dataset.channels) > 1:
        reasons.append(
            f"{len(dataset.channels)} channels ({', '.join(dataset.channels)}), each scaled by its own percentiles and "
            f"resampled to the grid of {dataset.channels[0]}"
        )
    return settings, reasons


def choose_slicing(grids: Mapping[str, Grid], options: PreprocessingOptions) -> tuple[Slicing, list[str]]:
    """Choose one plane and one orientation for the slices of all volumes.

    The plane is the plane of acquisition: slices are perpendicular to the axis whose spacing is at least 1.5 times that
    of the others. Isotropic volumes can be sliced in any plane. If all volumes are isotropic, slices are axial, or in
    the plane of slightly thicker slices if all volumes agree on one. The number of voxels is not considered.

    Args:
        grids: Case -> grid.
        options: Plane and orientation, if they are given.

    Returns:
        Slicing, and one sentence per decision.

    Raises:
        UserError: Volumes were acquired in different planes, or only some of them state the patient's left and right,
            and no option resolves this.
    """
    with_place = [name for name, grid in grids.items() if grid.place_known]
    if options.orientation == "stored" or not with_place:
        return _as_stored(grids, options, by_option=options.orientation == "stored")
    without_place = [name for name in grids if name not in with_place]
    if without_place:
        raise UserError(
            f"the patient's left and right are known in {several(len(with_place), 'volume')} and unknown in "
            f"{len(without_place)} ({some_of(without_place)}: form codes of 0, or an identity affine without a unit), "
            "so the volumes cannot be converted to the same orientation; leave those out, or use all volumes as stored "
            "with --orientation stored"
        )
    normal, reason = _normal(grids, options)
    directions = _frame(normal, list(grids.values()))
    axis = int(np.abs(directions @ normal).argmax())
    letters = Counter(axis_letters(grid) for grid in grids.values())
    tally = ", ".join(f"{name} {count}" for name, count in letters.most_common())
    if np.diag(directions @ np.array([DIRECTIONS[letter] for letter in _ORIENTATION]).T).min() > _SNAP:
        return Slicing(axis, orientation=_ORIENTATION), [
            reason, f"volumes are converted to the orientation {_ORIENTATION} (stored: {tally})",
        ]  # fmt: skip
    first, second, third = (tuple(round(float(v), 4) for v in row) for row in directions)
    return Slicing(axis, frame=(first, second, third)), [  # type: ignore[arg-type]
        reason, f"volumes are oblique and are converted to their most common axes (stored: {tally})",
    ]  # fmt: skip


def _as_stored(
    grids: Mapping[str, Grid], options: PreprocessingOptions, *, by_option: bool
) -> tuple[Slicing, list[str]]:
    cause = "--orientation stored" if by_option else "the files do not state the patient's left and right"
    reason = f"volumes are used as stored ({cause})"
    if options.slice_axis in ("axial", "coronal", "sagittal"):
        raise UserError(
            f"slice_axis is {options.slice_axis}, but volumes are used as stored ({cause}), so planes are unknown; "
            "expected an array axis of the files: 0, 1 or 2"
        )
    if options.slice_axis != "auto":
        return Slicing(int(options.slice_axis)), [
            f"slices along axis {options.slice_axis} of the files (--slice-axis)",
            reason,
        ]
    votes: dict[int, list[str]] = defaultdict(list)
    for name, grid in grids.items():
        if (axis := thick_axis(grid)) is not None:
            votes[axis].append(name)
    if len(votes) > 1:
        raise UserError(
            "volumes were acquired in slices along different axes of their files ("
            + "; ".join(f"axis {axis}: {len(names)}, {some_of(names)}" for axis, names in sorted(votes.items()))
            + "); expected the same axis in all. Choose it with --slice-axis 0, 1 or 2, or leave the others out"
        )
    if votes:
        ((axis, names),) = votes.items()
        acquired = several(len(names), "volume")
        return Slicing(axis), [f"slices along axis {axis} of the files, the axis of acquisition of {acquired}", reason]
    return Slicing(2), [
        "slices along the last axis of the files, because the axis of acquisition is unknown; choose another one with "
        "--slice-axis", reason,
    ]  # fmt: skip


def _normal(grids: Mapping[str, Grid], options: PreprocessingOptions) -> tuple[NDArray[np.float64], str]:
    """Choose the direction (RAS) perpendicular to the slices of all volumes; return it with the reason."""
    letters = {"axial": "S", "coronal": "P", "sagittal": "L"}
    if options.slice_axis in letters:
        direction = np.array(DIRECTIONS[letters[options.slice_axis]])
        thick = _thick(grids, 1.5)
        vectors = [v for v in thick.values() if abs(v @ direction) > _ONE_PLANE]
        return (_mean_axis(vectors) if vectors else direction), f"{options.slice_axis} slices (--slice-axis)"
    if options.slice_axis != "auto":
        along = {name: axis_directions(grid)[int(options.slice_axis)] for name, grid in grids.items()}
        normal = _mean_axis(list(along.values()))
        others = [name for name, v in along.items() if abs(v @ normal) < _ONE_PLANE]
        if others:
            raise UserError(
                f"axis {options.slice_axis} has a different direction in {several(len(others), 'volume')} "
                f"({some_of(others)}) from that in the others; choose a plane instead: --slice-axis axial, coronal or "
                "sagittal"
            )
        return normal, f"{plane_of(normal)} slices, along axis {options.slice_axis} of the files (--slice-axis)"
    thick = _thick(grids, 1.5)
    if thick:
        normal = _mean_axis(list(thick.values()))
        groups: dict[str, list[str]] = defaultdict(list)
        for name, v in thick.items():
            groups["" if abs(v @ normal) > _ONE_PLANE else plane_of(v)].append(name)
        if set(groups) != {""}:
            groups = defaultdict(list)
            for name, v in thick.items():
                groups[plane_of(v).removeprefix("oblique ")].append(name)
            raise UserError(
                "volumes were acquired in different planes ("
                + "; ".join(f"{plane}: {len(names)}, {some_of(names)}" for plane, names in groups.items())
                + "); expected the same plane in all. Choose it with --slice-axis axial, coronal or sagittal, or leave "
                "the others out"
            )
        steps = sorted(grids[name].spacing[thick_axis(grids[name]) or 0] for name in thick)
        return normal, (
            f"{plane_of(normal)} slices, the plane of acquisition of {len(thick)} of {several(len(grids), 'volume')}, "
            f"{_span(steps)} mm apart"
        )
    slight = _thick(grids, _SLIGHTLY_THICK)
    if len(slight) == len(grids):
        normal = _mean_axis(list(slight.values()))
        if all(abs(v @ normal) > _ONE_PLANE for v in slight.values()):
            return (
                normal,
                f"{plane_of(normal)} slices, because all volumes are slightly thicker in this direction",
            )
    return np.array(DIRECTIONS["S"]), (
        "axial slices, because voxels are about equally far apart along every axis; choose another plane with "
        "--slice-axis coronal or sagittal"
    )


def _span(numbers: Sequence[float]) -> str:
    """Format a range of sorted numbers: ``8 to 10``, or ``8`` if all are equal."""
    first, last = f"{numbers[0]:.3g}", f"{numbers[-1]:.3g}"
    return first if first == last else f"{first} to {last}"


def _thick(grids: Mapping[str, Grid], ratio: float) -> dict[str, NDArray[np.float64]]:
    """Return the slice direction of the cases whose spacing reveals it."""
    directions = {}
    for name, grid in grids.items():
        axis = thick_axis(grid, ratio=ratio)
        if axis is not None:
            directions[name] = axis_directions(grid)[axis]
    return directions


def _mean_axis(vectors: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Return the mean of unit vectors regardless of their sign, pointing left, posterior or superior."""
    # The outer product of a vector with itself does not depend on its sign.
    _, axes = np.linalg.eigh(sum(np.outer(v, v) for v in vectors))
    mean = axes[:, -1]
    references = np.array([DIRECTIONS[letter] for letter in _ORIENTATION])
    nearest = int(np.abs(references @ mean).argmax())
    return np.asarray(mean * np.sign(references[nearest] @ mean))


def _frame(normal: NDArray[np.float64], grids: Sequence[Grid]) -> NDArray[np.float64]:
    """Return three directions (RAS) in the order of LPS: the normal, and the most common in-plane directions.

    In-plane angles are averaged modulo 90 degrees, so that the result does not depend on how volumes are stored.
    """
    references = np.array([DIRECTIONS[letter] for letter in _ORIENTATION])
    along = int(np.abs(references @ normal).argmax())
    first, second = (k for k in range(3) if k != along)
    right = references[first] - (references[first] @ normal) * normal
    right /= np.linalg.norm(right)
    down = references[second] - (references[second] @ normal) * normal
    down -= (down @ right) * right
    down /= np.linalg.norm(down)
    turns = 0j
    for grid in grids:
        axes = axis_directions(grid)
        across = [axis for axis in range(3) if axis != int(np.abs(axes @ normal).argmax())]
        for axis in across:
            turns += complex(axes[axis] @ right, axes[axis] @ down) ** 4
    angle = float(np.angle(turns)) / 4
    directions = np.empty((3, 3))
    directions[along] = normal
    directions[first] = math.cos(angle) * right + math.sin(angle) * down
    directions[second] = math.cos(angle) * down - math.sin(angle) * right
    return directions


def check_sizes(grids: Mapping[str, Grid], options: PreprocessingOptions) -> bool:
    """Return whether the voxel sizes of all volumes are known.

    Raises:
        UserError: Only some voxel sizes are known, and `fit` is not given.
    """
    unknown = [name for name, grid in grids.items() if not grid.size_known]
    if unknown and len(unknown) < len(grids) and not options.fit:
        raise UserError(
            f"the voxel size is known in {several(len(grids) - len(unknown), 'volume')} and unknown in {len(unknown)} "
            f"({some_of(unknown)}: form codes of 0, or an identity affine without a unit); state it with --voxel-size "
            "X,Y,Z in mm, or leave those volumes out"
        )
    return not unknown


@dataclass(frozen=True)
class _View:
    """Size of a slice: number and spacing of voxels along a column and along a row."""

    voxels: tuple[int, int]
    spacing: tuple[float, float]
    axes: tuple[int, int]

    @classmethod
    def of(cls, grid: Grid, slicing: Slicing) -> _View:
        _, first, second = slicing.axes(grid)
        return cls(
            (grid.shape[first], grid.shape[second]), (grid.spacing[first], grid.spacing[second]), (first, second)
        )

    @property
    def longer(self) -> float:
        """Length of the longer side in mm."""
        return max(n * s for n, s in zip(self.voxels, self.spacing, strict=True))

    def unit(self, *, known: bool) -> float:
        """Return the unit of lengths: 1 mm, or the longer side if the voxel size is unknown."""
        return 1.0 if known else self.longer


def _field_of_view(
    dataset: DataSet,
    cases: Sequence[Case],
    views: Sequence[_View],
    slicing: Slicing,
    grids: Mapping[str, Grid],
    *,
    known: bool,
) -> tuple[float, str]:
    """Return the field of view that slices should cover, in mm or relative to the longer side, with the reason."""
    views_in_units = [view.longer / view.unit(known=known) for view in views]
    usual, largest = float(np.median(views_in_units)), max(views_in_units)
    reach = 0.0
    for case in cases:
        if case.label is None:
            raise UserError(
                f"{dataset.name}: case {case.name} has no label; expected one, because it is listed as labelled"
            )
        grid = grids.get(case.name) or read_grid(case.image)
        classes, _ = read_label(case.label, dataset.labels, image=grid)
        view = _View.of(grid, slicing)
        for axis, voxels, side in zip(view.axes, view.voxels, view.spacing, strict=True):
            where = np.flatnonzero(classes.any(axis=tuple(a for a in range(3) if a != axis)))
            if len(where):
                # Twice the distance from the centre, because slices are cropped around it.
                furthest = 2 * max(abs(float(w) - (voxels - 1) / 2) + 0.5 for w in (where[0], where[-1]))
                reach = max(reach, furthest * side / view.unit(known=known))
    unit = "mm" if known else "of the longer side"
    extent = max(_MARGIN * reach, _LEAST_VIEW * usual) if reach else usual
    if not reach:
        return (
            largest,
            f"slices cover the whole field of view of up to {largest:.3g} {unit}, because there is no label",
        )
    reason = (
        f"the labels of {several(len(cases), 'volume')} extend over {reach:.3g} {unit} around the centre; slices cover "
        f"{min(extent, largest):.3g} {unit} (with a margin of {_MARGIN - 1:.0%}, and at least {_LEAST_VIEW:.0%} of the "
        "median field of view)"
    )
    return min(extent, largest), reason


def _pixels(field_of_view: float, spacing: float, fit: int, *, known: bool, views: Sequence[_View]) -> float:
    if spacing:
        longer = float(np.median([view.longer for view in views]))
        return (field_of_view if known else field_of_view * longer) / spacing
    share = field_of_view if not known else field_of_view / float(np.median([view.longer for view in views]))
    return share * fit
