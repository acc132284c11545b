"""Draw the figures of reports, such as learning curves and confusion matrices, without the state of pyplot."""

from __future__ import annotations

import io
import logging
import re
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from types import MappingProxyType

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

INK = "#1c2128"
MUTED = "#646c77"
RULE = "#d8dce1"
PAPER = "#ffffff"
SERIES = (
    "#2a6fb0", "#c8571b", "#2f8a57", "#8a5bb5", "#b8394e", "#7c6a4f", "#d06fa5", "#5b6570", "#9a9a1f", "#1f9aa8",
)  # fmt: skip

DASHES = (0, (4, 3))  # line style of reference values that were not measured

#: CSS variables of the colours that a page can replace in a figure, for dark screens.
VARIABLES: Mapping[str, str] = MappingProxyType(
    {INK: "--ink", MUTED: "--muted", RULE: "--rule", PAPER: "--paper"}
    | {colour: f"--series-{i}" for i, colour in enumerate(SERIES)}
)

_FILE_FONT = "DejaVu Sans"  # included in matplotlib, so that figures look the same on every machine

#: Fonts for characters that this one lacks, such as Chinese ones, where they are installed.
_OTHER_SCRIPTS = (
    "Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans JP", "Noto Sans SC", "Noto Sans TC", "Noto Sans KR",
    "Source Han Sans", "IPAGothic", "IPAexGothic", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Droid Sans Fallback",
    "Hiragino Sans", "PingFang SC", "Heiti TC", "Apple SD Gothic Neo", "Yu Gothic", "Meiryo", "MS Gothic",
    "Microsoft YaHei", "Microsoft JhengHei", "SimHei", "SimSun", "Malgun Gothic", "NanumGothic", "Noto Sans Thai",
    "Leelawadee UI", "Nirmala UI", "Arial Unicode MS", "Segoe UI Symbol",
)  # fmt: skip


def new_figure(width: float, height: float) -> Figure:
    """Create an empty figure whose width and height are in inches."""
    return Figure(figsize=(width, height), layout="constrained", facecolor=PAPER)


def plain_axes(axes: Axes, title: str) -> None:
    """Style axes with a title, light horizontal lines and no frame."""
    axes.set_title(title, loc="left", fontsize=10, color=INK, fontweight="bold", pad=8)
    axes.set_facecolor("none")
    axes.grid(axis="y", color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "left", "right"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(RULE)
    axes.tick_params(axis="both", length=0, labelsize=8.5, labelcolor=MUTED, pad=4)
    axes.xaxis.label.set(color=MUTED, fontsize=8.5)
    axes.yaxis.label.set(color=MUTED, fontsize=8.5)


@contextmanager
def _file_font() -> Iterator[None]:
    """Draw with the font of files; characters that no font has are shown as boxes, without a warning for each."""
    messages = logging.getLogger("matplotlib.font_manager")  # one for each text if a font has no bold characters
    before = messages.level
    with rc_context({"font.family": [_FILE_FONT]}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        messages.setLevel(logging.ERROR)
        try:
            yield
        finally:
            messages.setLevel(before)


def to_png(figure: Figure, *, dpi: int = 150) -> bytes:
    """Render the figure as PNG; equal figures give equal bytes if they need no font of the system."""
    file = io.BytesIO()
    installed = {font.name for font in fontManager.ttflist}
    for text in figure.findobj(Text):
        if isinstance(text, Text) and not text.get_text().isascii():  # each has its own fonts since it was created
            text.set_fontfamily([_FILE_FONT, *(name for name in _OTHER_SCRIPTS if name in installed)])
    with _file_font():
        figure.savefig(file, format="png", dpi=dpi, metadata={"Software": None})
    return file.getvalue()


def to_svg(figure: Figure) -> bytes:
    """Render the figure as an SVG file with text elements; equal figures give equal bytes."""
    file = io.BytesIO()
    with _file_font(), rc_context({"svg.fonttype": "none", "svg.hashsalt": "report"}):
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return file.getvalue()


_ENLARGED = 1.5
"""Largest factor by which a page enlarges a figure."""


def to_inline_svg(figure: Figure, *, name: str, label: str) -> str:
    """Render the figure as an ``<svg>`` element for an HTML page, in the font and colours of the page.

    Args:
        figure: Figure to render; its background becomes transparent.
        name: Prefix that makes the identifiers of this figure unique on the page.
        label: Text for screen readers.
    """
    figure.set_facecolor("none")
    text = to_svg(figure).decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # XML namespaces have no meaning in HTML and would look like external links.
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href")
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(r"font: (?:bold |\d+ )?([\d.]+)px [^;\"]*", _font_size, text)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return re.sub(
        r"<svg ([^>]*)>",
        lambda match: f'<svg role="img" aria-label="{label}" {_with_largest_width(match[1])}>',
        text,
        count=1,
    ).strip()


def _font_size(match: re.Match[str]) -> str:
    weight = "; font-weight: 600" if "bold" in match[0] or " 700 " in match[0] else ""
    return f"font-size: {match[1]}px{weight}"


def _with_largest_width(attributes: str) -> str:
    """Replace width and height by a largest width, so that the page does not enlarge the text of small figures.

    The page sets the width up to this one; the viewBox preserves the aspect ratio.
    """
    width = re.search(r'\bwidth="([\d.]+)pt"', attributes)
    others = re.sub(r'\b(width|height)="[^"]*"\s*', "", attributes).strip()
    return others if width is None else f'{others} style="max-width: {_ENLARGED * float(width[1]):.0f}pt"'


Record = Mapping[str, int | float]

_MOST_POINTS = 600
_FEW = 25  # largest number of points that are drawn with markers


@dataclass(frozen=True)
class Panel:
    """Panel of a figure with one or more logged values over epochs.

    Attributes:
        title: Title of the panel.
        lines: Labels by logged name, shown if there are several lines; names that were not logged are omitted.
        share: Whether values are fractions, shown in percent.
        chance: Value at chance level, drawn as a dashed line.
        from_zero: Whether the value axis begins at 0.
        noisy: Whether to draw a running mean.
        either: Whether the label of a single line becomes the title of the panel.
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
    """Draw logged values over epochs, one panel per axes; if no parts of a loss were logged, draw the total loss."""
    for ax, panel in zip(axes, panels, strict=True):
        curves = {name: _series(records, key) for key, name in panel.lines.items()}
        curves = {name: series for name, series in curves.items() if len(series[0])}
        plain_axes(ax, next(iter(curves)).capitalize() if panel.either and len(curves) == 1 else panel.title)
        ax.set_xlabel("epoch" if any("epoch" in record for record in records) else "step")
        if not curves and panel.title == "Loss" and len((loss := _series(records, "loss"))[0]):
            curves = {"": loss}
        if not curves:
            ax.text(0.5, 0.5, "not recorded", transform=ax.transAxes, ha="center", color=MUTED, fontsize=9)
            continue
        if panel.chance is not None:
            ax.axhline(panel.chance, color=MUTED, linewidth=1, linestyle=DASHES)
        for number, (x, y) in enumerate(curves.values()):
            _draw(ax, x, y, colour=SERIES[number], noisy=panel.noisy)
        if len(curves) > 1:
            _name_lines(ax, list(curves))
        last = max(float(x[-1]) for x, _ in curves.values())
        ax.set_xlim(min(0.0, *(float(x[0]) for x, _ in curves.values())), last or 1)
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=last >= 3))
        ax.yaxis.set_major_locator(MaxNLocator(5))
        highest = max(float(y.max()) for _, y in curves.values())
        if panel.share:
            ax.set_ylim(0, max(0.1, highest * 1.1) if highest < 0.85 else 1.02)
            ax.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))  # whole percents
            ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        elif panel.from_zero:
            ax.set_ylim(bottom=0)


def training_figures(records: Sequence[Record], panels: Sequence[Panel]) -> list[Figure]:
    """Create a figure for each panel of `draw_training`; side by side they fill the width of a page."""
    figures = []
    for panel in panels:
        figure = new_figure(min(9.6 / len(panels), 4.8), 2.7)
        draw_training([figure.subplots()], records, [panel])
        figures.append(figure)
    return figures


def training_curves(records: Sequence[Record], panels: Sequence[Panel], *, name: str) -> str:
    """Render `training_figures` for an HTML page: side by side, or one below the other on a narrow screen.

    Args:
        records: Logged values.
        panels: Panels to draw.
        name: Prefix that makes the identifiers of the curves unique on the page.
    """
    unit = "epoch" if any("epoch" in record for record in records) else "step"
    graphics = [
        to_inline_svg(figure, name=f"{name}-{number}", label=escape(f"{panel.title} by {unit}"))
        for number, (figure, panel) in enumerate(zip(training_figures(records, panels), panels, strict=True))
    ]
    return '<figure class="panels">\n' + "\n".join(graphics) + "\n</figure>"


def running_mean_note(records: Sequence[Record], panels: Sequence[Panel]) -> str:
    """Return the sentence that explains faint lines; empty if `draw_training` draws none."""
    keys = [
        key for panel in panels if panel.noisy for key in (*panel.lines, *(["loss"] if panel.title == "Loss" else []))
    ]
    if any(_window(len(_series(records, key)[0])) > 1 for key in keys):
        return "Faint lines show logged values, strong lines their running mean."
    return ""


def _series(records: Sequence[Record], key: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return epochs and values where both are finite, averaged over neighbours to at most 600 points."""
    points = [(float(r.get("epoch", r["step"])), float(r[key])) for r in records if key in r]
    table = np.array(points, dtype=np.float64).reshape(-1, 2)
    table = table[np.isfinite(table).all(axis=1)]
    if len(table) > _MOST_POINTS:
        table = np.stack([part.mean(axis=0) for part in np.array_split(table, _MOST_POINTS)])
    return table[:, 0], table[:, 1]


def _draw(axes: Axes, x: NDArray[np.float64], y: NDArray[np.float64], *, colour: str, noisy: bool) -> None:
    """Draw the values, with a running mean if there are many noisy values."""
    window = _window(len(x))
    if window < 2 or not noisy:
        marker = "o" if len(x) <= _FEW else None
        axes.plot(
            x, y, color=colour, linewidth=1.8, marker=marker, markersize=4, clip_on=False
        )  # do not cut markers at the edges
    else:
        axes.plot(x, y, color=colour, linewidth=0.8, alpha=0.35, clip_on=False)
        kernel = np.ones(window)
        # At both ends, average over the available values.
        mean = np.convolve(y, kernel, "same") / np.convolve(np.ones_like(y), kernel, "same")
        axes.plot(x, mean, color=colour, linewidth=1.8, clip_on=False)


def _window(values: int) -> int:
    """Return the number of values in a running mean."""
    return values // 25


def _name_lines(axes: Axes, names: Sequence[str]) -> None:
    """Write the labels above the axes on the right, in the colours of their lines."""
    for number, name in enumerate(reversed(names)):
        axes.annotate(
            name, (1, 1), xycoords="axes fraction", xytext=(0, 2 + 10 * number), textcoords="offset points", ha="right",
            va="bottom", fontsize=8.5, color=SERIES[len(names) - 1 - number], annotation_clip=False,
        )  # fmt: skip


_NUMBERED = 20  # largest number of classes for which counts are written into the cells
_NAMED = 60  # largest number of classes for which names are written
_NAME_WIDTH = 18
_RIGHT, _WRONG = SERIES[0], SERIES[1]


def draw_confusion(axes: Axes, confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> None:
    """Draw a confusion matrix with a row per true class and a column per predicted class.

    Correct predictions are blue, with their share of the row as opacity. Errors are orange, with the square root of
    their share as opacity, so that rare errors remain visible.
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
    """Create a figure with a confusion matrix, see `draw_confusion`."""
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
    """Return the colours of the cells as an RGBA image."""
    image = np.empty((*strength.shape, 4))
    image[..., :3] = to_rgb(_WRONG)
    image[np.eye(len(strength), dtype=bool), :3] = to_rgb(_RIGHT)
    image[..., 3] = strength
    return image
