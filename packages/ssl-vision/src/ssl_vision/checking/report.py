"""What `check` found, as text for people and as JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from contrastive_core.findings import Finding, Findings, findings_to_json


@dataclass(frozen=True)
class Report(Findings):
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
        content |= findings_to_json(self.findings)
        return json.dumps(content, indent=2)

    def text(self) -> str:
        """For a terminal: worst first, long lists shortened, then the numbers."""
        from ssl_vision.checking.text import render  # noqa: PLC0415 - the two know each other

        return render(self)

    __str__ = text
