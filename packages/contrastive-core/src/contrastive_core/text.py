"""Format numbers, durations and lists for messages, progress lines and reports."""

from __future__ import annotations

from collections.abc import Iterable


def several(number: int, noun: str, plural: str = "") -> str:
    """Format a count with its noun: ``1 file``, ``2,500 files``.

    Args:
        number: Count.
        noun: Noun in the singular.
        plural: Noun in the plural, if it is not formed with s.
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def duration(seconds: float) -> str:
    """Format a duration: ``2 h 5 min``, ``18 min``, ``3 min 20 s``, ``1.5 s``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    if minutes >= 10:
        return f"{minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.3g} s"


def decimal(number: float, places: int = 3) -> str:
    """Format a loss with `places` decimal places, or in scientific notation if it is very large.

    >>> decimal(2.30259), decimal(2.1158e16)
    ('2.303', '2.12e+16')
    """
    return f"{number:.{places}f}" if abs(number) < 1e6 else f"{number:.2e}"


def size(number: float) -> str:
    """Format a number of bytes: ``512 B``, ``1.4 MB``, ``20 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:,.0f} TB"


def some_of(names: Iterable[object], most: int = 5) -> str:
    """Join names with commas, listing at most `most` of them: ``a, b, c, d, e and 3 more``.

    >>> some_of(["a", "b", "c"], most=2)
    'a, b and 1 more'
    """
    texts = list(map(str, names))
    return ", ".join(texts[:most]) + (f" and {len(texts) - most:,} more" if len(texts) > most else "")
