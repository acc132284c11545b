"""Derive the preprocessing from a data set, with a reason for every decision."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from contrastive_core.errors import UserError
from contrastive_core.text import some_of
from ssl_medseg.datasets.dataset import Case, DataSet
from ssl_medseg.io import Grid, read_grid, read_label
from ssl_medseg.preprocessing.prepare import axis_directions, axis_letters, slice_geometry, thick_axis
from ssl_medseg.preprocessing.settings import DIRECTIONS, MULTIPLE, Preprocessing, plane_of

_MARGIN = 1.2
_LEAST_VIEW = 0.6
"""Share of the usual field of view that slices show at least: a few labels do not tell how far off a heart can lie."""
_ORIENTATION = "LPS"
"""How volumes are turned, whatever way they are stored, so that it makes no difference to a model."""
_SLIGHTLY_THICK = 1.05
_SNAP = np.cos(np.deg2rad(30))
"""Slices tilted by less than this are turned to the patient's axes; others have a frame of their own."""
_ONE_PLANE = np.cos(np.deg2rad(45))

SliceAxis = Literal["auto", "axial", "coronal", "sagittal", "0", "1", "2"]


@dataclass(frozen=True)
class PreprocessingOptions:
    """Preprocessing settings that are given; the others are derived from the data.

    Args:
        spacing: Size of the pixels in mm that slices are resampled to; 0: the median of the data.
        image_size: Height and width of the slices in pixels, a multiple of 32; 0: enough for all labelled voxels.
        fit: Longer side of a slice in pixels, for images of unknown voxel size; 0: derived.
        slice_axis: Plane of the slices, the same for all volumes; auto: the plane they were acquired in. 0, 1 or 2: an
            axis of the files.
        orientation: Turn volumes to one orientation (auto), or take all as they are stored (stored).
        low: Percentile of a volume's intensities that becomes 0.
        high: Percentile of a volume's intensities that becomes 1.
        antialias: Smooth an image before its pixels are made larger.
        n4: Correct the bias field with N4 (extra "simpleitk").
        n4_shrink: Step in voxels at which N4 estimates the field.
        fill_nan: Fill voxels that are no numbers with the smallest value of the image instead of refusing it.
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
                f"preprocessing got spacing {self.spacing:g}, fit {self.fit}, image_size {self.image_size}; expected "
                f"none below 0, and an image size that {MULTIPLE} divides"
            )
        if self.spacing and self.fit:
            raise UserError(
                "preprocessing got both spacing and fit; expected one: fit is for images of unknown voxel size"
            )


@dataclass(frozen=True)
class Slicing:
    """The way all volumes of a data set are cut into slices; fields as those of `Preprocessing`."""

    slice_axis: int
    orientation: str = ""
    frame: tuple[tuple[float, float, float], ...] | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """Keyword arguments of `Preprocessing`."""
        return {"slice_axis": self.slice_axis, "orientation": self.orientation, "frame": self.frame}

    def axes(self, grid: Grid) -> tuple[int, int, int]:
        """The axes of a volume that slices, rows and columns are counted along."""
        return slice_geometry(grid, Preprocessing(size=(MULTIPLE, MULTIPLE), **self.settings))[0].axes


def choose_preprocessing(
    dataset: DataSet,
    names: Sequence[str],
    *,
    labelled: Sequence[str] = (),
    options: PreprocessingOptions | None = None,
    grids: Mapping[str, Grid] | None = None,
) -> tuple[Preprocessing, list[str]]:
    """Derive the settings that were not given from the grids of some cases and the labels of a few.

    Args:
        dataset: The data set.
        names: Cases whose images are looked at: those of training.
        labelled: Cases whose labels may be opened; the structures' extent decides how much of the image is needed.
        options: Settings that are given.
        grids: By case, where the caller has read them already.

    Returns:
        The settings, and one sentence per decision.

    Raises:
        UserError: No cases, one that cannot be read, or cases that do not agree in what is needed of all.
    """
    options = options or PreprocessingOptions()
    cases = dataset.select(names)
    if not cases:
        raise UserError(f"{dataset.name}: no cases to derive the preprocessing from")
    grids = {case.name: (grids or {}).get(case.name) or read_grid(case.image) for case in cases}
    try:
        slicing, reasons = choose_slicing(grids, options)
        known = check_sizes(grids, options)
    except UserError as error:
        raise UserError(f"{dataset.name}: {error}") from error
    views = [_View.of(grid, slicing) for grid in grids.values()]
    unit = "mm" if known else "of the longer side"
    needed, why = _needed(dataset, dataset.select(labelled), views, slicing, grids, known=known)
    reasons.append(why)

    spacing, fit = options.spacing, options.fit
    if known and not spacing and not fit:
        spacing = round(float(np.median([side for view in views for side in view.spacing])), 4)
        if options.image_size and needed > spacing * options.image_size:
            spacing = needed / options.image_size
            reasons.append(f"pixels of {spacing:.4g} mm, so that {options.image_size} of them show that much")
        else:
            reasons.append(f"pixels of {spacing:.4g} mm, the median of {len(views)} volumes")
    elif not known and not fit and not spacing:
        fit = (
            round(options.image_size / needed)
            if options.image_size
            else round(float(np.median([max(v.voxels) for v in views])))
        )
        reasons.append(
            "no file states the size of its voxels (form codes of 0, or an identity matrix without a unit), so the "
            f"longer side of every image is scaled to {fit} pixels; --voxel-size X,Y,Z states it"
        )
    size = options.image_size or MULTIPLE * max(
        1, math.ceil(_pixels(needed, spacing, fit, known=known, views=views) / MULTIPLE)
    )
    why = "" if options.image_size else f", the multiple of {MULTIPLE} that shows {needed:.3g} {unit}"
    reasons.append(f"slices of {size} x {size} pixels{why}")
    first, second = np.median([view.spacing for view in views], axis=0)
    chosen = Preprocessing(
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
            f"{len(dataset.channels)} channels ({', '.join(dataset.channels)}), each scaled by its own percentiles, on "
            f"the grid of {dataset.channels[0]}"
        )
    return chosen, reasons


def choose_slicing(grids: Mapping[str, Grid], options: PreprocessingOptions) -> tuple[Slicing, list[str]]:
    """Choose one plane and one orientation for the slices of all volumes.

    The plane is the one in which volumes were acquired: across the axis along which voxels are at least 1.5 times as
    far apart as along the others. Volumes with equal voxels may be cut in any plane; where all have them it is the
    axial one, or that of slightly thicker slices if all agree. The number of voxels decides nothing.

    Args:
        grids: Case -> its grid.
        options: The plane and orientation, where they are given.

    Returns:
        The slicing, and one sentence per decision.

    Raises:
        UserError: Volumes were acquired in different planes, or only some state the patient's sides, and no option says
            what to do.
    """
    placed = [name for name, grid in grids.items() if grid.place_known]
    if options.orientation == "stored" or not placed:
        return _as_stored(grids, options, said=options.orientation == "stored")
    lost = [name for name in grids if name not in placed]
    if lost:
        raise UserError(
            f"the patient's sides are known in {len(placed)} volumes and unknown in {len(lost)} ({some_of(lost)}: form "
            "codes of 0, or an identity matrix without a unit), so that they cannot be turned alike; leave those out, "
            "or take all as they are stored with --orientation stored"
        )
    normal, reason = _normal(grids, options)
    directions = _frame(normal, list(grids.values()))
    axis = int(np.abs(directions @ normal).argmax())
    letters = Counter(axis_letters(grid) for grid in grids.values())
    stored = ", ".join(f"{name} {count}" for name, count in letters.most_common())
    if np.diag(directions @ np.array([DIRECTIONS[letter] for letter in _ORIENTATION]).T).min() > _SNAP:
        return Slicing(axis, orientation=_ORIENTATION), [
            reason, f"volumes are turned to the orientation {_ORIENTATION} (stored: {stored})",
        ]  # fmt: skip
    first, second, third = (tuple(round(float(v), 4) for v in row) for row in directions)
    return Slicing(axis, frame=(first, second, third)), [  # type: ignore[arg-type]
        reason, f"volumes are oblique and turned to what most have in common (stored: {stored})",
    ]  # fmt: skip


def _as_stored(grids: Mapping[str, Grid], options: PreprocessingOptions, *, said: bool) -> tuple[Slicing, list[str]]:
    why = "as given" if said else "the files do not state the patient's sides"
    reason = f"volumes are taken as they are stored: {why}"
    if options.slice_axis in ("axial", "coronal", "sagittal"):
        raise UserError(
            f"got slice_axis {options.slice_axis}, and volumes are taken as they are stored ({why}); expected 0, 1 or "
            "2, an axis of the files"
        )
    if options.slice_axis != "auto":
        return Slicing(int(options.slice_axis)), [
            f"slices along axis {options.slice_axis} of the files, as given",
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
            + "); expected one. Say which by --slice-axis 0, 1 or 2, or leave the others out"
        )
    if votes:
        ((axis, names),) = votes.items()
        return Slicing(axis), [f"slices along axis {axis} of the files, as {len(names)} volumes were acquired", reason]
    return Slicing(2), [
        "slices along the last axis of the files, because nothing says how they were acquired; --slice-axis says "
        "otherwise", reason,
    ]  # fmt: skip


def _normal(grids: Mapping[str, Grid], options: PreprocessingOptions) -> tuple[NDArray[np.float64], str]:
    """The direction (RAS) that all volumes are cut along, and why."""
    named = {"axial": "S", "coronal": "P", "sagittal": "L"}
    if options.slice_axis in named:
        wanted = np.array(DIRECTIONS[named[options.slice_axis]])
        thick = _thick(grids, 1.5)
        kept = [v for v in thick.values() if abs(v @ wanted) > _ONE_PLANE]
        return (_mean_axis(kept) if kept else wanted), f"{options.slice_axis} slices, as given"
    if options.slice_axis != "auto":
        along = {name: axis_directions(grid)[int(options.slice_axis)] for name, grid in grids.items()}
        normal = _mean_axis(list(along.values()))
        others = [name for name, v in along.items() if abs(v @ normal) < _ONE_PLANE]
        if others:
            raise UserError(
                f"axis {options.slice_axis} runs in another direction in {len(others)} volumes ({some_of(others)}) "
                "than in the others; name the plane of the slices: --slice-axis axial, coronal or sagittal"
            )
        return normal, f"{plane_of(normal)} slices, along axis {options.slice_axis} of the files, as given"
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
                "volumes were acquired in slices of different planes ("
                + "; ".join(f"{plane}: {len(names)}, {some_of(names)}" for plane, names in groups.items())
                + "); expected one plane for all. Say which by --slice-axis axial, coronal or sagittal, or leave the "
                "others out"
            )
        steps = sorted(grids[name].spacing[thick_axis(grids[name]) or 0] for name in thick)
        return normal, (
            f"{plane_of(normal)} slices, as {len(thick)} of {len(grids)} volumes were acquired, {steps[0]:.3g} to "
            f"{steps[-1]:.3g} mm apart"
        )
    slight = _thick(grids, _SLIGHTLY_THICK)
    if len(slight) == len(grids):
        normal = _mean_axis(list(slight.values()))
        if all(abs(v @ normal) > _ONE_PLANE for v in slight.values()):
            return (
                normal,
                f"{plane_of(normal)} slices, across which the voxels of all volumes are slightly further apart",
            )
    return np.array(DIRECTIONS["S"]), (
        "axial slices, for voxels are about as far apart along every axis; --slice-axis coronal or sagittal "
        "takes others"
    )


def _thick(grids: Mapping[str, Grid], ratio: float) -> dict[str, NDArray[np.float64]]:
    """Case -> the direction it was acquired along, of those whose spacing says."""
    found = {}
    for name, grid in grids.items():
        axis = thick_axis(grid, ratio=ratio)
        if axis is not None:
            found[name] = axis_directions(grid)[axis]
    return found


def _mean_axis(vectors: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """The axis nearest to unit vectors, whichever way they point; it points towards left, posterior or superior."""
    # The sum of outer products in a fixed order of its entries does not know a vector from its opposite.
    _, axes = np.linalg.eigh(sum(np.outer(v, v) for v in vectors))
    mean = axes[:, -1]
    wanted = np.array([DIRECTIONS[letter] for letter in _ORIENTATION])
    nearest = int(np.abs(wanted @ mean).argmax())
    return np.asarray(mean * np.sign(wanted[nearest] @ mean))


def _frame(normal: NDArray[np.float64], grids: Sequence[Grid]) -> NDArray[np.float64]:
    """Three directions (RAS), in the order of LPS, of which one is the normal and two are those most slices have.

    In the plane, volumes agree in the angle of their rows modulo a quarter turn, however they are stored.
    """
    wanted = np.array([DIRECTIONS[letter] for letter in _ORIENTATION])
    along = int(np.abs(wanted @ normal).argmax())
    first, second = (k for k in range(3) if k != along)
    right = wanted[first] - (wanted[first] @ normal) * normal
    right /= np.linalg.norm(right)
    down = wanted[second] - (wanted[second] @ normal) * normal
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
    """Whether the size of a voxel is known.

    Raises:
        UserError: In some volumes only, and no option makes that unimportant.
    """
    unknown = [name for name, grid in grids.items() if not grid.size_known]
    if unknown and len(unknown) < len(grids) and not options.fit:
        raise UserError(
            f"the size of a voxel is known in {len(grids) - len(unknown)} volumes and unknown in {len(unknown)} "
            f"({some_of(unknown)}: form codes of 0, or an identity matrix without a unit); state it with --voxel-size "
            "X,Y,Z in mm, or leave those out"
        )
    return not unknown


@dataclass(frozen=True)
class _View:
    """A slice of a volume: voxels and their spacing, down and right."""

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
        """Longer side in mm."""
        return max(n * s for n, s in zip(self.voxels, self.spacing, strict=True))

    def unit(self, *, known: bool) -> float:
        """What lengths are measured in: mm, or where these are unknown the longer side."""
        return 1.0 if known else self.longer


def _needed(
    dataset: DataSet,
    cases: Sequence[Case],
    views: Sequence[_View],
    slicing: Slicing,
    grids: Mapping[str, Grid],
    *,
    known: bool,
) -> tuple[float, str]:
    """Side of the square that slices should show, in mm or in longer sides, and why."""
    views_in_units = [view.longer / view.unit(known=known) for view in views]
    usual, largest = float(np.median(views_in_units)), max(views_in_units)
    reach = 0.0
    for case in cases:
        if case.label is None:
            raise UserError(f"{dataset.name}: case {case.name} has no label, but is named as labelled")
        classes, _ = read_label(case.label, dataset.labels)
        view = _View.of(grids.get(case.name) or read_grid(case.image), slicing)
        for axis, voxels, side in zip(view.axes, view.voxels, view.spacing, strict=True):
            where = np.flatnonzero(classes.any(axis=tuple(a for a in range(3) if a != axis)))
            if len(where):
                # Twice the distance from the centre, because slices are cropped around it.
                furthest = 2 * max(abs(float(w) - (voxels - 1) / 2) + 0.5 for w in (where[0], where[-1]))
                reach = max(reach, furthest * side / view.unit(known=known))
    unit = "mm" if known else "of the longer side"
    wanted = max(_MARGIN * reach, _LEAST_VIEW * usual) if reach else usual
    if not reach:
        return (
            largest,
            f"the whole field of view of up to {largest:.3g} {unit}, no label being there to say what matters",
        )
    words = (
        f"the labels of {len(cases)} volumes reach over {reach:.3g} {unit} around the centre; slices show "
        f"{min(wanted, largest):.3g} {unit} (a margin of {_MARGIN - 1:.0%}, at least {_LEAST_VIEW:.0%} of the usual "
        f"field of view, at most all of it)"
    )
    return min(wanted, largest), words


def _pixels(needed: float, spacing: float, fit: int, *, known: bool, views: Sequence[_View]) -> float:
    if spacing:
        longer = float(np.median([view.longer for view in views]))
        return (needed if known else needed * longer) / spacing
    share = needed if not known else needed / float(np.median([view.longer for view in views]))
    return share * fit
