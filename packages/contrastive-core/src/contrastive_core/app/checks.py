"""What a check of a data set finds: findings, each with all of its cases, as lines for people and as JSON."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from contrastive_core.text import several

_K = TypeVar("_K", bound=Hashable)

Level = Literal["error", "warning", "note"]
LEVELS: tuple[Level, ...] = ("error", "warning", "note")

_ITEMS_SHOWN = 10
_FILES_SHOWN = 3


@dataclass(frozen=True)
class Item:
    """One case of a finding: the files it is about, and what there is to say of them."""

    files: Sequence[str]
    detail: str = ""


@dataclass(frozen=True)
class Finding:
    """Something about a data set, with every case of it.

    Attributes:
        level: ``error``: training or its evaluation would stop or be wrong; ``warning``: is probably not meant;
            ``note``: is dealt with, and good to know.
        kind: one word for programs.
        title: what it is and what to do.
        items: the cases.
    """

    level: Level
    kind: str
    title: str
    items: Sequence[Item] = ()


def of_level(findings: Sequence[Finding], level: Level) -> list[Finding]:
    """Those of one level, in their order."""
    return [finding for finding in findings if finding.level == level]


class Findings:
    """What a report of a check has in common with others: its findings by level.

    Attributes:
        findings: everything found, worst first.
    """

    findings: Sequence[Finding]

    @property
    def errors(self) -> list[Finding]:
        """What must be mended."""
        return of_level(self.findings, "error")

    @property
    def warnings(self) -> list[Finding]:
        """What is probably not meant."""
        return of_level(self.findings, "warning")

    @property
    def notes(self) -> list[Finding]:
        """What is good to know."""
        return of_level(self.findings, "note")


def findings_to_json(findings: Sequence[Finding]) -> dict[str, object]:
    """For JSON: ``errors``, ``warnings`` and ``notes``, no list shortened."""
    return {
        f"{level}s": [
            {
                "kind": finding.kind,
                "title": finding.title,
                "items": [{"files": list(item.files), "detail": item.detail} for item in finding.items],
            }
            for finding in of_level(findings, level)
        ]
        for level in LEVELS
    }


def finding_lines(findings: Sequence[Finding]) -> Iterator[str]:
    """For a terminal: a heading for every level that has findings, worst first, long lists shortened."""
    for level in LEVELS:
        found = of_level(findings, level)
        if found:
            yield from ("", f"{level.upper()}S")
        for finding in found:
            yield f"  {finding.title}"
            yield from (f"      {line}" for line in _item_lines(finding.items))


def counted_levels(findings: Sequence[Finding]) -> str:
    """``1 error, 0 warnings, 2 notes``."""
    return ", ".join(several(len(of_level(findings, level)), level) for level in LEVELS)


def most_first(counts: Mapping[_K, int]) -> dict[_K, int]:
    """Ordered by falling count, then by key as text."""
    return dict(sorted(counts.items(), key=lambda pair: (-pair[1], str(pair[0]))))


def _item_lines(items: Sequence[Item]) -> Iterator[str]:
    for item in items[:_ITEMS_SHOWN]:
        files = ", ".join(item.files[:_FILES_SHOWN])
        more = f" and {len(item.files) - _FILES_SHOWN} more" if len(item.files) > _FILES_SHOWN else ""
        yield f"{files}{more}: {item.detail}" if files and item.detail else files + more + item.detail
    if len(items) > _ITEMS_SHOWN:
        yield f"... and {len(items) - _ITEMS_SHOWN} more; the JSON has all of them (--out FILE)"
