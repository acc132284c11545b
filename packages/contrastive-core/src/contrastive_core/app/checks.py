"""Findings of a data-set check with all of their cases, as text and as JSON."""

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
    """One case of a finding.

    Attributes:
        files: Files concerned.
        detail: Description of the case.
    """

    files: Sequence[str]
    detail: str = ""


@dataclass(frozen=True)
class Finding:
    """A problem or property of a data set, with all of its cases.

    Attributes:
        level: ``error`` if training or evaluation would fail or be wrong; ``warning`` for a property that is probably
            unintended; ``note`` for a property that is handled.
        kind: Identifier for programs, which is one word.
        title: Description and remedy.
        items: All cases of the finding.
    """

    level: Level
    kind: str
    title: str
    items: Sequence[Item] = ()

    def __str__(self) -> str:
        """Return the title and its first items on one line."""
        text = "; ".join(_item_lines(self.items, limit=_FILES_SHOWN, more="{count} more"))
        return f"{self.title} ({text})" if text else self.title


def of_level(findings: Sequence[Finding], level: Level) -> list[Finding]:
    """Return the findings of one level in their original order."""
    return [finding for finding in findings if finding.level == level]


class Findings:
    """Base class of check reports, which provides the findings of each level.

    Attributes:
        findings: All findings, the most severe first.
    """

    findings: Sequence[Finding]

    @property
    def errors(self) -> list[Finding]:
        """Findings that must be fixed before training."""
        return of_level(self.findings, "error")

    @property
    def warnings(self) -> list[Finding]:
        """Findings that are probably unintended."""
        return of_level(self.findings, "warning")

    @property
    def notes(self) -> list[Finding]:
        """Findings for information."""
        return of_level(self.findings, "note")


def findings_to_json(findings: Sequence[Finding]) -> dict[str, object]:
    """Convert findings to JSON values with complete lists: ``errors``, ``warnings`` and ``notes``."""
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
    """Yield the findings as lines for a terminal, with a heading per level and long lists shortened."""
    for level in LEVELS:
        group = of_level(findings, level)
        if group:
            yield from ("", f"{level.upper()}S")
        for finding in group:
            yield f"  {finding.title}"
            yield from (f"      {line}" for line in _item_lines(finding.items))


def counted_levels(findings: Sequence[Finding]) -> str:
    """Count the findings by level: ``1 error, 0 warnings, 2 notes``."""
    return ", ".join(several(len(of_level(findings, level)), level) for level in LEVELS)


def most_first(counts: Mapping[_K, int]) -> dict[_K, int]:
    """Sort by decreasing count, then by key as text."""
    return dict(sorted(counts.items(), key=lambda pair: (-pair[1], str(pair[0]))))


def _item_lines(
    items: Sequence[Item],
    *,
    limit: int = _ITEMS_SHOWN,
    more: str = "... and {count} more; --out FILE writes all of them as JSON",
) -> Iterator[str]:
    for item in items[:limit]:
        files = ", ".join(item.files[:_FILES_SHOWN])
        rest = f" and {len(item.files) - _FILES_SHOWN} more" if len(item.files) > _FILES_SHOWN else ""
        yield f"{files}{rest}: {item.detail}" if files and item.detail else files + rest + item.detail
    if len(items) > limit:
        yield more.format(count=len(items) - limit)
