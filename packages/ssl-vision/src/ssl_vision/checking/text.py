"""A report as lines for a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from contrastive_core.findings import counted_levels, finding_lines, several
from ssl_vision.checking.report import Report

_CLASSES_SHOWN = 40


def render(report: Report) -> str:
    """Findings, worst first, then the classes, sizes and kinds of the images, then how many problems there are."""
    counts = ", ".join(f"{several(number, 'image')} in {split}" for split, number in report.images.items())
    lines = [f"{report.data}: {counts or 'no images'}"]
    lines += finding_lines(report.findings)
    lines += ["", *_class_lines(report), "", *_kind_lines(report)]
    lines += ["", counted_levels(report.findings)]
    return "\n".join(lines)


def _class_lines(report: Report) -> Iterator[str]:
    names = sorted({name for counts in report.classes.values() for name in counts})
    if not names:
        yield "no classes: enough to learn from without labels, not to evaluate"
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
            aligned = (f"{cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True))
            yield "  ".join([f"{name:{widths[0]}}", *aligned])


def _kind_lines(report: Report) -> Iterator[str]:
    if len(report.sizes) == 1:
        ((width, height),) = report.sizes
        yield f"size     {width}x{height} px, all of them"
    elif report.sizes:
        (width, height), count = next(iter(report.sizes.items()))
        by_area = sorted(report.sizes, key=lambda size: (size[0] * size[1], size))
        smallest, largest = ("x".join(map(str, size)) for size in (by_area[0], by_area[-1]))
        share = 100 * count / sum(report.sizes.values())
        yield f"sizes    {len(report.sizes)}, {smallest} to {largest} px; {share:.3g} % are {width}x{height}"
    for name, counted in (("modes", report.modes), ("formats", report.formats)):
        if counted:
            yield f"{name:8} {', '.join(f'{key} {number}' for key, number in counted.items())}"
