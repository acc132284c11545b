"""Show the progress of a run: a bar in a terminal, or a line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

from rich.console import Console
from rich.errors import LiveError
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from contrastive_core.text import duration

_SECONDS_BETWEEN_LINES = 5.0
_SECONDS_WITHOUT_NUMBERS = 60.0
_T = TypeVar("_T")


def track(items: Iterable[_T], *, total: int, what: str) -> Iterator[_T]:
    """Iterate over items, with a temporary progress bar on standard error if it is a terminal.

    Args:
        items: Items to iterate over.
        total: Number of items.
        what: Label of the bar.
    """
    if not sys.stderr.isatty():
        yield from items
        return
    columns = (TextColumn("{task.description}", markup=False), MofNCompleteColumn(), BarColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    try:
        bar.start()
    except LiveError:  # another bar is active
        yield from items
        return
    try:
        yield from bar.track(items, total=total, description=what)
    finally:
        bar.stop()


class Watch:
    """Display of the step, the last metrics and the speed on standard error; `say` prints a message between updates.

    Args:
        shown: Whether to show progress; messages are always printed.
    """

    def __init__(self, *, visible: bool) -> None:
        self._visible = visible
        self._bar: Progress | None = None
        self._total = 0
        self._text = ""
        self._start_time = self._last = 0.0
        self._first_step = 0
        self._task: TaskID | None = None
        self._is_new = False

    def start(self, step: int, total: int) -> None:
        """Start the display at `step` of `total` steps."""
        self._total, self._first_step, self._start_time = total, step, time.monotonic()
        self._last = 0.0
        if self._visible and sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(),
                TextColumn("{task.fields[metrics]}", markup=False),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task("", total=total, completed=step, metrics="")
            self._bar.start()

    def metrics(self, record: Mapping[str, float]) -> None:
        """Set the values to show."""
        self._text = "  ".join(f"{name} {_number(value)}" for name, value in record.items())
        self._is_new = True

    def advance(self, step: int) -> None:
        """Report that `done` steps are complete."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=step, metrics=self._text)
            return
        now, fresh = time.monotonic(), self._is_new
        self._is_new = False
        # A line shows metrics only if they belong to its step. Without new metrics, lines are less frequent.
        wait = _SECONDS_BETWEEN_LINES if fresh else _SECONDS_WITHOUT_NUMBERS
        if not self._visible or (now - self._last < wait and step < self._total):
            return
        self._last = now
        speed = (step - self._first_step) / max(now - self._start_time, 1e-9)
        remaining = duration((self._total - step) / speed)
        numbers = f"  {self._text}" if fresh else ""
        self.say(f"step {step}/{self._total}{numbers}  {_number(speed, 3)} steps/s  {remaining} left")

    def say(self, message: str) -> None:
        """Print a message, above the bar if there is one."""
        if self._bar is not None:
            self._bar.console.print(message, markup=False, highlight=False, soft_wrap=True)
        else:
            print(message, file=sys.stderr, flush=True)  # noqa: T201

    def stop(self) -> None:
        """Restore the terminal."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _number(value: float, digits: int = 4) -> str:
    """Format a number with some significant digits, and large counts such as network inputs in full: 84,480."""
    return f"{value:,.0f}" if 10**digits <= abs(value) < 1e15 else f"{value:.{digits}g}"
