"""Curves of a run: what was logged while it trained, and the accuracy of the models it saved on the way."""

from __future__ import annotations

import itertools
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
_LABEL_WIDTH = 36
_LINE_POINTS = 12


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
            axes.axhline(chance[key], color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        _draw(axes, x, y)
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
    axes: Axes, curves: Mapping[str, Mapping[float, float]], baselines: Mapping[str, float] | None = None
) -> None:
    """Top-1 accuracy in percent over epochs, one curve per evaluation; baselines are dashed lines of the same colour.

    Args:
        axes: Where to draw.
        curves: evaluation -> epoch -> accuracy.
        baselines: evaluation -> accuracy of raw pixels.
    """
    plain_axes(axes, "Top-1 accuracy")
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(PercentFormatter(100, decimals=0))
    ends: list[tuple[float, str, str]] = []
    for colour, (name, curve) in zip(itertools.cycle(SERIES), curves.items(), strict=False):
        epochs = sorted(curve)
        axes.plot(epochs, [curve[e] for e in epochs], color=colour, linewidth=1.8, marker="o", markersize=4)
        ends.append((curve[epochs[-1]], f"{name} {curve[epochs[-1]]:.1f} %", colour))
        if baselines and name in baselines:
            axes.axhline(baselines[name], color=colour, linewidth=1.2, linestyle=(0, (4, 3)))
            ends.append((baselines[name], f"{name}, raw pixels {baselines[name]:.1f} %", colour))
    axes.margins(x=0.02)
    ends = sorted((y, textwrap.fill(text, _LABEL_WIDTH), colour) for y, text, colour in ends)
    low, high = axes.get_ylim()
    line = (high - low) * _LINE_POINTS / (axes.bbox.height * 72 / axes.figure.dpi)
    for (_, text, colour), y in zip(
        ends, _apart([(y, line * (1 + text.count("\n"))) for y, text, _ in ends]), strict=True
    ):
        axes.annotate(
            text, (1, y), xycoords=axes.get_yaxis_transform(), xytext=(8, 0), textcoords="offset points", va="center",
            fontsize=8.5, color=colour, annotation_clip=False,
        )  # fmt: skip


def accuracy_figure(
    curves: Mapping[str, Mapping[float, float]], baselines: Mapping[str, float] | None = None
) -> Figure:
    """`draw_accuracies` as a figure."""
    figure = new_figure(9.6, 3.0)
    draw_accuracies(figure.subplots(), curves, baselines)
    return figure


def _series(records: Sequence[Record], key: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Epoch and value where both are finite, thinned to at most 600 means of neighbours."""
    points = [(float(r.get("epoch", r["step"])), float(r[key])) for r in records if key in r]
    table = np.array(points, dtype=np.float64).reshape(-1, 2)
    table = table[np.isfinite(table).all(axis=1)]
    if len(table) > _MOST_POINTS:
        table = np.stack([part.mean(axis=0) for part in np.array_split(table, _MOST_POINTS)])
    return table[:, 0], table[:, 1]


def _draw(axes: Axes, x: NDArray[np.float64], y: NDArray[np.float64]) -> None:
    """The values, and where there are many a running mean over them."""
    if not len(x):
        axes.text(0.5, 0.5, "not recorded", transform=axes.transAxes, ha="center", color=MUTED, fontsize=9)
        return
    window = len(x) // 25
    if window < 2:
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


def _apart(labels: Sequence[tuple[float, float]]) -> list[float]:
    """The ascending middles of labels (middle, height), moved up where two would overlap."""
    moved: list[float] = []
    top = -math.inf
    for middle, height in labels:
        moved.append(max(middle, top + height / 2))
        top = moved[-1] + height / 2
    return moved
