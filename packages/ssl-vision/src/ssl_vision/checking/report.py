"""What `check` found, as text for people and as JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

_K = TypeVar("_K", bound=Hashable)


@dataclass(frozen=True)
class Item:
    """One case of a finding: the files it is about, and what there is to say of them."""

    files: Sequence[str]
    detail: str = ""


@dataclass(frozen=True)
class Finding:
    """Something about the data set, with every case of it.

    Attributes:
        level: ``error``: training or its evaluation would stop or be wrong; ``warning``: is probably not meant;
            ``note``: is dealt with, and good to know.
        kind: one word for programs.
        title: what it is and what to do.
        items: the cases.
    """

    level: Literal["error", "warning", "note"]
    kind: str
    title: str
    items: Sequence[Item] = ()


@dataclass(frozen=True)
class Report:
    """A data set after `examine`; printed, it is the text.

    Attributes:
        data: the data set, as it was asked for.
        images: split -> number of images.
        classes: split -> class -> number of images; a split without labels is left out.
        sizes: (width, height) -> number of images; these and those below of readable images, most frequent first.
        modes: mode of the stored pixels -> number of images.
        formats: format of the file -> number of images.
        findings: everything found, worst first.
    """

    data: str
    images: Mapping[str, int]
    classes: Mapping[str, Mapping[str, int]]
    sizes: Mapping[tuple[int, int], int]
    modes: Mapping[str, int]
    formats: Mapping[str, int]
    findings: Sequence[Finding]

    @property
    def errors(self) -> list[Finding]:
        """What must be mended."""
        return [finding for finding in self.findings if finding.level == "error"]

    @property
    def warnings(self) -> list[Finding]:
        """What is probably not meant."""
        return [finding for finding in self.findings if finding.level == "warning"]

    @property
    def notes(self) -> list[Finding]:
        """What is good to know."""
        return [finding for finding in self.findings if finding.level == "note"]

    def to_json(self) -> str:
        """Everything, no list shortened."""
        content: dict[str, object] = {
            "data": self.data,
            "images": dict(self.images),
            "classes": {split: dict(counts) for split, counts in self.classes.items()},
            "sizes": [{"width": width, "height": height, "images": n} for (width, height), n in self.sizes.items()],
            "modes": dict(self.modes),
            "formats": dict(self.formats),
        }
        for key, findings in (("errors", self.errors), ("warnings", self.warnings), ("notes", self.notes)):
            content[key] = [
                {
                    "kind": finding.kind,
                    "title": finding.title,
                    "items": [{"files": list(item.files), "detail": item.detail} for item in finding.items],
                }
                for finding in findings
            ]
        return json.dumps(content, indent=2)

    def text(self) -> str:
        """For a terminal: worst first, long lists shortened, then the numbers."""
        from ssl_vision.checking.text import render  # noqa: PLC0415 - the two know each other

        return render(self)

    __str__ = text


def several(number: int, noun: str, plural: str = "") -> str:
    """``1 file``, ``2 files``."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def most_first(counts: Mapping[_K, int]) -> dict[_K, int]:
    """Ordered by falling count, then by key as text."""
    return dict(sorted(counts.items(), key=lambda pair: (-pair[1], str(pair[0]))))
