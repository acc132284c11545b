"""Bland-Altman plots of predicted and true volumes."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from contrastive_core.app.report.figures import DASHES, MUTED, SERIES, new_figure, plain_axes
from ssl_medseg.evaluation.results import Evaluation
from ssl_medseg.evaluation.summary import LEAST_PAIRS, bland_altman

_COLUMNS = 3
_NAME_WIDTH = 32  # characters of a line above a panel


def bland_altman_figure(evaluation: Evaluation) -> Figure:
    """Draw a Bland-Altman plot per structure, with the limits of agreement if there are at least ten cases."""
    names = evaluation.structures
    columns = min(_COLUMNS, len(names))
    rows = -(-len(names) // columns)
    figure = new_figure(1.2 + 3.4 * columns, 3.1 * rows)
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in grid[len(names) :]:
        axes.set_visible(False)
    for number, (axes, name) in enumerate(zip(grid, names, strict=False)):
        _panel(axes, name, _volumes(evaluation, name), colour=SERIES[number % len(SERIES)])
    return figure


def _volumes(evaluation: Evaluation, structure: str) -> list[tuple[float, float]]:
    """Return the true and predicted volumes in mL of the cases that have the structure."""
    return [
        (score.truth_ml, score.predicted_ml)
        for score in evaluation.of(structure)
        if score.truth_voxels and score.truth_ml is not None and score.predicted_ml is not None
    ]


def _panel(axes: Axes, name: str, pairs: Sequence[tuple[float, float]], *, colour: str) -> None:
    plain_axes(axes, textwrap.fill(name, _NAME_WIDTH))
    axes.set_xlabel("mean of true and predicted volume, mL")
    axes.set_ylabel("predicted minus true volume, mL")
    axes.axhline(0, color=MUTED, linewidth=0.8)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    if not pairs:
        axes.text(0.5, 0.5, "no volumes in mL", transform=axes.transAxes, ha="center", color=MUTED, fontsize=9)
        return
    axes.plot(
        [(t + p) / 2 for t, p in pairs], [p - t for t, p in pairs], linestyle="none", marker="o", markersize=5,
        color=colour, alpha=0.8,
    )  # fmt: skip
    agreement = bland_altman([t for t, _ in pairs], [p for _, p in pairs])
    if agreement is not None:
        limits = [(agreement.upper, "+1.96 sd", DASHES), (agreement.lower, "−1.96 sd", DASHES)]
        for value, label, style in [(agreement.bias, "bias", "-"), *(limits if agreement.n >= LEAST_PAIRS else [])]:
            axes.axhline(value, color=colour, linewidth=1.2, linestyle=style)
            axes.annotate(
                f"{label}\n{value:+.1f}", (1, value), xycoords=axes.get_yaxis_transform(), xytext=(4, 0),
                textcoords="offset points", va="center", fontsize=8, color=colour, annotation_clip=False,
            )  # fmt: skip
    axes.margins(x=0.1, y=0.2)
