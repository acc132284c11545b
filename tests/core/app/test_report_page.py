"""Report HTML keeps flags whole where a narrow screen breaks the lines of a command."""

from __future__ import annotations

from importlib import resources

from contrastive_core.app.report import page


def test_flags_of_a_command_do_not_break() -> None:
    shown = page.command("ssl-medseg predict RUN <IMAGES> --picture-folder=x -p --no-resume a--b well-known")
    for flag in ("--picture-folder", "-p", "--no-resume"):
        assert f'<span class="flag">{flag}</span>' in shown
    assert "&lt;IMAGES&gt;" in shown
    assert shown.count("<span") == 3
    assert page.paragraph("Use `train --init`, not -x.") == (
        '<p>Use <code>train <span class="flag">--init</span></code>, not -x.</p>'
    )
    style = resources.files("contrastive_core.app.report").joinpath("page.css").read_text(encoding="utf-8")
    assert ".flag { white-space: nowrap; }" in style
