"""Run all checks of a data set."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from contrastive_core.app.checks import LEVELS, Finding
from contrastive_core.errors import UserError
from contrastive_core.text import several
from ssl_medseg.checks import rules_crop, rules_images, rules_labels
from ssl_medseg.checks.facts import CaseFacts, read_image_facts, read_label_facts
from ssl_medseg.checks.report import Report
from ssl_medseg.datasets import Case, DataOptions, DataSet
from ssl_medseg.datasets.layouts.listing import Listing
from ssl_medseg.datasets.open import label_map_for, list_cases
from ssl_medseg.io.label_map import LabelMap
from ssl_medseg.preprocessing import PreprocessingOptions
from ssl_medseg.preprocessing.plan import check_sizes, choose_slicing
from ssl_medseg.preprocessing.prepare import display_axis, thick_axis


def examine(
    data: str | os.PathLike[str],
    *,
    opening: DataOptions | None = None,
    split: Path | None = None,
    preprocessing: PreprocessingOptions | None = None,
    largest: int = 0,
    show_headers: bool = False,
    show_paths: bool = False,
) -> Report:
    """Check the files, the geometry and the contents of every image and label of a data set.

    One volume and its label are in memory at a time. Every image is read once. Every label is read up to three times,
    because the slices that training would use are known only after the first pass.

    Args:
        data: Data set, as for `ssl_medseg.datasets.open_dataset`.
        opening: Options for opening the data set.
        split: Split file to check against the data set.
        preprocessing: Preprocessing settings of the planned training, from which its slices are derived.
        largest: Largest side of the slices in pixels, which the effort of training sets; 0 for no limit.
        show_headers: Whether to list text fields of headers, which may identify patients.
        show_paths: Whether the JSON contains the paths of files.

    Returns:
        Report with all findings, worst first.

    Raises:
        UserError: The data set does not exist, or the options contradict each other.
    """
    opening = opening or DataOptions()
    listing, resolved = list_cases(data, opening)
    try:
        labels = label_map_for(listing, opening)
    except UserError:
        if opening.label_map is not None:
            raise
        labels = None  # a segmentation cannot be read, which is reported for its case
    facts = list(_look_at_all(resolved.cases, labels))
    preprocessing = preprocessing or PreprocessingOptions()
    facts, planes = _with_axes(facts, preprocessing)
    findings = [
        *resolved.findings,
        *planes,
        *rules_images.unusable(facts, fill_nan=preprocessing.fill_nan, low=preprocessing.low, high=preprocessing.high),
        *rules_labels.unusable(facts, labels),
        *rules_labels.no_map(facts, labels),
        *rules_labels.contents(facts, labels),
        *rules_images.duplicates(facts),
        *rules_labels.duplicates(facts),
        *rules_images.geometry(facts),
        *rules_images.channels(facts),
        *rules_images.sizes(facts),
        *rules_images.identifying(facts, show=show_headers),
    ]
    crop = rules_crop.Crop()
    if labels is not None and not any(finding.kind == "same_name" for finding in resolved.findings):
        crop_possible = not any(finding.level == "error" for finding in planes)
        dataset = DataSet(listing.name, listing.root, tuple(resolved.cases), labels, listing.layout)
        if crop_possible:
            crop = rules_crop.crop_of(dataset, facts, preprocessing, split=split, largest=largest)
        findings += [*rules_crop.cut_off(crop), *rules_crop.erased(crop)]
        findings += [] if split is None else rules_labels.fits(split, dataset, facts)
    elif split is not None:
        title = f"{split.name} was not checked, because cases share a name or there is no label map: correct that first"
        findings.append(Finding("warning", "split_unseen", title))
    return Report(
        name=listing.name,
        layout=listing.layout,
        rule=_patient_rule(listing, opening),
        labels=labels,
        facts=facts,
        findings=sorted(findings, key=lambda finding: LEVELS.index(finding.level)),
        crop=crop,
        unused=len(listing.unused),
        channels=tuple(listing.channels),
        show_paths=show_paths,
    )


def _look_at_all(cases: Sequence[Case], labels: LabelMap | None) -> Iterator[CaseFacts]:
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("checking volumes", total=len(cases))
        for case in cases:
            image = read_image_facts(case.image)
            grids = {other.name: other.grid for other in image.others if other.grid is not None}
            label = None if case.label is None else read_label_facts(case.label, image.grid, labels, others=grids)
            yield CaseFacts(case, image, label)
            progress.advance(task)


def _with_axes(facts: Sequence[CaseFacts], options: PreprocessingOptions) -> tuple[list[CaseFacts], list[Finding]]:
    """Add the slice axis to the facts of every case, and return the findings about slice axes and voxel sizes."""
    grids = {one.case.name: one.image.grid for one in facts if one.image.grid is not None}
    if not grids:
        return list(facts), []
    findings: list[Finding] = []
    try:
        slicing, reasons = choose_slicing(grids, options)
        if all(thick_axis(grid) is None for grid in grids.values()):
            findings = [Finding("note", "slice_plane", reasons[0])]
        axes = {name: slicing.axes(grid)[0] for name, grid in grids.items()}
    except UserError as error:
        findings = [Finding("error", "slice_axis", str(error))]
        axes = {name: display_axis(grid) for name, grid in grids.items()}
    try:
        check_sizes(grids, options)
    except UserError as error:
        findings.append(Finding("error", "unknown_size", str(error)))
    case_facts = [
        replace(one, image=replace(one.image, axis=axes[one.case.name])) if one.case.name in axes else one
        for one in facts
    ]
    return case_facts, findings


def _patient_rule(listing: Listing, opening: DataOptions) -> str:
    """Describe how cases were assigned to patients, in the order of precedence of `resolve`."""
    if opening.patients is not None:
        return f"listed in {opening.patients.name}"
    if opening.patient_pattern is not None:
        return f"derived from the names of cases with the pattern {opening.patient_pattern!r}"
    by_name = "derived from the names of cases (change with --patient-pattern or --patients)"
    count = sum(entry.patient is not None for entry in listing.entries)
    if not count:
        return by_name
    source = "listed in the column patient" if listing.layout == "csv" else "stated by the data set"
    return source if count == len(listing.entries) else f"{source} for {several(count, 'case')}, otherwise {by_name}"
