"""The report of `check`, as text and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from contrastive_core.app.checks import Finding, Findings, counted_levels, finding_lines, findings_to_json
from contrastive_core.text import several

_CLASSES_SHOWN = 40


@dataclass(frozen=True)
class Report(Findings):
    """Report on a data set; `str` gives it as text.

    Attributes:
        data: Data set, as given.
        images: Split -> number of images.
        classes: Split -> class -> number of images; splits without labels are left out.
        sizes: (width, height) -> number of readable images, most frequent first.
        modes: Mode of the stored pixels -> number of readable images, most frequent first.
        formats: Format of the file -> number of readable images, most frequent first.
        findings: All findings, worst first.
    """

    data: str
    images: Mapping[str, int]
    classes: Mapping[str, Mapping[str, int]]
    sizes: Mapping[tuple[int, int], int]
    modes: Mapping[str, int]
    formats: Mapping[str, int]
    findings: Sequence[Finding]

    def to_json(self) -> str:
        """Return the report as JSON, without shortening lists."""
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
        """Format the report for a terminal: findings, worst first, then classes, sizes and kinds of the images."""
        counts = ", ".join(f"{several(number, 'image')} in {split}" for split, number in self.images.items())
        lines = [f"{self.data}: {counts or 'no images'}"]
        lines += finding_lines(self.findings)
        lines += ["", *_class_lines(self), "", *_kind_lines(self)]
        lines += ["", counted_levels(self.findings)]
        return "\n".join(lines)

    __str__ = text


def _class_lines(report: Report) -> Iterator[str]:
    names = sorted({name for counts in report.classes.values() for name in counts})
    if not names:
        yield "no classes: the data can be used for pre-training, but not for evaluation"
    elif len(names) > _CLASSES_SHOWN:
        for split, counts in report.classes.items():
            numbers = [counts.get(name, 0) for name in names]
            few, many = min(numbers), max(numbers)
            yield (
                f"{split}: {len(names)} classes of {few} ({names[numbers.index(few)]}) to {many} "
                f"({names[numbers.index(many)]}) images, median {median(numbers):g}"
            )
    else:
        rows = [["class", *report.classes]]
        rows += [[name, *(str(counts.get(name, 0)) for counts in report.classes.values())] for name in names]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for name, *cells in rows:
            columns = (f"{cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True))
            yield "  ".join([f"{name:{widths[0]}}", *columns])


def _kind_lines(report: Report) -> Iterator[str]:
    if len(report.sizes) == 1:
        ((width, height),) = report.sizes
        yield f"size     {width}x{height} px for all images"
    elif report.sizes:
        (width, height), count = next(iter(report.sizes.items()))
        by_area = sorted(report.sizes, key=lambda size: (size[0] * size[1], size))
        smallest, largest = ("x".join(map(str, size)) for size in (by_area[0], by_area[-1]))
        share = 100 * count / sum(report.sizes.values())
        yield f"sizes    {len(report.sizes)}, {smallest} to {largest} px; {share:.3g} % are {width}x{height}"
    for name, counts in (("modes", report.modes), ("formats", report.formats)):
        if counts:
            yield f"{name:8} {', '.join(f'{key} {number}' for key, number in counts.items())}"
