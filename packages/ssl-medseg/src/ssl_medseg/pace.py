"""How long a run will take, said when its first steps are done."""

from __future__ import annotations

import time
from collections.abc import Callable

from contrastive_core.training import Run

_MEASURED = 3


class Pace:
    """Says the expected time of a run from the first few steps; `after` goes at the end of a step.

    Args:
        run: the run.
        steps: it has.
        each: what a step works on, in words.
        apart: seconds of everything beside the steps, validation above all.
    """

    def __init__(self, run: Run, steps: int, *, each: str, apart: float = 0.0) -> None:
        self._run, self._steps, self._each, self._apart = run, steps, each, apart
        self._begun: float | None = None
        self._done = 0

    def after(self, step: int) -> None:
        """A step is done. The first one is not measured: it prepares kernels and memory."""
        if self._done > _MEASURED:
            return
        if self._begun is None:
            self._begun = time.monotonic()
        elif self._done == _MEASURED:
            seconds = (time.monotonic() - self._begun) / _MEASURED
            left = seconds * (self._steps - step - 1) + self._apart * (self._steps - step - 1) / self._steps
            self._run.say(
                f"a step takes {seconds:.2g} s ({self._each}): about {in_words(left)} for "
                f"{self._steps - step - 1:,} steps" + (" and validation" if self._apart else "")
            )
        self._done += 1


def seconds_of(action: Callable[[], object]) -> float:
    """How long it takes."""
    begun = time.monotonic()
    action()
    return time.monotonic() - begun


def in_words(seconds: float) -> str:
    """A length of time as people say it.

    >>> in_words(8), in_words(95), in_words(5000)
    ('8 s', '1.6 min', '1.4 h')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.2g} min" if seconds < 3600 else f"{seconds / 3600:.2g} h"
