"""Progress over items is shown in a terminal and nowhere else."""

from __future__ import annotations

import io

import pytest
from rich.errors import LiveError
from rich.progress import Progress

from contrastive_core.training.progress import Watch, track


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    assert list(track("abc", total=3, what="[photos], batches")) == ["a", "b", "c"]
    shown = terminal.getvalue()
    assert "[photos], batches" in shown
    assert "3/3" in shown
    assert shown.rstrip().endswith("\x1b[2K")  # the bar is wiped


def test_a_file_gets_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    monkeypatch.setattr("sys.stderr", file)
    assert list(track(range(4), total=4, what="x")) == [0, 1, 2, 3]
    assert file.getvalue() == ""


def test_an_error_in_between_leaves_the_terminal_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    items = track(range(4), total=4, what="x")
    next(items)
    items.close()  # type: ignore[attr-defined]
    assert terminal.getvalue().count("\x1b[?25l") == terminal.getvalue().count("\x1b[?25h")  # the cursor is back


def test_within_another_bar_the_items_come_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", Terminal())

    def refuse(self: Progress) -> None:
        raise LiveError("Only one live display may be active at once")

    monkeypatch.setattr(Progress, "start", refuse)
    assert list(track("ab", total=2, what="x")) == ["a", "b"]


def test_large_counts_are_written_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    watch = Watch(visible=True)
    watch.start(0, 1)
    watch.metrics({"loss": 6.34801, "inputs": 10496.0, "lr": 1.678e-6})
    watch.advance(1)
    line = capsys.readouterr().err
    assert "loss 6.348  inputs 10,496  lr 1.678e-06" in line
    assert "e+" not in line
