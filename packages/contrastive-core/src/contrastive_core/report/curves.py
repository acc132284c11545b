"""Curves of what a run logged, as small panels over epochs or steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from contrastive_core.report.style import DASHES, MUTED, SERIES, new_figure, plain_axes

Record = Mapping[str, int | float]

_MOST_POINTS = 600
_FEW = 25  # points that are marked one by one


@dataclass(frozen=True)
class Panel:
    """One pair of axes over epochs.

    Attributes:
        title: above it.
        lines: logged names -> what they are called where there are several; those that were not logged are left out.
        share: whether values are shares of 1, shown in percent.
        chance: what a network that tells nothing apart would reach, as a dashed line.
        from_zero: whether the axis begins at 0.
        noisy: whether a running mean helps.
        either: whether a line that is there alone gives the panel its name.
    """

    title: str
    lines: Mapping[str, str]
    share: bool = False
    chance: float | None = None
    from_zero: bool = False
    noisy: bool = True
    either: bool = False


RATE = Panel("Learning rate", {"lr": ""}, from_zero=True, noisy=False)


def draw_training(axes: Sequence[Axes], records: Sequence[Record], panels: Sequence[Panel]) -> None:
    """What was logged over epochs, a panel per axes; a loss that is not logged by its parts is drawn as a whole."""
    for place, panel in zip(axes, panels, strict=True):
        found = {name: _series(records, key) for key, name in panel.lines.items()}
        found = {name: series for name, series in found.items() if len(series[0])}
        plain_axes(place, next(iter(found)).capitalize() if panel.either and len(found) == 1 else panel.title)
        place.set_xlabel("epoch" if any("epoch" in record for record in records) else "step")
        if not found and panel.title == "Loss" and len((loss := _series(records, "loss"))[0]):
            found = {"": loss}
        if not found:
            place.text(0.5, 0.5, "not recorded", transform=place.transAxes, ha="center", color=MUTED, fontsize=9)
            continue
        if panel.chance is not None:
            place.axhline(panel.chance, color=MUTED, linewidth=1, linestyle=DASHES)
        for number, (x, y) in enumerate(found.values()):
            _draw(place, x, y, colour=SERIES[number], noisy=panel.noisy)
        if len(found) > 1:
            _name_lines(place, list(found))
        last = max(float(x[-1]) for x, _ in found.values())
        place.set_xlim(min(0.0, *(float(x[0]) for x, _ in found.values())), last or 1)
        place.xaxis.set_major_locator(MaxNLocator(5, integer=last >= 3))
        place.yaxis.set_major_locator(MaxNLocator(5))
        highest = max(float(y.max()) for _, y in found.values())
        if panel.share:
            place.set_ylim(0, max(0.1, highest * 1.1) if highest < 0.85 else 1.02)
            place.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        elif panel.from_zero:
            place.set_ylim(bottom=0)


def training_figure(records: Sequence[Record], panels: Sequence[Panel]) -> Figure:
    """`draw_training` as a figure, its panels beside each other."""
    figure = new_figure(9.6, 2.7)
    draw_training(list(figure.subplots(1, len(panels), squeeze=False)[0]), records, panels)
    return figure


def _series(records: Sequence[Record], key: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Epoch and value where both are finite, thinned to at most 600 means of neighbours."""
    points = [(float(r.get("epoch", r["step"])), float(r[key])) for r in records if key in r]
    table = np.array(points, dtype=np.float64).reshape(-1, 2)
    table = table[np.isfinite(table).all(axis=1)]
    if len(table) > _MOST_POINTS:
        table = np.stack([part.mean(axis=0) for part in np.array_split(table, _MOST_POINTS)])
    return table[:, 0], table[:, 1]


def _draw(axes: Axes, x: NDArray[np.float64], y: NDArray[np.float64], *, colour: str, noisy: bool) -> None:
    """The values, and where they are many and noisy a running mean over them."""
    window = len(x) // 25
    if window < 2 or not noisy:
        axes.plot(x, y, color=colour, linewidth=1.8, marker="o" if len(x) <= _FEW else None, markersize=4)
    else:
        axes.plot(x, y, color=colour, linewidth=0.8, alpha=0.35)
        kernel = np.ones(window)
        # At both ends the mean is over the values there are.
        mean = np.convolve(y, kernel, "same") / np.convolve(np.ones_like(y), kernel, "same")
        axes.plot(x, mean, color=colour, linewidth=1.8)


def _name_lines(axes: Axes, names: Sequence[str]) -> None:
    """Names in the colours of the lines, above the axes on the right."""
    for number, name in enumerate(reversed(names)):
        axes.annotate(
            name, (1, 1), xycoords="axes fraction", xytext=(0, 2 + 10 * number), textcoords="offset points", ha="right",
            va="bottom", fontsize=8.5, color=SERIES[len(names) - 1 - number], annotation_clip=False,
        )  # fmt: skip
