"""Run all checks of a data set."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from contrastive_core.app.checks import LEVELS, Finding
from ssl_medseg.checks import rules_crop, rules_images, rules_labels
from ssl_medseg.checks.facts import Looked, look_at_image, look_at_label
from ssl_medseg.checks.report import Report
from ssl_medseg.datasets import Case, DataOptions, DataSet
from ssl_medseg.datasets.open import look, meaning
from ssl_medseg.io.label_map import LabelMap
from ssl_medseg.preprocessing import PreprocessingOptions


def examine(
    data: str | os.PathLike[str],
    *,
    opening: DataOptions | None = None,
    split: Path | None = None,
    preprocessing: PreprocessingOptions | None = None,
    show_headers: bool = False,
    show_paths: bool = False,
) -> Report:
    """Look at every volume and label of a data set once, and at how they lie.

    Memory is that of one volume and its label at a time; time that of reading images once and labels three times: what
    slices show is known when all have been seen.

    Args:
        data: as for `ssl_medseg.datasets.open_dataset`.
        opening: how to open it.
        split: a split file that must fit the data set.
        preprocessing: what of it is given; slices as training would make them show how much of the labels.
        show_headers: list texts in headers, which may identify patients.
        show_paths: let the JSON say where files lie.

    Raises:
        UserError: there is no such data set, or the options cannot be used.
    """
    opening = opening or DataOptions()
    listing, settled = look(data, opening)
    labels = meaning(listing, opening)
    looked = list(_look_at_all(settled.cases, labels))
    preprocessing = preprocessing or PreprocessingOptions()
    findings = [
        *settled.findings,
        *rules_images.unusable(looked, fill_nan=preprocessing.fill_nan),
        *rules_labels.unusable(looked, labels),
        *rules_labels.no_map(looked, labels),
        *rules_labels.contents(looked, labels),
        *rules_images.duplicates(looked),
        *rules_labels.duplicates(looked),
        *rules_images.geometry(looked),
        *rules_images.sizes(looked),
        *rules_images.identifying(looked, show=show_headers),
    ]
    crop = rules_crop.Crop()
    if labels is not None and not any(found.kind == "same_name" for found in settled.findings):
        dataset = DataSet(listing.name, listing.root, tuple(settled.cases), labels, listing.layout)
        crop = rules_crop.crop_of(dataset, looked, preprocessing, split=split)
        findings += rules_crop.cut_off(crop)
        findings += [] if split is None else rules_labels.fits(split, dataset, looked)
    elif split is not None:
        title = f"{split.name}: not looked at, as long as cases share names or labels have no meaning"
        findings.append(Finding("warning", "split_unseen", title))
    return Report(
        name=listing.name,
        layout=listing.layout,
        rule=_rule(opening),
        labels=labels,
        looked=looked,
        findings=sorted(findings, key=lambda finding: LEVELS.index(finding.level)),
        crop=crop,
        show_paths=show_paths,
    )


def _look_at_all(cases: Sequence[Case], labels: LabelMap | None) -> Iterator[Looked]:
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("looking at volumes", total=len(cases))
        for case in cases:
            image = look_at_image(case.image)
            label = None if case.label is None else look_at_label(case.label, image.grid, labels)
            yield Looked(case, image, label)
            progress.advance(task)


def _rule(opening: DataOptions) -> str:
    if opening.patients is not None:
        return f"as {opening.patients.name} says"
    if opening.patient_pattern is not None:
        return f"what {opening.patient_pattern!r} finds in the names of cases"
    return "told from the names of cases (--patient_pattern or --patients say otherwise)"
