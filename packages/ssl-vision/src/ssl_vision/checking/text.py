"""A report as lines for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median

from ssl_vision.checking.report import Item, Report, several

_ITEMS_SHOWN = 10
_FILES_SHOWN = 3
_CLASSES_SHOWN = 40


def render(report: Report) -> str:
    """Findings, worst first, then the classes, sizes and kinds of the images, then how many problems there are."""
    counts = ", ".join(f"{several(number, 'image')} in {split}" for split, number in report.images.items())
    lines = [f"{report.data}: {counts or 'no images'}"]
    headed = (("ERRORS", report.errors), ("WARNINGS", report.warnings), ("NOTES", report.notes))
    for heading, findings in headed:
        if findings:
            lines += ["", heading]
        for finding in findings:
            lines += [f"  {finding.title}", *(f"      {line}" for line in _item_lines(finding.items))]
    lines += ["", *_class_lines(report), "", *_kind_lines(report)]
    levels = (("error", report.errors), ("warning", report.warnings), ("note", report.notes))
    numbers = [several(len(found), level) for level, found in levels]
    lines += ["", ", ".join(numbers)]
    return "\n".join(lines)


def _item_lines(items: Sequence[Item]) -> Iterator[str]:
    for item in items[:_ITEMS_SHOWN]:
        files = ", ".join(item.files[:_FILES_SHOWN])
        more = f" and {len(item.files) - _FILES_SHOWN} more" if len(item.files) > _FILES_SHOWN else ""
        yield f"{files}{more}: {item.detail}" if files and item.detail else files + more + item.detail
    if len(items) > _ITEMS_SHOWN:
        yield f"... and {len(items) - _ITEMS_SHOWN} more; the JSON has all of them (--out FILE)"


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
