"""Pictures of volumes with masks, in radiological orientation: one case, or the cases of an evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from ssl_medseg.preprocessing.prepare import display_axis

_ENDS = (("L", "R"), ("P", "A"), ("I", "S"))  # at smaller and greater coordinates, RAS+
_PLANES = ("sagittal", "coronal", "axial")
# Plane -> where the picture's right and lower edges look: the patient's right is on the left of the picture.
_SHOWN = {
    "axial": (np.array([-1.0, 0, 0]), np.array([0, -1.0, 0])),
    "coronal": (np.array([-1.0, 0, 0]), np.array([0, 0, -1.0])),
    "sagittal": (np.array([0, -1.0, 0]), np.array([0, 0, -1.0])),
}
_SHARE = 0.35  # of a direction that is worth a letter


@dataclass(frozen=True)
class View:
    """Slices of a volume as a radiologist expects them.

    Attributes:
        axis: that slices are counted along.
        plane: the standard plane nearest to the slices; empty where directions are unknown.
        transpose: whether the second of the two remaining axes runs to the right (else the first one does).
        flip_rows: whether rows are turned upside down.
        flip_columns: whether columns are mirrored.
        spacing: height and width of a pixel.
        edges: letters at the left, right, top and bottom edge, of the patient's right, left, anterior, posterior,
            superior and inferior; empty where directions are unknown.
        start: Position of the first slice along its normal, in mm towards the patient's right, front or head.
        step: Distance to the next slice, likewise.
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
        """``slice 8``, with its position such as ``S 12 mm`` where that is known."""
        if not self.plane:
            return f"slice {index + 1}"
        position = round(self.start + index * self.step)
        return f"slice {index + 1}, {_ENDS[_PLANES.index(self.plane)][int(position > 0)]} {abs(position)} mm"

    def slice(self, volume: NDArray[Any], index: int) -> NDArray[Any]:
        """One slice, rows downwards and columns to the right."""
        picture: NDArray[Any] = np.take(volume, index, axis=self.axis)
        picture = picture if self.transpose else picture.T
        picture = picture[::-1] if self.flip_rows else picture
        return picture[:, ::-1] if self.flip_columns else picture


def view(affine: NDArray[np.float64], axis: int, *, known: bool = True) -> View:
    """The view of a volume's slices.

    The in-plane axis nearest to the wanted direction becomes the picture's horizontal; nothing is resampled, so that
    oblique slices stay as they were taken, and the letters say what their edges are nearest to.

    Args:
        affine: ``[4, 4]``, voxels to mm, RAS+.
        axis: that slices are counted along.
        known: whether the affine says anything; if not, slices are shown as they are stored, without letters.
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
    """The directions that this one mostly is, the nearest first."""
    order = sorted(range(3), key=lambda axis: -abs(direction[axis]))
    return "".join(_ENDS[axis][int(direction[axis] > 0)] for axis in order if abs(direction[axis]) > _SHARE)


#: Of structures on grey images, told apart by people with colour-blindness too.
COLOURS = ("#ff5a4d", "#35c2ff", "#ffd83d", "#5fe08a", "#c98bff", "#ff9ad5", "#ffffff", "#b0e000")

_TRACE = "#ffffff"
_MARGIN = 0.35  # of the structures' extent, shown around them
_LEAST = 0.25  # of the slice's side is shown at least
_WINDOW = (1.0, 99.5)  # percentiles of what is shown that become black and white


@dataclass(frozen=True)
class Sheet:
    """What a sheet shows.

    Attributes:
        title: above it.
        subtitle: beneath the title.
        images: name of the row -> ``[X, Y, Z]``, of several channels each.
        masks: name of the row -> classes ``[X, Y, Z]``; the outlines of the first mask are drawn on the others too, in
            white. None: the image alone is shown.
        structures: names of the classes from 1.
        view: how slices are turned.
    """

    title: str
    subtitle: str
    images: Mapping[str, NDArray[Any]]
    masks: Mapping[str, NDArray[np.uint8]]
    structures: Sequence[str]
    view: View


def sheet_figure(sheet: Sheet, *, slices: int = 6) -> Figure:
    """The sheet: on the left a whole slice with the part that is shown, then the slices, images above masks.

    Slices are spread evenly over those with a structure in any of the masks; with none, over the volume.
    """
    view = sheet.view
    first = next(iter(sheet.images.values()))
    together = np.zeros(first.shape, dtype=bool)
    for mask in sheet.masks.values():
        together |= mask > 0
    chosen = choose_slices(together, view.axis, slices)
    anywhere = np.asarray(together.any(axis=view.axis, keepdims=True))
    box = _box(view.slice(anywhere, 0), view.spacing)
    windows = {name: _window(image, view, chosen, box) for name, image in sheet.images.items()}
    names = [*sheet.images, *sheet.masks]
    height, width = _size(view.slice(first, chosen[0])[box].shape, view)
    figure = new_figure(1.6 * width * (len(chosen) + 1) + 0.4, 1.6 * height * len(names) + 0.9)
    figure.set_layout_engine("constrained", w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)
    figure.suptitle(sheet.title, x=0.01, ha="left", fontsize=11, fontweight="bold", color=INK)
    grid = figure.subplots(len(names), len(chosen) + 1, squeeze=False)
    middle = chosen[len(chosen) // 2]
    window = next(iter(windows.values()))
    _overview(grid[0, 0], view.slice(first, middle), box, window, view)
    for axes in grid[1:, 0]:
        axes.set_axis_off()
    _legend(grid[-1, 0] if len(names) > 1 else None, sheet, together)
    traced = next(iter(sheet.masks), None)
    for column, index in enumerate(chosen, 1):
        for row, name in enumerate(names):
            axes = grid[row, column]
            shown = sheet.images.get(name, first)
            _picture(axes, view.slice(shown, index)[box], windows.get(name, window))
            if row == 0:
                axes.set_title(view.title(index), fontsize=8, color=MUTED, pad=3)
            if name in sheet.masks:
                _draw(axes, view.slice(sheet.masks[name], index)[box], len(sheet.structures))
            if name in sheet.masks and traced != name and traced is not None:
                _trace(axes, view.slice(sheet.masks[traced], index)[box], len(sheet.structures))
            shape = view.slice(first, index)[box].shape
            axes.set_xlim(-0.5, shape[1] - 0.5)  # outlines reach beyond it
            axes.set_ylim(shape[0] - 0.5, -0.5)
            if column == 1:
                axes.set_ylabel(name, fontsize=9, color=INK)
    _letters(grid[0, 1], view)
    figure.supxlabel(sheet.subtitle, x=0.01, ha="left", fontsize=8.5, color=MUTED)
    return figure


def _window(image: NDArray[Any], view: View, chosen: Sequence[int], box: tuple[slice, slice]) -> dict[str, Any]:
    """How the grey values of an image are drawn: by the percentiles of what is shown of it."""
    shown = np.stack([view.slice(image, index)[box] for index in chosen]).astype(np.float64)
    low, high = np.percentile(shown, _WINDOW)
    return {"cmap": "gray", "vmin": low, "vmax": max(high, low + 1e-9), "aspect": view.spacing[0] / view.spacing[1]}


def choose_slices(inside: NDArray[np.bool_], axis: int, count: int) -> list[int]:
    """So many slices, evenly over those that hold something; over all if none does."""
    others = tuple(a for a in range(inside.ndim) if a != axis)
    held = np.flatnonzero(inside.any(axis=others))
    held = held if len(held) else np.arange(inside.shape[axis])
    picks = np.linspace(0, len(held) - 1, min(count, len(held))).round().astype(int)
    return [int(held[i]) for i in picks]


def _box(inside: NDArray[np.bool_], spacing: tuple[float, float]) -> tuple[slice, slice]:
    """Rows and columns around what is inside, a margin about it, as near to a square in mm as the slice allows."""
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
    """Height and width of a picture, the longer one being 1."""
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
    """Every structure as an outline with a faint fill."""
    for k in range(1, structures + 1):
        inside = classes == k
        if not inside.any():
            continue
        colour = COLOURS[(k - 1) % len(COLOURS)]
        fill = np.zeros((*inside.shape, 4))
        fill[inside] = to_rgba(colour, 0.28)
        aspect = axes.get_aspect()
        axes.imshow(fill, interpolation="nearest", aspect=aspect)
        _outline(axes, inside, colour, 1.1)


def _trace(axes: Axes, classes: NDArray[np.uint8], structures: int) -> None:
    """Thin white outlines, to compare a mask with."""
    for k in range(1, structures + 1):
        if (classes == k).any():
            _outline(axes, classes == k, _TRACE, 0.7)


def _outline(axes: Axes, inside: NDArray[np.bool_], colour: str, width: float) -> None:
    padded = np.pad(inside, 1).astype(np.float64)  # so that outlines close at the edge of the picture
    rows, columns = np.arange(-1, inside.shape[0] + 1), np.arange(-1, inside.shape[1] + 1)
    axes.contour(columns, rows, padded, levels=[0.5], colors=[colour], linewidths=width)


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
    """The patient's directions at the edges."""
    left, right, top, bottom = view.edges
    for x, y, text, ha, va in (
        (0.03, 0.5, left, "left", "center"), (0.97, 0.5, right, "right", "center"),
        (0.5, 0.97, top, "center", "top"), (0.5, 0.03, bottom, "center", "bottom"),
    ):  # fmt: skip
        axes.text(
            x, y, text, transform=axes.transAxes, ha=ha, va=va, fontsize=8, fontweight="bold", color="#ffffff",
            bbox={"facecolor": "#000000", "alpha": 0.45, "pad": 1.0, "linewidth": 0},
        )  # fmt: skip


def _legend(axes: Axes | None, sheet: Sheet, together: NDArray[np.bool_]) -> None:
    if axes is None or not together.any():
        return
    handles = [
        Patch(facecolor=to_rgba(COLOURS[i % len(COLOURS)], 0.5), edgecolor=COLOURS[i % len(COLOURS)], label=name)
        for i, name in enumerate(sheet.structures)
    ]
    if len(sheet.masks) > 1:
        handles.append(Patch(facecolor="none", edgecolor=MUTED, label=f"white line: {next(iter(sheet.masks))}"))
    axes.legend(handles=handles, loc="center", frameon=False, fontsize=8, labelcolor=INK)


def choose(evaluation: Evaluation) -> dict[str, CaseScores]:
    """``best``, ``median`` and ``worst`` by mean Dice; of fewer than three cases those there are."""
    ranked = [(dice, case) for case in evaluation.judged if (dice := case_dice(case)) is not None]
    ranked.sort(key=lambda pair: (-pair[0], pair[1].case))
    picks = {"best": 0, "worst": len(ranked) - 1}
    if len(ranked) > 2:
        picks = {"best": 0, "median": len(ranked) // 2, "worst": len(ranked) - 1}
    chosen: dict[str, CaseScores] = {}
    for name, place in picks.items():
        if ranked and ranked[place][1] not in chosen.values():
            chosen[name] = ranked[place][1]
    return chosen


def case_sheets(evaluation: Evaluation, dataset: DataSet, folder: Path) -> Iterator[tuple[str, Figure]]:
    """A sheet for each of `choose`.

    Args:
        evaluation: with the files of its masks.
        dataset: with images and truth.
        folder: that the files of masks are relative to.
    """
    for which, scores in choose(evaluation).items():
        case = dataset.case(scores.case)
        predicted, truth, grid = read_pair(folder / scores.mask, case, dataset)
        volume = read_volume(case.image)
        sheet = Sheet(
            title=f"{which.capitalize()} case: {scores.case}",
            subtitle=in_words(scores, evaluation),
            images=volume.channels if volume.others else {"image": volume.array},
            masks={"truth": truth, "predicted": predicted},
            structures=evaluation.structures,
            view=view(grid.affine, display_axis(grid), known=grid.place_known),
        )
        yield which, sheet_figure(sheet)


def in_words(scores: CaseScores, evaluation: Evaluation) -> str:
    """``LV: Dice 0.912, HD95 4.2 mm; RV: missed``."""
    parts = []
    for score in scores.structures:
        if score.found == "both":
            distance = f"HD95 {number('hd95', score.hd95)} {evaluation.unit}"
            parts.append(f"{score.structure}: Dice {number('dice', score.dice)}, {distance}")
        elif score.found != "neither":
            parts.append(f"{score.structure}: {'missed' if score.found == 'truth only' else 'found, and is not there'}")
    return "; ".join(parts)


def mask_sheet(
    volume: Volume, classes: NDArray[np.uint8], *, name: str, structures: Sequence[str], slices: int = 8
) -> Figure:
    """Slices of a volume, above as they are, beneath with the mask.

    Args:
        volume: the image.
        classes: ``[X, Y, Z]``, 0 the background.
        name: of the image.
        structures: names of the classes from 1.
        slices: how many are shown.
    """
    grid = volume.grid
    found = [f"{s}: {_amount(int((classes == k).sum()), volume)}" for k, s in enumerate(structures, 1)]
    sheet = Sheet(
        title=name,
        subtitle="; ".join(found),
        images=volume.channels if volume.others else {"image": volume.array},
        masks={"predicted": classes},
        structures=structures,
        view=view(grid.affine, display_axis(grid), known=grid.place_known),
    )
    return sheet_figure(sheet, slices=slices)


def _amount(voxels: int, volume: Volume) -> str:
    each = volume.grid.millilitres
    return f"{voxels:,} voxels" if each is None else f"{voxels * each:.1f} mL"
