"""Confusion as a picture: which classes are taken for which."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from contrastive_core.report.style import INK, MUTED, PAPER, RULE, SERIES, new_figure

_NUMBERED = 20  # classes up to which the counts are written into the cells
_NAMED = 60  # up to which classes are named
_NAME_WIDTH = 18
_RIGHT, _WRONG = SERIES[0], SERIES[1]


def draw_confusion(axes: Axes, confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> None:
    """A row for each true class, a column for each predicted one; a cell is as strong as its share of the row.

    What is right is blue; mistakes are orange, and stand out by the square root of their share: a few among hundreds
    can be seen.
    """
    counts = np.asarray(confusion, dtype=np.int64)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    strength = np.where(np.eye(len(counts), dtype=bool), shares, np.sqrt(shares))
    number = len(counts)
    axes.set_xlim(-0.5, number - 0.5)
    axes.set_ylim(number - 0.5, -0.5)
    axes.set_aspect("equal")
    if number <= _NAMED:
        _draw_cells(axes, counts, strength)
        places, names = range(number), [textwrap.shorten(name, _NAME_WIDTH, placeholder="…") for name in classes]
        axes.set_xticks(places, names, rotation=90 if max(map(len, names)) > 2 else 0)
        axes.set_yticks(places, names)
    else:
        axes.imshow(_as_image(strength), interpolation="nearest")
        axes.set_xticks([])
        axes.set_yticks([])
    axes.set_xlabel("predicted", color=MUTED, fontsize=9)
    axes.set_ylabel("true", color=MUTED, fontsize=9)
    axes.tick_params(length=0, labelsize=8.5 if number <= _NUMBERED else 6, labelcolor=INK)
    for spine in axes.spines.values():
        spine.set_color(RULE)


def confusion_figure(confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> Figure:
    """`draw_confusion` as a figure."""
    side = float(np.clip(1.6 + 0.34 * len(classes), 3.2, 8.0))
    figure = new_figure(side, side)
    draw_confusion(figure.subplots(), confusion, classes)
    return figure


def _draw_cells(axes: Axes, counts: NDArray[np.int64], strength: NDArray[np.float64]) -> None:
    size = 8.5 if counts.max() < 1000 else 6.5
    for row, column in zip(*counts.nonzero(), strict=True):
        alpha = float(strength[row, column])
        colour = _RIGHT if row == column else _WRONG
        axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=colour, alpha=alpha, linewidth=0))
        if len(counts) <= _NUMBERED:
            axes.text(
                column, row, f"{counts[row, column]}", ha="center", va="center", fontsize=size,
                color=PAPER if alpha > 0.6 else INK,
            )  # fmt: skip


def _as_image(strength: NDArray[np.float64]) -> NDArray[np.float64]:
    """RGBA: the colours of the cells, as opaque as the cells are strong."""
    image = np.empty((*strength.shape, 4))
    image[..., :3] = to_rgb(_WRONG)
    image[np.eye(len(strength), dtype=bool), :3] = to_rgb(_RIGHT)
    image[..., 3] = strength
    return image
