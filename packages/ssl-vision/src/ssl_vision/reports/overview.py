"""Overview of a run in one figure: curves above, views and nearest neighbours below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from contrastive_core.app.report.figures import INK, MUTED, draw_training, new_figure
from contrastive_core.app.report.page import to_image
from ssl_vision.reports.figures import accuracy_grid, draw_accuracies, pretraining_panels
from ssl_vision.reports.run_folder import RunFolder
from ssl_vision.reports.sections import title
from ssl_vision.reports.sheets import NeighbourRow, Picture, Sheets, ViewRow


def run_picture(
    run: RunFolder,
    *,
    sheets: Sheets,
    accuracies: Mapping[str, Mapping[float, float]],
    baselines: Mapping[str, float],
) -> Figure:
    """Draw the overview.

    Args:
        run: Run whose curves are drawn.
        sheets: Views and neighbours.
        accuracies: Evaluation -> epoch -> top-1 in percent; may be empty.
        baselines: Evaluation -> top-1 of raw pixels.
    """
    neighbours = sheets.neighbours or []
    rows = max(len(sheets.views), len(neighbours))
    grid_size = accuracy_grid(len(accuracies))
    heights = [2.7] + ([2.8 * grid_size[0]] if accuracies else []) + [0.6 + 0.95 * rows]
    figure = new_figure(13, sum(heights) + 0.5)
    figure.suptitle(title(run.settings), x=0.02, ha="left", fontsize=15, fontweight="bold", color=INK)
    parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    panels = pretraining_panels(run.settings.batch_size, memory=run.settings.memory)
    draw_training(list(parts[0].subplots(1, len(panels))), run.records, panels)
    if accuracies:
        grid = parts[1].subplots(*grid_size, sharey=True, squeeze=False)
        draw_accuracies(list(grid.flat), accuracies, baselines)
    left, right = parts[-1].subfigures(1, 2, wspace=0.04, width_ratios=[1 + 2 * len(sheets.epochs), 6])
    _views(left, sheets.views, sheets.epochs)
    _neighbours(right, neighbours)
    return figure


def _views(part: SubFigure, rows: Sequence[ViewRow], epochs: Sequence[int]) -> None:
    part.suptitle("What training sees", x=0.02, ha="left", fontsize=10, fontweight="bold", color=INK)
    if not rows:
        return
    grid = part.subplots(len(rows), 1 + 2 * len(epochs), squeeze=False)
    for line, row in zip(grid, rows, strict=True):
        _show(line[0], row.original, row.original.label or "")
        for column, view in enumerate(view for pair in row.pairs for view in pair):
            _show(line[1 + column], Picture(view, "", None), "")
    grid[0, 0].set_title("image", fontsize=8.5, color=MUTED)
    for column, epoch in enumerate(epochs):
        for which in (0, 1):
            grid[0, 1 + 2 * column + which].set_title(f"epoch {epoch + 1}{'ab'[which]}", fontsize=8.5, color=MUTED)


def _neighbours(part: SubFigure, rows: Sequence[NeighbourRow]) -> None:
    part.suptitle("Nearest neighbours, cosine similarity", x=0.02, ha="left", fontsize=10, fontweight="bold", color=INK)
    if not rows:
        return
    grid = part.subplots(len(rows), 1 + max(len(row.nearest) for row in rows), squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for line, row in zip(grid, rows, strict=True):
        _show(line[0], row.query, row.query.label or "")
        for axes, (picture, similarity) in zip(line[1:], row.nearest, strict=False):
            _show(axes, picture, " · ".join(filter(None, [picture.label, f"{similarity:.2f}"])))
    grid[0, 0].set_title("query", fontsize=8.5, color=MUTED)


def _show(axes: Axes, picture: Picture, caption: str) -> None:
    """Draw an image without smoothing, with a caption."""
    axes.set_axis_off()
    axes.imshow(np.asarray(to_image(picture.pixels)), interpolation="nearest")
    axes.text(0.5, -0.04, caption, transform=axes.transAxes, ha="center", va="top", fontsize=7.5, color=MUTED)
