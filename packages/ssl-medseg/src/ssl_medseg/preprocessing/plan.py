"""Derive the preprocessing from a data set, with a reason for every decision."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from contrastive_core.errors import UserError
from ssl_medseg.datasets.dataset import Case, DataSet
from ssl_medseg.io import Grid, read_grid, read_label
from ssl_medseg.preprocessing.geometry import axis_letters, place_of_letter, slice_axis, slice_geometry
from ssl_medseg.preprocessing.settings import MULTIPLE, Preprocessing

_MARGIN = 1.2
_LEAST_VIEW = 0.6
"""Share of the usual field of view that slices show at least: a few labels do not tell how far off a heart can lie."""


@dataclass(frozen=True)
class PreprocessingOptions:
    """What of the preprocessing is given; the rest is derived from the data.

    Args:
        spacing: Pixels are resampled to this many mm; 0: the median of the data.
        size: Height and width of the slices in pixels, a multiple of 32; 0: enough for all labelled voxels.
        fit: For images of unknown spacing: the longer side of the image becomes this many pixels; 0: derived.
        slice_axis: Axis of the files that slices are counted along; auto takes the one with the largest spacing.
        orientation: Turn images that are stored in another direction than most (auto), or take all as stored.
        low: Percentile of a volume's intensities that becomes 0.
        high: Percentile of a volume's intensities that becomes 1.
        antialias: Smooth an image before its pixels are made larger.
        n4: Correct the bias field with N4 (extra "simpleitk").
        n4_shrink: Estimate that field on every n-th voxel.
        fill_nan: Fill voxels that are no numbers with the smallest value of the image instead of refusing it.
    """

    spacing: float = 0.0
    size: int = 0
    fit: int = 0
    slice_axis: Literal["auto", "0", "1", "2"] = "auto"
    orientation: Literal["auto", "stored"] = "auto"
    low: float = 1.0
    high: float = 99.0
    antialias: bool = True
    n4: bool = False
    n4_shrink: int = 4
    fill_nan: bool = False

    def __post_init__(self) -> None:
        if self.spacing < 0 or self.fit < 0 or self.size < 0 or self.size % MULTIPLE:
            raise UserError(
                f"preprocessing got spacing {self.spacing:g}, fit {self.fit}, size {self.size}; expected none below 0, "
                f"and a size that {MULTIPLE} divides"
            )
        if self.spacing and self.fit:
            raise UserError(
                "preprocessing got both spacing and fit; expected one: fit is for images of unknown spacing"
            )


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
        dataset: the data set.
        names: cases whose images are looked at: those of training.
        labelled: cases whose labels may be opened; the structures' extent decides how much of the image is needed.
        options: what is given.
        grids: by case, where the caller has read them already.

    Returns:
        The settings, and one sentence per decision.

    Raises:
        UserError: no cases, or one that cannot be read.
    """
    options = options or PreprocessingOptions()
    cases = dataset.select(names)
    if not cases:
        raise UserError(f"{dataset.name}: no cases to derive the preprocessing from")
    grids = {case.name: (grids or {}).get(case.name) or read_grid(case.image) for case in cases}
    axis = None if options.slice_axis == "auto" else int(options.slice_axis)
    reasons = [_slice_words(list(grids.values()), axis)]
    views = [_View.of(grid, axis) for grid in grids.values()]
    known = any(grid.spacing_known for grid in grids.values())
    unit = "mm" if known else "of the longer side"
    needed, why = _needed(dataset, dataset.select(labelled), views, known=known, axis=axis)
    reasons.append(why)

    spacing, fit = options.spacing, options.fit
    if known and not spacing and not fit:
        spacing = round(float(np.median([side for view in views for side in view.spacing])), 4)
        if options.size and needed > spacing * options.size:
            spacing = needed / options.size
            reasons.append(f"pixels of {spacing:.4g} mm, so that {options.size} of them show that much")
        else:
            reasons.append(f"pixels of {spacing:.4g} mm, the median of {len(views)} volumes")
    elif not known and not fit and not spacing:
        fit = round(options.size / needed) if options.size else round(float(np.median([max(v.voxels) for v in views])))
        reasons.append(
            "no file says the size of its voxels (all affines are the identity), so the longer side of every image is "
            f"scaled to {fit} pixels"
        )
    size = options.size or MULTIPLE * max(
        1, math.ceil(_pixels(needed, spacing, fit, known=known, views=views) / MULTIPLE)
    )
    given = "as given" if options.size else f"the multiple of {MULTIPLE} that shows {needed:.3g} {unit}"
    reasons.append(f"slices of {size} x {size} pixels, {given}")
    letters, why = _orientation(list(grids.values()), options, known=known)
    reasons.append(why)
    chosen = Preprocessing(
        size=(size, size),
        spacing=(spacing, spacing) if spacing else None,
        fit=fit,
        slice_axis=axis,
        orientation=letters,
        percentiles=(options.low, options.high),
        antialias=options.antialias,
        n4=options.n4,
        n4_shrink=options.n4_shrink,
        fill_nan=options.fill_nan,
        **_usual(grids.values(), axis, letters),
    )
    return chosen, reasons


@dataclass(frozen=True)
class _View:
    """A slice of a volume: voxels and their spacing, down and right."""

    voxels: tuple[int, int]
    spacing: tuple[float, float]
    axes: tuple[int, int]

    @classmethod
    def of(cls, grid: Grid, along: int | None) -> _View:
        chosen = slice_axis(grid) if along is None else along
        first, second = (axis for axis in range(3) if axis != chosen)
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


def _usual(grids: Iterable[Grid], axis: int | None, orientation: str) -> dict[str, Any]:
    """How the slices of most images lie and are spaced, once turned."""
    plain = Preprocessing(size=(MULTIPLE, MULTIPLE), slice_axis=axis, orientation=orientation)
    axes: Counter[int] = Counter()
    spacings = []
    for grid in grids:
        along, down, right = slice_geometry(grid, plain)[0].axes
        letters = axis_letters(grid.affine) if orientation else ""
        axes[place_of_letter(letters[along], orientation) if letters else along] += 1
        spacings.append((grid.spacing[down], grid.spacing[right]))
    first, second = np.median(spacings, axis=0)
    return {"usual_axis": axes.most_common(1)[0][0], "usual_spacing": (round(float(first), 4), round(float(second), 4))}


def _needed(
    dataset: DataSet, cases: Sequence[Case], views: Sequence[_View], *, known: bool, axis: int | None
) -> tuple[float, str]:
    """Side of the square that slices should show, in mm or in longer sides, and why."""
    views_in_units = [view.longer / view.unit(known=known) for view in views]
    usual, largest = float(np.median(views_in_units)), max(views_in_units)
    reach = 0.0
    for case in cases:
        if case.label is None:
            raise UserError(f"{dataset.name}: case {case.name} has no label, but is named as labelled")
        classes, affine = read_label(case.label, dataset.labels)
        x, y, z = classes.shape
        view = _View.of(Grid((x, y, z), affine), axis)
        for axis_, voxels, side in zip(view.axes, view.voxels, view.spacing, strict=True):
            where = np.flatnonzero(classes.any(axis=tuple(a for a in range(3) if a != axis_)))
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


def _slice_words(grids: Sequence[Grid], axis: int | None) -> str:
    if axis is not None:
        return f"slices along axis {axis}, as given"
    found = Counter(slice_axis(grid) for grid in grids)
    words = ", ".join(f"axis {axis} in {count} of {len(grids)} volumes" for axis, count in sorted(found.items()))
    steps = sorted(grid.spacing[slice_axis(grid)] for grid in grids)
    return f"slices along the axis of largest spacing ({words}; {steps[0]:.3g} to {steps[-1]:.3g} mm), kept as they are"


def _orientation(grids: Sequence[Grid], options: PreprocessingOptions, *, known: bool) -> tuple[str, str]:
    if options.orientation == "stored":
        return "", "images are taken in the direction they are stored in, as given"
    letters = Counter(axis_letters(grid.affine) for grid in grids)
    if not known or "" in letters:
        what = "the affines say nothing about sides" if not known else f"{letters['']} volumes are oblique by over 30°"
        return "", f"images are taken in the direction they are stored in: {what}"
    most, count = letters.most_common(1)[0]
    return most, f"{count} of {len(grids)} volumes are stored in the direction {most}; any that is not is turned to it"
