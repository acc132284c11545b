"""The reliability diagram: is a classifier right as often as it is sure?"""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from contrastive_core.app.report.figures import MUTED, SERIES, new_figure, plain_axes
from contrastive_core.metrics import Calibration


def draw_reliability(above: Axes, below: Axes, calibration: Calibration) -> None:
    """Above, the accuracy of the images in each bin of confidence, and as dashes what it should be; below, how many."""
    width = 1 / len(calibration.bins)
    filled = [b for b in calibration.bins if b.accuracy is not None]
    plain_axes(above, "Accuracy by confidence")
    confidences, accuracies = [b.confidence or 0 for b in filled], [b.accuracy or 0 for b in filled]
    above.bar([b.lower + width / 2 for b in filled], accuracies, 0.92 * width, color=SERIES[0], alpha=0.4)
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
    """`draw_reliability` as a figure."""
    figure = new_figure(4.8, 4.8)
    above, below = figure.subplots(2, 1, height_ratios=[3, 1])
    draw_reliability(above, below, calibration)
    return figure
