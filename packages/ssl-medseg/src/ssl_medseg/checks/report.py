"""Format the findings of a check as text and as JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from contrastive_core.app.checks import (
    Finding,
    Findings,
    counted_levels,
    finding_lines,
    findings_to_json,
    most_first,
)
from contrastive_core.text import several
from ssl_medseg.checks.facts import CaseFacts, ImageFacts
from ssl_medseg.checks.rules_crop import Crop
from ssl_medseg.io.label_map import LabelMap


@dataclass(frozen=True)
class Report(Findings):
    """Result of `examine`; `print` shows it as text.

    Attributes:
        name: Name of the data set.
        layout: Layout of its files.
        rule: Rule by which cases were assigned to patients.
        labels: Label map; None if there is none.
        facts: Every case with its facts.
        findings: All findings, worst first.
        crop: Slices that training would use, and what they cut off.
        unused: Number of files beside the images that are not read.
        channels: Names of the channels of every image, in order, where the data set states them.
        show_paths: Whether the JSON contains the paths of files.
    """

    name: str
    layout: str
    rule: str
    labels: LabelMap | None
    facts: Sequence[CaseFacts]
    findings: Sequence[Finding]
    crop: Crop = field(default_factory=Crop)
    unused: int = 0
    channels: tuple[str, ...] = ()
    show_paths: bool = False

    def text(self) -> str:
        """Format for a terminal: the findings, worst first and with long lists shortened, then a summary."""
        lines = [
            f"{self.name} ({self.layout}): {_counts(self.facts)}{_unused(self)}",
            *finding_lines(self.findings),
            "",
        ]
        return "\n".join([*lines, *_numbers(self), "", counted_levels(self.findings)])

    __str__ = text

    def to_json(self) -> str:
        """Format as JSON, with complete lists."""
        content: dict[str, object] = {
            "data": self.name,
            "layout": self.layout,
            "patient_rule": self.rule,
            "channels": list(self.channels),
            "labels": None if self.labels is None else self.labels.to_json(),
            **findings_to_json(self.findings),
            "preprocessing": None if self.crop.settings is None else self.crop.settings.to_json(),
            "reasons": list(self.crop.reasons),
            "cases": [_case(one, self) for one in self.facts],
        }
        return json.dumps(content, indent=1)


def _unused(report: Report) -> str:
    return f"; {several(report.unused, 'file')} not used" if report.unused else ""


def _counts(facts: Sequence[CaseFacts]) -> str:
    patients = len({one.case.patient for one in facts})
    labelled = sum(one.label is not None for one in facts)
    return f"{several(len(facts), 'volume')} of {several(patients, 'patient')}, {labelled} with labels"


def _numbers(report: Report) -> Iterator[str]:
    good = [one for one in report.facts if one.image.grid is not None]
    counts = Counter(one.case.patient for one in report.facts)
    if counts:
        first = report.facts[0].case
        yield f"patients   {len(counts)}, {report.rule}; {first.name} belongs to {first.patient}"
    if len(report.channels) > 1:
        yield f"channels   {', '.join(report.channels)}, resampled to the grid of {report.channels[0]}"
    if not good:
        return
    grids = [one.image.grid for one in good if one.image.grid is not None]
    slices = [grid.shape[one.image.axis] for one, grid in zip(good, grids, strict=True)]
    planes = sorted(
        tuple(n for axis, n in enumerate(grid.shape) if axis != one.image.axis)
        for one, grid in zip(good, grids, strict=True)
    )
    total = sum(slices)
    yield f"slices     {total:,}, {_span(slices)} per volume, {_range(planes)} voxels"
    if all(one.image.size_known for one in good):
        steps = [grid.spacing[one.image.axis] for one, grid in zip(good, grids, strict=True)]
        pixels = [s for one, g in zip(good, grids, strict=True) for a, s in enumerate(g.spacing) if a != one.image.axis]
        yield f"spacing    {_span(pixels)} mm in-plane, {_span(steps)} mm between slices"
    orientations = most_first(Counter(one.image.orientation or "unknown" for one in good))
    if set(orientations) != {"unknown"}:
        yield f"stored     {', '.join(f'{letters} {count}' for letters, count in orientations.items())}"
    if report.crop.settings is not None:
        plane = report.crop.settings.plane
        yield f"training   would use {f'{plane} ' if plane else ''}slices of {report.crop}"
    yield from _structures(report)


def _structures(report: Report) -> Iterator[str]:
    label_facts = [(one.label, one.image.axis) for one in report.facts if one.label is not None and one.label.voxels]
    if report.labels is None or not label_facts:
        return
    known = all(label.millilitres for label, _ in label_facts)
    rows = [["value", "structure", "volumes", "slices", f"median {'mL' if known else 'voxels'}"]]
    for i, (name, value) in enumerate(zip(report.labels.structures, report.labels.values[1:], strict=True)):
        amounts = [
            label.voxels[i] * (label.millilitres if known else 1.0) for label, _ in label_facts if label.voxels[i]
        ]
        usual = f"{median(amounts):,.1f}" if known and amounts else f"{median(amounts):,.0f}" if amounts else "-"
        rows.append(
            [
                str(value),
                name,
                str(len(amounts)),
                f"{sum(label.slices(axis)[i] for label, axis in label_facts):,}",
                usual,
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    yield ""
    for row in rows:
        cells = (f"{c:{w}}" if i == 1 else f"{c:>{w}}" for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        yield "  ".join(cells).rstrip()
    full = sum(label.full_slices(axis) for label, axis in label_facts)
    labelled = sum(label.labelled_slices(axis) for label, axis in label_facts)
    if labelled:
        yield f"{full:,} of {labelled:,} slices with labels show every structure ({full / labelled:.0%})"


def _span(numbers: Sequence[float]) -> str:
    first, last = f"{min(numbers):.3g}", f"{max(numbers):.3g}"
    return first if first == last else f"{first} to {last}"


def _range(shapes: Sequence[tuple[int, ...]]) -> str:
    first, last = ("x".join(map(str, shape)) for shape in (shapes[0], shapes[-1]))
    return first if first == last else f"{first} to {last}"


def _channel(image: ImageFacts) -> dict[str, Any]:
    return {
        "name": image.name,
        "shape": None if image.grid is None else list(image.grid.shape),
        "grid_difference": image.difference or None,
        "covered": round(image.covered, 4),
        "not_finite": image.bad,
        "percentile_1": image.low,
        "percentile_99": image.high,
    }


def _case(one: CaseFacts, report: Report) -> dict[str, Any]:
    image, label, grid, labels = one.image, one.label, one.image.grid, report.labels
    card: dict[str, Any] = {"case": one.case.name, "patient": one.case.patient, "listed": one.case.listed}
    if report.show_paths:
        card |= {"image_path": str(one.case.image.path), "label_path": one.case.label and str(one.case.label)}
    card["image"] = {"problem": image.problem}
    if grid is not None:
        card["image"] |= {
            "shape": list(grid.shape),
            "spacing_mm": [round(s, 5) for s in grid.spacing] if image.size_known else None,
            "slice_axis": image.axis,
            "orientation": image.orientation or None,
            "not_finite": image.bad,
            "percentile_1": image.low,
            "percentile_99": image.high,
        }
    if image.others:
        card["image"]["channels"] = [_channel(channel) for channel in image.channels]
    if label is not None:
        card["label"] = {
            "problem": label.problem,
            "grid_difference": label.difference or None,
            "values": {str(value): count for value, count in label.values.items()},
            "fractions": label.fractions,
            "slices_with_all_structures": label.full_slices(image.axis),
            "slices_with_any": label.labelled_slices(image.axis),
        }
        if labels is not None and label.voxels:
            card["label"]["voxels"] = dict(zip(labels.structures, label.voxels, strict=True))
            card["label"]["slices"] = dict(zip(labels.structures, label.slices(image.axis), strict=True))
        if one.case.name in report.crop.lost:
            card["label"]["share_outside_slices"] = dict(report.crop.lost[one.case.name])
    return card
