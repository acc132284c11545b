"""How figures look, and how they become bytes: matplotlib's objects without pyplot's global state."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from types import MappingProxyType

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK = "#1c2128"
MUTED = "#646c77"
RULE = "#d8dce1"
PAPER = "#ffffff"
SERIES = (
    "#2a6fb0", "#c8571b", "#2f8a57", "#8a5bb5", "#b8394e", "#7c6a4f", "#d06fa5", "#5b6570", "#9a9a1f", "#1f9aa8",
)  # fmt: skip

DASHES = (0, (4, 3))  # of lines that nothing was measured on

#: Colours of a figure that a page may set anew, for dark screens: colour -> CSS variable.
VARIABLES: Mapping[str, str] = MappingProxyType(
    {INK: "--ink", MUTED: "--muted", RULE: "--rule", PAPER: "--paper"}
    | {colour: f"--series-{i}" for i, colour in enumerate(SERIES)}
)

_FILE_FONT = ["DejaVu Sans"]  # comes with matplotlib, so that a picture looks the same everywhere


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of this size in inches."""
    return Figure(figsize=(width, height), layout="constrained", facecolor=PAPER)


def plain_axes(axes: Axes, title: str) -> None:
    """Axes that leave the eye with the data: a title, faint horizontal lines, no box."""
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


def to_png(figure: Figure, *, dpi: int = 150) -> bytes:
    """The figure as PNG; the same bytes for the same figure."""
    file = io.BytesIO()
    with rc_context({"font.family": _FILE_FONT}):
        figure.savefig(file, format="png", dpi=dpi, metadata={"Software": None})
    return file.getvalue()


def to_svg(figure: Figure) -> bytes:
    """The figure as an SVG file whose text is text; the same bytes for the same figure."""
    file = io.BytesIO()
    with rc_context({"font.family": _FILE_FONT, "svg.fonttype": "none", "svg.hashsalt": "report"}):
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return file.getvalue()


def to_inline_svg(figure: Figure, *, name: str, label: str) -> str:
    """The figure as an ``<svg>`` element of an HTML page, in the page's font and colours.

    Args:
        figure: The figure; its background becomes transparent.
        name: Distinguishes the identifiers of this figure from those of others on the page.
        label: What a screen reader says.
    """
    figure.set_facecolor("none")
    text = to_svg(figure).decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # Names of XML vocabularies mean nothing in HTML, and would look like links to the outside.
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href")
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(r"font: (?:bold |\d+ )?([\d.]+)px [^;\"]*", _font_size, text)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return re.sub(
        r"<svg ([^>]*)>",
        lambda found: f'<svg role="img" aria-label="{label}" {_without_size(found[1])}>',
        text,
        count=1,
    ).strip()


def _font_size(found: re.Match[str]) -> str:
    weight = "; font-weight: 600" if "bold" in found[0] or " 700 " in found[0] else ""
    return f"font-size: {found[1]}px{weight}"


def _without_size(attributes: str) -> str:
    """The page decides how large the figure is; its viewBox keeps the proportions."""
    return re.sub(r'\b(width|height)="[^"]*"\s*', "", attributes).strip()
