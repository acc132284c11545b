"""The section of a report about pseudo-labels: amount per structure and change over the rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from contrastive_core.app.report import page
from contrastive_core.app.report.figures import DASHES, MUTED, SERIES, new_figure, plain_axes, to_inline_svg

Round = Mapping[str, Any]


def rounds_section(rounds: Sequence[Round], *, name: str = "") -> str:
    """The section: curves, a table, and what looked wrong."""
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
    warned = [f"Round {r['round']}: {text}." for r in rounds for text in r.get("warnings", [])]
    text = (
        "At the start of every round the network predicts labels for the unlabelled volumes and then trains on these "
        "pseudo-labels together with the true labels. Each structure should keep about the share of the pixels that it "
        "has in the labelled volumes (dashed), and changes should become smaller from round to round. A structure that "
        "vanishes or spreads over the image shows that training reinforces its own mistakes."
    )
    if withheld:
        text += (
            " The last column compares the pseudo-labels with true labels that training did not use; it exists in "
            "studies only."
        )
    return page.section(
        f"Pseudo-labels, {name}" if name else "Pseudo-labels",
        page.paragraph(text),
        page.warnings(warned),
        page.figure(figure),
        page.figure(page.table(head, rows, kind="numbers tight")),
    )


def rounds_figure(rounds: Sequence[Round]) -> Figure:
    """Share of the pixels by structure, change and agreement over the rounds."""
    figure = new_figure(9.6, 2.8)
    area, change, dice = figure.subplots(1, 3)
    numbers = [int(r["round"]) for r in rounds]
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
    plain_axes(change, "Changed since the last round")
    _line(change, numbers, [r.get("change") for r in rounds], SERIES[0])
    change.yaxis.set_major_formatter(PercentFormatter(1, decimals=1))
    change.set_ylim(bottom=0)
    plain_axes(dice, "Mean Dice")
    lines = {
        "validation, at the end": [r["validation"].get("after") for r in rounds],
        "pseudo-labels, withheld truth": [(r.get("withheld") or {}).get("mean") for r in rounds],
    }
    drawn = 0
    for i, (name, values) in enumerate(lines.items()):
        if _line(dice, numbers, values, SERIES[i]):
            dice.annotate(
                name, (1, 1), xycoords="axes fraction", xytext=(0, 2 + 10 * drawn), textcoords="offset points",
                ha="right", va="bottom", fontsize=8, color=SERIES[i], annotation_clip=False,
            )  # fmt: skip
            drawn += 1
    dice.set_ylim(0, 1)
    for axes in (area, change, dice):
        axes.set_xlabel("round")
        axes.set_xlim(min(numbers) - 0.3, max(numbers) + 0.3)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5))
    return figure


def _line(axes: Axes, x: Sequence[int], y: Sequence[float | None], colour: str) -> bool:
    """Points where there is a value; says so where there is none."""
    points = [(a, b) for a, b in zip(x, y, strict=True) if b is not None]
    if points:
        axes.plot(*zip(*points, strict=True), color=colour, marker="o", markersize=4, linewidth=1.8)
    elif not axes.lines and not axes.texts:
        axes.text(0.5, 0.5, "not known", transform=axes.transAxes, ha="center", color=MUTED, fontsize=9)
    return bool(points)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _dice(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
