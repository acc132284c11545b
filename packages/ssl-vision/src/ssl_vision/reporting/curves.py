"""Curves of a run: what was logged while it trained, and the accuracy of the models it saved on the way."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from ssl_vision.reporting.style import INK, MUTED, SERIES, new_figure, plain_axes

Record = Mapping[str, int | float]

_PANELS = (("loss", "Loss"), ("contrastive_accuracy", "Contrastive accuracy"), ("lr", "Learning rate"))
_MOST_POINTS = 600
_TITLE_WIDTH = 100  # letters of titles beside each other
_DASHES = (0, (4, 3))


def draw_training(panels: Sequence[Axes], records: Sequence[Record], *, batch_size: int) -> None:
    """Loss, contrastive accuracy and learning rate over epochs, one per axes.

    A dashed line marks what a network that tells nothing apart would reach: loss ``ln(2N - 1)`` and accuracy ``1/N``
    for batches of N images.
    """
    chance = {"loss": math.log(2 * batch_size - 1), "contrastive_accuracy": 1 / batch_size}
    for axes, (key, title) in zip(panels, _PANELS, strict=True):
        plain_axes(axes, title)
        axes.set_xlabel("epoch")
        x, y = _series(records, key)
        if key in chance and len(x):
            axes.axhline(chance[key], color=MUTED, linewidth=1, linestyle=_DASHES)
        _draw(axes, x, y, noisy=key in chance)
        if key == "contrastive_accuracy":
            axes.set_ylim(0, max(0.1, float(y.max()) * 1.1) if len(y) else 1)
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        elif key == "lr":
            axes.set_ylim(bottom=0)


def training_figure(records: Sequence[Record], *, batch_size: int) -> Figure:
    """`draw_training` as a figure of three panels."""
    figure = new_figure(9.6, 2.7)
    draw_training(list(figure.subplots(1, 3)), records, batch_size=batch_size)
    return figure


def draw_accuracies(
    panels: Sequence[Axes], curves: Mapping[str, Mapping[float, float]], baselines: Mapping[str, float] | None = None
) -> None:
    """Top-1 accuracy in percent over epochs, one evaluation per axes; dashed: that of raw pixels.

    Args:
        panels: at least as many axes as curves; those left over become invisible.
        curves: evaluation -> epoch -> accuracy.
        baselines: evaluation -> accuracy of raw pixels.
    """
    width = _TITLE_WIDTH // accuracy_grid(len(curves))[1]
    for axes in panels[len(curves) :]:
        axes.set_visible(False)
    for axes, (name, curve) in zip(panels, curves.items(), strict=False):
        plain_axes(axes, textwrap.fill(f"Accuracy, {name}", width))
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_formatter(PercentFormatter(100, decimals=0))
        epochs = sorted(curve)
        axes.plot(epochs, [curve[e] for e in epochs], color=SERIES[0], linewidth=1.8, marker="o", markersize=4)
        pixels = None if baselines is None else baselines.get(name)
        last = curve[epochs[-1]]
        if pixels is not None:
            axes.axhline(pixels, color=MUTED, linewidth=1, linestyle=_DASHES)
            _beside(axes, pixels, f"raw pixels\n{pixels:.1f} %", colour=MUTED, above=pixels > last)
        _beside(axes, last, f"{last:.1f} %", colour=SERIES[0], above=pixels is None or last >= pixels)
        axes.margins(x=0.03, y=0.15)


def accuracy_figure(
    curves: Mapping[str, Mapping[float, float]], baselines: Mapping[str, float] | None = None
) -> Figure:
    """`draw_accuracies` as a figure."""
    rows, columns = accuracy_grid(len(curves))
    figure = new_figure(9.6, 2.8 * rows)
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    draw_accuracies(list(grid.flat), curves, baselines)
    return figure


def accuracy_grid(count: int) -> tuple[int, int]:
    """Rows and columns of a figure with so many panels of accuracies."""
    columns = 2 if count in (1, 2, 4) else 3
    return math.ceil(count / columns), columns


def _beside(axes: Axes, y: float, text: str, *, colour: str, above: bool) -> None:
    """A line to the right of the axes, growing away from the other one there."""
    axes.annotate(
        text, (1, y), xycoords=axes.get_yaxis_transform(), xytext=(4, 0), textcoords="offset points",
        va="bottom" if above else "top", fontsize=8.5, color=colour, annotation_clip=False, linespacing=1.1,
    )  # fmt: skip


def _series(records: Sequence[Record], key: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Epoch and value where both are finite, thinned to at most 600 means of neighbours."""
    points = [(float(r.get("epoch", r["step"])), float(r[key])) for r in records if key in r]
    table = np.array(points, dtype=np.float64).reshape(-1, 2)
    table = table[np.isfinite(table).all(axis=1)]
    if len(table) > _MOST_POINTS:
        table = np.stack([part.mean(axis=0) for part in np.array_split(table, _MOST_POINTS)])
    return table[:, 0], table[:, 1]


def _draw(axes: Axes, x: NDArray[np.float64], y: NDArray[np.float64], *, noisy: bool) -> None:
    """The values, and where they are many and noisy a running mean over them."""
    if not len(x):
        axes.text(0.5, 0.5, "not recorded", transform=axes.transAxes, ha="center", color=MUTED, fontsize=9)
        return
    window = len(x) // 25
    if window < 2 or not noisy:
        axes.plot(x, y, color=SERIES[0], linewidth=1.8, marker="o" if len(x) == 1 else None)
    else:
        axes.plot(x, y, color=SERIES[0], linewidth=0.8, alpha=0.35)
        kernel = np.ones(window)
        # At both ends the mean is over the values there are.
        mean = np.convolve(y, kernel, "same") / np.convolve(np.ones_like(y), kernel, "same")
        axes.plot(x, mean, color=SERIES[0], linewidth=1.8)
    axes.set_xlim(min(0.0, float(x[0])), float(x[-1]) or 1)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=bool(x[-1] >= 3)))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.title.set_color(INK)
