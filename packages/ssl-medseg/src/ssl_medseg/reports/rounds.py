"""Render the pseudo-label section of a report: area of each structure and changes over the rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from contrastive_core.app.report import page
from contrastive_core.app.report.figures import DASHES, SERIES, new_figure, plain_axes, to_inline_svg

Round = Mapping[str, Any]


def rounds_section(rounds: Sequence[Round], *, name: str = "") -> str:
    """Render the section: curves, a table, and warnings; empty without rounds."""
    if not rounds:
        return ""
    structures = list(rounds[0]["area"])
    head = ["round", "cases used", "pixels used", "changed"]
    head += [f"Dice to last, {s}" for s in structures] if len(rounds) > 1 else []
    withheld = any(r.get("withheld") for r in rounds)
    head += ["validation Dice before", "after"] + (["Dice with withheld truth"] if withheld else [])
    rows = []
    for r in rounds:
        row = [str(r["round"]), f"{r['used']} of {r['cases']}", _percent(r["coverage"]), _percent(r.get("change"))]
        if len(rounds) > 1:
            row += [_dice((r.get("dice_to_last") or {}).get(s)) for s in structures]
        row += [_dice(r["validation"].get(when)) for when in ("before", "after")]
        rows.append(row + ([_dice((r.get("withheld") or {}).get("mean"))] if withheld else []))
    figure = to_inline_svg(rounds_figure(rounds), name=f"rounds-{name or 'run'}", label="Pseudo-labels by round")
    texts = [f"Round {r['round']}: {text}." for r in rounds for text in r.get("warnings", [])]
    text = (
        "At the start of each round, the network predicts labels for the unlabelled volumes. It then trains on these "
        "pseudo-labels together with the true labels. Each structure should cover about the same fraction of the "
        "pixels as in the labelled volumes (dashed), and the changes should shrink from round to round. If a structure "
        "disappears or spreads over the image, training is reinforcing its own mistakes."
    )
    if withheld:
        text += (
            " The last column compares the pseudo-labels with true labels that were withheld from training; only "
            "studies have it."
        )
    return page.section(
        f"Pseudo-labels, {name}" if name else "Pseudo-labels",
        page.paragraph(text),
        page.warnings(texts),
        page.figure(figure),
        page.table(head, rows, kind="numbers tight"),
    )


def rounds_figure(rounds: Sequence[Round]) -> Figure:
    """Plot the area of each structure and, where they are known, the changes and the Dice over the rounds."""
    numbers = [int(r["round"]) for r in rounds]
    changes = [r.get("change") for r in rounds]
    dice = {
        "validation, at the end": [r["validation"].get("after") for r in rounds],
        "pseudo-labels, withheld truth": [(r.get("withheld") or {}).get("mean") for r in rounds],
    }
    dice = {name: values for name, values in dice.items() if _known(values)}
    panels = ["area", *(["change"] if _known(changes) else []), *(["dice"] if dice else [])]
    figure = new_figure(3.2 * len(panels), 2.8)
    axes_of = dict(zip(panels, figure.subplots(1, len(panels), squeeze=False)[0], strict=True))
    area = axes_of["area"]
    plain_axes(area, "Share of the pixels")
    for i, name in enumerate(rounds[0]["area"]):
        colour = SERIES[i % len(SERIES)]
        area.plot(numbers, [r["area"][name] for r in rounds], color=colour, marker="o", markersize=4, linewidth=1.8)
        area.axhline(rounds[0]["labelled_area"][name], color=colour, linewidth=1, linestyle=DASHES)
        area.annotate(
            name, (numbers[-1], rounds[-1]["area"][name]), xytext=(6, 0), textcoords="offset points", va="center",
            fontsize=8.5, color=colour, annotation_clip=False,
        )  # fmt: skip
    area.yaxis.set_major_formatter(PercentFormatter(1, decimals=1))
    area.set_ylim(bottom=0)
    if "change" in axes_of:
        change = axes_of["change"]
        plain_axes(change, "Changed since the last round")
        _line(change, numbers, changes, SERIES[0])
        change.yaxis.set_major_formatter(PercentFormatter(1, decimals=1))
        change.set_ylim(bottom=0)
    if dice:
        agreement = axes_of["dice"]
        plain_axes(agreement, "Mean Dice")
        for i, (name, values) in enumerate(dice.items()):
            _line(agreement, numbers, values, SERIES[i])
            agreement.annotate(
                name, (1, 1), xycoords="axes fraction", xytext=(0, 2 + 10 * i), textcoords="offset points",
                ha="right", va="bottom", fontsize=8, color=SERIES[i], annotation_clip=False,
            )  # fmt: skip
        agreement.set_ylim(0, 1)
    for axes in axes_of.values():
        axes.set_xlabel("round")
        axes.set_xlim(min(numbers) - 0.3, max(numbers) + 0.3)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5))
    return figure


def _known(values: Sequence[float | None]) -> bool:
    return any(value is not None for value in values)


def _line(axes: Axes, x: Sequence[int], y: Sequence[float | None], colour: str) -> None:
    """Draw the points that have a value."""
    points = [(a, b) for a, b in zip(x, y, strict=True) if b is not None]
    axes.plot(*zip(*points, strict=True), color=colour, marker="o", markersize=4, linewidth=1.8)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _dice(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
