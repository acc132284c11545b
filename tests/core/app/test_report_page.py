"""Report HTML on a narrow screen: flags stay whole, and what is wider than the page scrolls in a box."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager

from contrastive_core.app.report import page
from contrastive_core.app.report.figures import RATE, Panel, new_figure, to_inline_svg, to_png, to_svg, training_curves
from tests.pages import Page, assert_fits_a_phone


def style() -> str:
    return resources.files("contrastive_core.app.report").joinpath("page.css").read_text(encoding="utf-8")


def test_flags_of_a_command_do_not_break() -> None:
    shown = page.command("ssl-medseg predict RUN <IMAGES> --picture-folder=x -p --no-resume a--b well-known")
    for flag in ("--picture-folder", "-p", "--no-resume"):
        assert f'<span class="flag">{flag}</span>' in shown
    assert "&lt;IMAGES&gt;" in shown
    assert shown.count("<span") == 3
    assert page.paragraph("Use `train --init`, not -x.") == (
        '<p>Use <code>train <span class="flag">--init</span></code>, not -x.</p>'
    )
    assert ".flag { white-space: nowrap; }" in style()


@pytest.mark.parametrize("unit", ["epoch", "step"])
def test_curves_are_separate_figures_that_wrap(unit: str) -> None:
    records = [
        {"step": step, "loss": 1 / step, "lr": 0.1} | ({"epoch": step} if unit == "epoch" else {}) for step in (1, 2)
    ]
    curves = training_curves(records, [Panel("Loss <1>", {"loss": ""}), RATE], name="curves")
    html = page.document("curves", [curves, page.table(["a", "b"], [["1", "2"]], kind="numbers")])
    found = Page(html)
    assert_fits_a_phone(found)
    labels = [value for tag, name, value in found.attributes if (tag, name) == ("svg", "aria-label")]
    assert labels == [f"Loss <1> by {unit}", f"Learning rate by {unit}"]
    identifiers = [value for _, name, value in found.attributes if name == "id"]
    assert len(identifiers) == len(set(identifiers)) > 2
    rules = style()
    assert "minmax(min(100%, 14rem), 1fr)" in rules  # a column is at most as wide as the page
    assert "overflow-x: auto" in rules.partition(".wide {")[2].partition("}")[0]


@pytest.mark.parametrize("width", [2.0, 8.0])
def test_a_page_enlarges_a_figure_by_a_half_at_most(width: float) -> None:
    svg = to_inline_svg(new_figure(width, 1), name="figure", label="Figure")
    start = svg[: svg.index(">")]
    assert f'style="max-width: {1.5 * 72 * width:.0f}pt"' in start  # 72 points per inch
    assert " width=" not in start
    assert " height=" not in start


def test_names_in_other_scripts_print_no_warnings(recwarn: pytest.WarningsRecorder) -> None:
    figure = new_figure(2, 1)
    figure.add_subplot().set_title("\u65e5\u672c")
    assert to_png(figure).startswith(b"\x89PNG")
    assert "\u65e5".encode() in to_svg(figure)
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]


def test_names_in_other_scripts_are_drawn_with_an_installed_font(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    pen.lineTo((0, 700))
    pen.lineTo((700, 0))
    pen.closePath()
    shape = pen.glyph()
    font = FontBuilder(1000)
    font.setupGlyphOrder([".notdef", "A", "heart"])
    font.setupCharacterMap({ord("A"): "A", 0x5FC3: "heart"})
    font.setupGlyf(dict.fromkeys((".notdef", "A", "heart"), shape))
    font.setupHorizontalMetrics(dict.fromkeys((".notdef", "A", "heart"), (1000, 0)))
    font.setupHorizontalHeader(ascent=800, descent=-200)
    font.setupNameTable({"familyName": "SimHei", "styleName": "Regular"})
    font.setupOS2()
    font.setupPost()
    font.save(tmp_path / "font.ttf")

    def draw(title: str) -> bytes:
        figure = new_figure(2, 1)
        figure.add_subplot().set_title(title, fontweight="bold")
        return to_png(figure)

    others = [entry for entry in font_manager.fontManager.ttflist if entry.name == "DejaVu Sans"]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", others)
    before = draw("A"), draw("\u5fc3")
    monkeypatch.setattr(font_manager.fontManager, "ttflist", list(others))
    font_manager.fontManager.addfont(tmp_path / "font.ttf")
    after = draw("A"), draw("\u5fc3")
    assert after[0] == before[0], "a character of the usual font looks the same on every machine"
    assert after[1] != before[1]
    assert not caplog.records, "that the font has no bold characters is not said for each text"
