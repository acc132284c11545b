"""Numbers and times as text."""

from __future__ import annotations

from contrastive_core.text import duration, several, size


def test_nouns_follow_their_number() -> None:
    assert [several(n, "file") for n in (0, 1, 2, 2500)] == ["0 files", "1 file", "2 files", "2,500 files"]
    assert several(3, "class", "classes") == "3 classes"


def test_durations() -> None:
    found = [duration(s) for s in (0.004, 1.5, 59, 59.9, 95, 600, 7500, 36000)]
    assert found == ["0.004 s", "1.5 s", "59 s", "1 min 0 s", "1 min 35 s", "10 min", "2 h 5 min", "10 h 0 min"]


def test_sizes() -> None:
    assert [size(n) for n in (0, 999, 1400, 2e10, 3e15)] == ["0 B", "999 B", "1.4 kB", "20 GB", "3,000 TB"]
