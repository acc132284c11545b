"""Draw volumes with mask overlays in radiological orientation."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from numpy.typing import NDArray

from contrastive_core.app.report.figures import INK, MUTED, new_figure
from ssl_medseg.datasets.dataset import DataSet
from ssl_medseg.evaluation.cases import read_pair
from ssl_medseg.evaluation.results import CaseScores, Evaluation
from ssl_medseg.evaluation.summary import case_dice
from ssl_medseg.evaluation.text import number
from ssl_medseg.io import Volume, read_volume
from ssl_medseg.preprocessing.prepare import display_axis, raise_padding

VALIDATION = "validation"
"""Folder of a run for the pictures that training draws of a validation case."""
_ENDS = (("L", "R"), ("P", "A"), ("I", "S"))  # at the lower and the upper end of each RAS+ axis
_PLANES = ("sagittal", "coronal", "axial")
# Plane -> directions of the picture's right and lower edges: the patient's right is on the left of the picture.
_SHOWN = {
    "axial": (np.array([-1.0, 0, 0]), np.array([0, -1.0, 0])),
    "coronal": (np.array([-1.0, 0, 0]), np.array([0, 0, -1.0])),
    "sagittal": (np.array([0, -1.0, 0]), np.array([0, 0, -1.0])),
}
_SHARE = 0.35  # smallest component of a direction that gets a letter


@dataclass(frozen=True)
class View:
    """Orientation in which the slices of a volume are displayed, following radiological convention.

    Attributes:
        axis: Array axis across which slices are taken.
        plane: Standard plane closest to the slices; empty if the orientation is unknown.
        transpose: Whether the second of the two remaining axes runs to the right (otherwise the first one does).
        flip_rows: Whether the order of the rows is reversed.
        flip_columns: Whether the order of the columns is reversed.
        spacing: Height and width of a pixel.
        edges: Letters at the left, right, top and bottom edge (R, L, A, P, S, I: the patient's right, left, anterior,
            posterior, superior, inferior); empty if the orientation is unknown.
        start: Position of the first slice along its normal, in mm towards the patient's right, front or head.
        step: Signed distance to the next slice, in the same direction.
    """

    axis: int
    plane: str
    transpose: bool
    flip_rows: bool
    flip_columns: bool
    spacing: tuple[float, float]
    edges: tuple[str, str, str, str]
    start: float = 0.0
    step: float = 0.0

    def title(self, index: int) -> str:
        """Return a title such as ``slice 8, S 12 mm``; without the position if the orientation is unknown."""
        if not self.plane:
            return f"slice {index + 1}"
        position = round(self.start + index * self.step)
        return f"slice {index + 1}, {_ENDS[_PLANES.index(self.plane)][int(position > 0)]} {abs(position)} mm"

    def slice(self, volume: NDArray[Any], index: int) -> NDArray[Any]:
        """Return one slice as a picture, with rows downwards and columns to the right."""
        picture: NDArray[Any] = np.take(volume, index, axis=self.axis)
        picture = picture if self.transpose else picture.T
        picture = picture[::-1] if self.flip_rows else picture
        return picture[:, ::-1] if self.flip_columns else picture


def view(affine: NDArray[np.float64], axis: int, *, known: bool = True) -> View:
    """Determine how to display the slices of a volume.

    The in-plane axis closest to the patient's horizontal becomes the horizontal of the picture. Nothing is resampled:
    oblique slices are shown as acquired, and the letters name the directions closest to their edges.

    Args:
        affine: ``[4, 4]``, voxels to mm, RAS+.
        axis: Array axis across which slices are taken.
        known: Whether the affine is meaningful; if not, slices are shown as stored, without letters.
    """
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    first, second = (a for a in range(3) if a != axis)
    if not known:
        return View(axis, "", False, False, False, (float(lengths[second]), float(lengths[first])), ("", "", "", ""))
    directions = affine[:3, :3] / lengths
    plane = _PLANES[int(np.argmax(np.abs(directions[:, axis])))]
    normal = directions[:, axis] * np.sign(directions[_PLANES.index(plane), axis])
    right, down = _SHOWN[plane]
    a, b = directions[:, first], directions[:, second]
    transpose = bool(abs(a @ down) + abs(b @ right) > abs(a @ right) + abs(b @ down))
    across, along = (b, a) if transpose else (a, b)
    flip_columns, flip_rows = bool(across @ right < 0), bool(along @ down < 0)
    across, along = across * (-1 if flip_columns else 1), along * (-1 if flip_rows else 1)
    height, width = (first, second) if transpose else (second, first)
    return View(
        axis,
        plane,
        transpose,
        flip_rows,
        flip_columns,
        (float(lengths[height]), float(lengths[width])),
        (
            _edge_letters(-across),
            _edge_letters(across),
            _edge_letters(-along),
            _edge_letters(along),
        ),
        start=float(normal @ affine[:3, 3]),
        step=float(normal @ affine[:3, axis]),
    )


def _edge_letters(direction: NDArray[np.float64]) -> str:
    """Name the anatomical directions that dominate a vector, the strongest first."""
    order = sorted(range(3), key=lambda axis: -abs(direction[axis]))
    return "".join(_ENDS[axis][int(direction[axis] > 0)] for axis in order if abs(direction[axis]) > _SHARE)


#: Colours of the structures on grey images; the first eight are distinguishable with colour blindness.
COLOURS = (
    "#ff5a4d", "#35c2ff", "#ffd83d", "#5fe08a", "#c98bff", "#ff9ad5", "#4f7dff", "#b0e000",
    "#2424ff", "#8c733f", "#ff00ff", "#a30052", "#1c8c7a", "#ff8a1f", "#00ff00", "#00ffff",
)  # fmt: skip
_LINES: tuple[Literal["solid", "dashed", "dotted"], ...] = ("solid", "dashed", "dotted")
"""Outlines of the structures that have the same colour because there are more structures than colours."""

_TRACE = "#ffffff"
_MARGIN = 0.35  # margin around the structures, relative to their extent
_LEAST = 0.25  # smallest displayed region, relative to the shorter side of the slice
_LINE_HEIGHT = 0.17  # inches of a line in the legend
_NAME_WIDTH = 22  # characters of a line in the legend, which has the width of a slice
_COLUMN_WIDTH = 2.1  # inches of a column of the legend
_WINDOW = (1.0, 99.5)  # percentiles of the displayed region that become black and white


@dataclass(frozen=True)
class Sheet:
    """Content of a sheet: a grid of slices with rows of images and masks.

    Attributes:
        title: Title above the sheet.
        subtitle: Line of text below the sheet.
        images: Row name -> image ``[X, Y, Z]``; one row per channel.
        masks: Row name -> classes ``[X, Y, Z]``. The first mask is also drawn on the others, as white outlines. If
            empty, only the images are shown.
        structures: Names of the classes, starting with class 1.
        view: Orientation of the slices.
    """

    title: str
    subtitle: str
    images: Mapping[str, NDArray[Any]]
    masks: Mapping[str, NDArray[np.uint8]]
    structures: Sequence[str]
    view: View


def sheet_figure(sheet: Sheet, *, slices: int = 6) -> Figure:
    """Draw a sheet: an overview slice that marks the displayed region, then the slices, images above masks.

    Slices are spaced evenly over those that contain a structure in any mask, or over the volume if none does.
    """
    view = sheet.view
    first = next(iter(sheet.images.values()))
    union = np.zeros(first.shape, dtype=bool)
    for mask in sheet.masks.values():
        union |= mask > 0
    indices = choose_slices(union, view.axis, slices)
    anywhere = np.asarray(union.any(axis=view.axis, keepdims=True))
    box = _box(view.slice(anywhere, 0), view.spacing)
    windows = {name: _window(image, view, indices, box) for name, image in sheet.images.items()}
    names = [*sheet.images, *sheet.masks]
    height, width = _size(view.slice(first, indices[0])[box].shape, view)
    inches = 1.6 * width * (len(indices) + 1) + 0.4
    legend, panels = _legend(sheet) if union.any() and len(names) > 1 else [], 1.6 * height * len(names)
    # The legend is below the overview, beside the other rows, or below all of them if it needs more room.
    columns, below = 1, 0.0
    if _legend_height(legend, 1) > panels - 1.6 * height:
        columns, below = _legend_columns(legend, width=inches, height=panels)
    inches = max(inches, _COLUMN_WIDTH * columns)
    title, subtitle = textwrap.wrap(sheet.title, round(10 * inches)), textwrap.wrap(sheet.subtitle, round(14 * inches))
    figure = new_figure(inches, panels + below + 0.6 + 0.15 * (len(title) + len(subtitle)))
    figure.set_layout_engine("constrained", w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)
    figure.suptitle("\n".join(title), x=0.01, ha="left", fontsize=11, fontweight="bold", color=INK)
    ratios = [*[1.6 * height] * len(names), *[below] * bool(below)]
    grid = figure.subplots(len(ratios), len(indices) + 1, squeeze=False, height_ratios=ratios)
    middle = indices[len(indices) // 2]
    window = next(iter(windows.values()))
    _overview(grid[0, 0], view.slice(first, middle), box, window, view)
    for axes in (*grid[1:, 0], *grid[len(names) :, 1:].flat):
        axes.remove()
    if legend:
        whole = grid[0, 0].get_gridspec()
        place = figure.add_subplot(whole[len(names) :, :] if below else whole[1:, 0])
        place.set_axis_off()
        place.legend(handles=legend, loc="center", ncols=columns, frameon=False, fontsize=8, labelcolor=INK)
    traced = next(iter(sheet.masks), None)
    for column, index in enumerate(indices, 1):
        for row, name in enumerate(names):
            axes = grid[row, column]
            volume = sheet.images.get(name, first)
            _picture(axes, view.slice(volume, index)[box], windows.get(name, window))
            if row == 0:
                axes.set_title(view.title(index), fontsize=8, color=MUTED, pad=3)
            if name in sheet.masks:
                _draw(axes, view.slice(sheet.masks[name], index)[box], len(sheet.structures))
            if name in sheet.masks and traced != name and traced is not None:
                _trace(axes, view.slice(sheet.masks[traced], index)[box], len(sheet.structures))
            shape = view.slice(first, index)[box].shape
            axes.set_xlim(-0.5, shape[1] - 0.5)  # outlines extend beyond the picture
            axes.set_ylim(shape[0] - 0.5, -0.5)
            if column == 1:
                axes.set_ylabel(name, fontsize=9, color=INK)
    _letters(grid[0, 1], view)
    figure.supxlabel("\n".join(subtitle), x=0.01, ha="left", fontsize=8.5, color=MUTED)
    return figure


def _window(image: NDArray[Any], view: View, indices: Sequence[int], box: tuple[slice, slice]) -> dict[str, Any]:
    """Return the arguments of `imshow`: the window spans percentiles of the displayed region without padding of CT."""
    region, _ = raise_padding(np.stack([view.slice(image, index)[box] for index in indices]).astype(np.float64))
    low, high = np.percentile(region, _WINDOW)
    return {"cmap": "gray", "vmin": low, "vmax": max(high, low + 1e-9), "aspect": view.spacing[0] / view.spacing[1]}


def choose_slices(inside: NDArray[np.bool_], axis: int, count: int) -> list[int]:
    """Choose `count` slices, spaced evenly over those with a voxel inside, or over all if there are none."""
    others = tuple(a for a in range(inside.ndim) if a != axis)
    indices = np.flatnonzero(inside.any(axis=others))
    indices = indices if len(indices) else np.arange(inside.shape[axis])
    picks = np.linspace(0, len(indices) - 1, min(count, len(indices))).round().astype(int)
    return [int(indices[i]) for i in picks]


def _box(inside: NDArray[np.bool_], spacing: tuple[float, float]) -> tuple[slice, slice]:
    """Return the rows and columns that enclose the voxels inside, with a margin, as square in mm as possible."""
    if not inside.any():
        return slice(0, inside.shape[0]), slice(0, inside.shape[1])
    ends = [np.flatnonzero(inside.any(axis=1 - axis))[[0, -1]] for axis in (0, 1)]
    extents = [(end[1] - end[0] + 1) * length for end, length in zip(ends, spacing, strict=True)]
    least = _LEAST * min(n * length for n, length in zip(inside.shape, spacing, strict=True))
    side = max(least, max(extents) * (1 + 2 * _MARGIN))
    box = []
    for n, end, length in zip(inside.shape, ends, spacing, strict=True):
        pixels = min(n, round(side / length))
        start = int(np.clip(round((end[0] + end[1] + 1 - pixels) / 2), 0, n - pixels))
        box.append(slice(start, start + pixels))
    return box[0], box[1]


def _size(shape: tuple[int, ...], view: View) -> tuple[float, float]:
    """Return the height and width of a picture, scaled so that the longer one is 1."""
    mm = np.array(shape[:2]) * np.array(view.spacing)
    height, width = mm / mm.max()
    return float(height), float(width)


def _picture(axes: Axes, pixels: NDArray[Any], window: Mapping[str, Any]) -> None:
    axes.imshow(pixels, interpolation="nearest", **window)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _draw(axes: Axes, classes: NDArray[np.uint8], structures: int) -> None:
    """Draw each structure as an outline with a translucent fill."""
    for k in range(1, structures + 1):
        inside = classes == k
        if not inside.any():
            continue
        colour, line = _style(k)
        fill = np.zeros((*inside.shape, 4))
        fill[inside] = to_rgba(colour, 0.28)
        aspect = axes.get_aspect()
        axes.imshow(fill, interpolation="nearest", aspect=aspect)
        _outline(axes, inside, colour, 1.1, line)


def _style(k: int) -> tuple[str, Literal["solid", "dashed", "dotted"]]:
    """Return colour and outline of structure k, counted from 1."""
    lap, place = divmod(k - 1, len(COLOURS))
    return COLOURS[place], _LINES[lap % len(_LINES)]


def _trace(axes: Axes, classes: NDArray[np.uint8], structures: int) -> None:
    """Draw each structure as a thin white outline, for comparison with a mask."""
    for k in range(1, structures + 1):
        if (classes == k).any():
            _outline(axes, classes == k, _TRACE, 0.7)


def _outline(axes: Axes, inside: NDArray[np.bool_], colour: str, width: float, line: str = "solid") -> None:
    padded = np.pad(inside, 1).astype(np.float64)  # so that outlines close at the edge of the picture
    rows, columns = np.arange(-1, inside.shape[0] + 1), np.arange(-1, inside.shape[1] + 1)
    axes.contour(columns, rows, padded, levels=[0.5], colors=[colour], linewidths=width, linestyles=line)


def _overview(
    axes: Axes, pixels: NDArray[Any], box: tuple[slice, slice], window: Mapping[str, Any], view: View
) -> None:
    _picture(axes, pixels, window)
    rows, columns = box
    axes.add_patch(
        Rectangle(
            (columns.start - 0.5, rows.start - 0.5), columns.stop - columns.start, rows.stop - rows.start,
            fill=False, edgecolor="#ffffff", linewidth=0.9,
        )
    )  # fmt: skip
    axes.set_title(f"{view.plane}, whole slice" if view.plane else "whole slice", fontsize=8, color=MUTED, pad=3)
    _letters(axes, view)


def _letters(axes: Axes, view: View) -> None:
    """Label the edges with the patient's directions."""
    left, right, top, bottom = view.edges
    for x, y, text, ha, va in (
        (0.03, 0.5, left, "left", "center"), (0.97, 0.5, right, "right", "center"),
        (0.5, 0.97, top, "center", "top"), (0.5, 0.03, bottom, "center", "bottom"),
    ):  # fmt: skip
        axes.text(
            x, y, text, transform=axes.transAxes, ha=ha, va=va, fontsize=8, fontweight="bold", color="#ffffff",
            bbox={"facecolor": "#000000", "alpha": 0.45, "pad": 1.0, "linewidth": 0},
        )  # fmt: skip


def _legend(sheet: Sheet) -> list[Patch]:
    """Return the entries of the legend."""
    handles = []
    for k, name in enumerate(sheet.structures, start=1):
        colour, line = _style(k)
        label = textwrap.fill(name, _NAME_WIDTH)
        handles.append(Patch(facecolor=to_rgba(colour, 0.5), edgecolor=colour, linestyle=line, label=label))
    if len(sheet.masks) > 1:
        handles.append(Patch(facecolor="none", edgecolor=MUTED, label=f"white line: {next(iter(sheet.masks))}"))
    return handles


def _legend_columns(legend: Sequence[Patch], *, width: float, height: float) -> tuple[int, float]:
    """Return how many columns a legend has in a width, more if it were higher than a height, and its height."""
    columns = max(1, min(len(legend), int(width / _COLUMN_WIDTH)))
    while _legend_height(legend, columns) > height and columns < len(legend):
        columns += 1
    return columns, _legend_height(legend, columns)


def _legend_height(legend: Sequence[Patch], columns: int) -> float:
    """Return the height of a legend in inches; matplotlib fills column after column with as many entries."""
    lines = [str(patch.get_label()).count("\n") + 1 for patch in legend]
    return _LINE_HEIGHT * max(int(part.sum()) for part in np.array_split(lines, columns)) + 0.2


def choose(evaluation: Evaluation) -> dict[str, CaseScores]:
    """Choose the ``best``, ``median`` and ``worst`` case by mean Dice; fewer if there are fewer than three cases."""
    ranked = [(dice, case) for case in evaluation.judged if (dice := case_dice(case)) is not None]
    ranked.sort(key=lambda pair: (-pair[0], pair[1].case))
    picks = {"best": 0, "worst": len(ranked) - 1}
    if len(ranked) > 2:
        picks = {"best": 0, "median": len(ranked) // 2, "worst": len(ranked) - 1}
    cases: dict[str, CaseScores] = {}
    for name, place in picks.items():
        if ranked and ranked[place][1] not in cases.values():
            cases[name] = ranked[place][1]
    return cases


def case_sheets(evaluation: Evaluation, dataset: DataSet, folder: Path) -> Iterator[tuple[str, Figure]]:
    """Draw a sheet for each case that `choose` returns.

    Args:
        evaluation: Evaluation, which lists the mask files.
        dataset: Data set with the images and reference labels.
        folder: Folder that the paths of the mask files are relative to.

    Yields:
        ``best``, ``median`` or ``worst``, and the figure.
    """
    cases = choose(evaluation)
    for rank, scores in cases.items():
        case = dataset.case(scores.case)
        prediction, truth, grid = read_pair(folder / scores.mask, case, dataset)
        volume = read_volume(case.image)
        sheet = Sheet(
            title=f"{rank.capitalize()} case: {scores.title}" if len(cases) > 1 else scores.title,
            subtitle=describe_scores(scores, evaluation),
            images=volume.channels if volume.others else {"image": volume.array},
            masks={"truth": truth, "predicted": prediction},
            structures=evaluation.structures,
            view=view(grid.affine, display_axis(grid), known=grid.place_known),
        )
        yield rank, sheet_figure(sheet)


def describe_scores(scores: CaseScores, evaluation: Evaluation) -> str:
    """Describe the scores of a case, such as ``LV: Dice 0.912, HD95 4.2 mm; RV: missed``."""
    parts = []
    for score in scores.structures:
        if score.found == "both":
            distance = f"HD95 {number('hd95', score.hd95)} {evaluation.unit}"
            parts.append(f"{score.structure}: Dice {number('dice', score.dice)}, {distance}")
        elif score.found != "neither":
            parts.append(f"{score.structure}: {'missed' if score.found == 'truth only' else 'false positive'}")
    return "; ".join(parts)


def mask_sheet(
    volume: Volume, classes: NDArray[np.uint8], *, name: str, structures: Sequence[str], slices: int = 8
) -> Figure:
    """Draw slices of a volume, with the mask overlaid in the row below.

    Args:
        volume: Image.
        classes: Predicted classes ``[X, Y, Z]``; 0 is the background.
        name: Name of the image.
        structures: Names of the classes, starting with class 1.
        slices: Number of slices.
    """
    grid = volume.grid
    amounts = [f"{s}: {_amount(int((classes == k).sum()), volume)}" for k, s in enumerate(structures, 1)]
    sheet = Sheet(
        title=name,
        subtitle="; ".join(amounts),
        images=volume.channels if volume.others else {"image": volume.array},
        masks={"predicted": classes},
        structures=structures,
        view=view(grid.affine, display_axis(grid), known=grid.place_known),
    )
    return sheet_figure(sheet, slices=slices)


def _amount(voxels: int, volume: Volume) -> str:
    each = volume.grid.millilitres
    return f"{voxels:,} voxels" if each is None else f"{voxels * each:.1f} mL"
