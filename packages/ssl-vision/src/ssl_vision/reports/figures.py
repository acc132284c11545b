"""Figures of a report: panels of curves, accuracy over epochs, the reliability diagram."""

from __future__ import annotations

import dataclasses
import math
import textwrap
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from contrastive_core.app.report.figures import DASHES, MUTED, RATE, SERIES, Panel, new_figure, plain_axes
from contrastive_core.metrics import Calibration

_TITLE_WIDTH = 100  # characters of adjacent titles


def pretraining_panels(batch_size: int, *, memory: int = 0) -> tuple[Panel, ...]:
    """Return panels of loss, contrastive accuracy and learning rate of pre-training.

    Chance level: loss ``ln(2N - 1 + M)`` and accuracy ``1/N`` for batches of N images and a memory of M. A batch size
    of 0 means SuNCEt alone.
    """
    loss = Panel("Loss", {"nt_xent": "NT-Xent", "suncet": "SuNCEt"})
    if not batch_size:
        return loss, RATE
    return (
        dataclasses.replace(loss, chance=math.log(2 * batch_size - 1 + memory)),
        Panel("Contrastive accuracy", {"contrastive_accuracy": ""}, share=True, chance=1 / batch_size, from_zero=True),
        RATE,
    )


def draw_accuracies(
    panels: Sequence[Axes],
    curves: Mapping[str, Mapping[float, float]],
    baselines: Mapping[str, float] | None = None,
    *,
    chance: float | None = None,
) -> None:
    """Draw top-1 accuracy in percent over epochs, one evaluation per axes; dashed: raw pixels.

    Args:
        panels: Axes, at least as many as curves; unused ones become invisible.
        curves: Evaluation -> epoch -> accuracy.
        baselines: Evaluation -> accuracy of raw pixels.
        chance: Chance level in percent; None draws no line.
    """
    width = _TITLE_WIDTH // accuracy_grid(len(curves))[1]
    for axes in panels[len(curves) :]:
        axes.set_visible(False)
    for axes, (name, curve) in zip(panels, curves.items(), strict=False):
        plain_axes(axes, textwrap.fill(f"Accuracy, {name}", width))
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10], integer=True))
        axes.yaxis.set_major_formatter(PercentFormatter(100, decimals=0))
        epochs = sorted(curve)
        axes.plot(epochs, [curve[e] for e in epochs], color=SERIES[0], linewidth=1.8, marker="o", markersize=4)
        pixels = None if baselines is None else baselines.get(name)
        last = curve[epochs[-1]]
        if pixels is not None:
            axes.axhline(pixels, color=MUTED, linewidth=1, linestyle=DASHES)
            _beside(axes, pixels, f"raw pixels\n{pixels:.1f} %", colour=MUTED, above=pixels > last)
        _beside(axes, last, f"{last:.1f} %", colour=SERIES[0], above=pixels is None or last >= pixels)
        if chance is not None:
            axes.axhline(chance, color=MUTED, linewidth=0.8, linestyle=(0, (1, 2)))
            axes.text(
                0.01, chance, f"chance {chance:.3g} %", transform=axes.get_yaxis_transform(), va="bottom", fontsize=8,
                color=MUTED,
            )  # fmt: skip
        axes.margins(x=0.03, y=0.15)


def accuracy_figure(
    curves: Mapping[str, Mapping[float, float]],
    baselines: Mapping[str, float] | None = None,
    *,
    chance: float | None = None,
) -> Figure:
    """Return `draw_accuracies` as a figure."""
    rows, columns = accuracy_grid(len(curves))
    figure = new_figure(9.6, 2.8 * rows)
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    draw_accuracies(list(grid.flat), curves, baselines, chance=chance)
    return figure


def accuracy_grid(count: int) -> tuple[int, int]:
    """Return rows and columns of a figure with this number of accuracy panels."""
    columns = 2 if count in (1, 2, 4) else 3
    return math.ceil(count / columns), columns


def _beside(axes: Axes, y: float, text: str, *, colour: str, above: bool) -> None:
    """Write a line of text to the right of the axes, on the side away from the other line."""
    axes.annotate(
        text, (1, y), xycoords=axes.get_yaxis_transform(), xytext=(4, 0), textcoords="offset points",
        va="bottom" if above else "top", fontsize=8.5, color=colour, annotation_clip=False, linespacing=1.1,
    )  # fmt: skip


def draw_reliability(above: Axes, below: Axes, calibration: Calibration) -> None:
    """Draw the accuracy per bin of confidence, dashed the ideal one; below, the number of images."""
    width = 1 / len(calibration.bins)
    bins = [b for b in calibration.bins if b.accuracy is not None]
    plain_axes(above, "Accuracy by confidence")
    confidences, accuracies = [b.confidence or 0 for b in bins], [b.accuracy or 0 for b in bins]
    above.bar([b.lower + width / 2 for b in bins], accuracies, 0.92 * width, color=SERIES[0], alpha=0.4)
    above.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    above.plot(confidences, accuracies, linestyle="none", marker="o", markersize=4.5, color=SERIES[0])
    above.text(
        0.03, 0.95, f"calibration error {100 * calibration.ece:.1f} %", transform=above.transAxes, va="top",
        fontsize=9, color=MUTED,
    )  # fmt: skip
    plain_axes(below, "Images")
    below.bar(
        [b.lower + width / 2 for b in calibration.bins], [b.images for b in calibration.bins], 0.92 * width,
        color=SERIES[0], alpha=0.4,
    )  # fmt: skip
    below.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    for axes in (above, below):
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    above.set_ylim(0, 1)
    above.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    below.set_xlabel("confidence: probability of the predicted class")


def reliability_figure(calibration: Calibration) -> Figure:
    """Return `draw_reliability` as a figure."""
    figure = new_figure(4.8, 4.8)
    above, below = figure.subplots(2, 1, height_ratios=[3, 1])
    draw_reliability(above, below, calibration)
    return figure
