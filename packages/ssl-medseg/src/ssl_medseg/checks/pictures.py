"""Draw the cases that have findings."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contrastive_core.app.checks import Finding
from contrastive_core.app.report.figures import to_png
from contrastive_core.errors import UserError
from contrastive_core.training.files import write_atomic
from contrastive_core.training.outputs import Outputs
from ssl_medseg.checks.facts import CaseFacts
from ssl_medseg.checks.report import Report
from ssl_medseg.datasets.dataset import Case
from ssl_medseg.io import Volume, grid_difference, read_label_values, read_volume
from ssl_medseg.io.channels import resample_label
from ssl_medseg.io.label_map import LabelMap
from ssl_medseg.reports.overlay import Sheet, sheet_figure, view

# Findings that a picture cannot show, or that concern nearly all cases.
_NOT_SEEN = ("unknown_spacing", "missing_image", "missing_label", "no_label", "same_name")
_WIDTH = 110
_MOST_VALUES = 12


def plan_pictures(report: Report, folder: Path, *, every: bool = False, most: int = 40) -> dict[Path, list[str]]:
    """List the files that `draw_pictures` writes.

    Args:
        report: Result of the check.
        folder: Folder for the pictures; each file is named after its case.
        every: Whether to draw cases without findings, too.
        most: Largest number of pictures; cases with the worst findings come first.

    Returns:
        File -> name of the case, followed by the findings about it.
    """
    captions: dict[str, list[str]] = {}
    for finding in report.findings:
        if finding.level != "note" and finding.kind not in _NOT_SEEN:
            for name, caption in _by_case(finding):
                captions.setdefault(name, []).append(caption)
    cases = {one.case.name: one for one in report.facts if one.is_good}
    names = [name for name in captions if name in cases]
    names += [name for name in cases if every and name not in captions]
    return {folder / f"{name}.png": [name, *captions.get(name, [])] for name in names[:most]}


def draw_pictures(
    report: Report, folder: Path, *, every: bool = False, most: int = 40, overwrite: bool = False
) -> list[Path]:
    """Draw one picture for every case whose errors or warnings are visible.

    The label is drawn on the image voxel by voxel; if it has a different grid, it is also drawn where its own affine
    places it. Voxels that are not finite, and values that are not in the label map, are drawn in separate colours.

    Args:
        report: Result of the check.
        folder: Folder for the pictures; each file is named after its case.
        every: Whether to draw cases without findings, too.
        most: Largest number of pictures; cases with the worst findings come first.
        overwrite: Whether to replace files that `ssl-medseg check` did not write.

    Returns:
        Files that were written.

    Raises:
        UserError: A file exists that `ssl-medseg check` did not write.
    """
    plan = plan_pictures(report, folder, every=every, most=most)
    cases = {one.case.name: one for one in report.facts}
    with Outputs(plan, command="ssl-medseg check", inputs=inputs_of(report), folder=folder, overwrite=overwrite):
        folder.mkdir(parents=True, exist_ok=True)
        for path, (name, *captions) in plan.items():
            write_atomic(path, to_png(sheet_figure(_sheet(cases[name], captions, report.labels)), dpi=110))
    return list(plan)


def inputs_of(report: Report) -> list[Path]:
    """Return the files of all images and labels, which no output may replace."""
    return [path for one in report.facts for path in (*one.case.image.paths, one.case.label) if path is not None]


def _by_case(finding: Finding) -> list[tuple[str, str]]:
    about = re.sub(r"^\d+ (image|label)s?\b", r"\1", finding.title.partition(":")[0])
    return [
        (name, f"{about}: {item.detail}" if item.detail else about) for item in finding.items for name in item.files
    ]


def _sheet(one: CaseFacts, captions: Sequence[str], labels: LabelMap | None) -> Sheet:
    volume = read_volume(one.case.image)
    finite = np.isfinite(volume.array)
    masks, structures = _masks(one.case, volume, labels)
    if not finite.all():
        structures = [*structures, "not finite"]
        bad = np.where(finite, 0, len(structures)).astype(np.uint8)
        masks = {name: np.where(finite, mask, bad) for name, mask in masks.items()} or {"image": bad}
    lines = [line for caption in captions for line in textwrap.wrap(caption, _WIDTH)]
    return Sheet(
        title=one.case.name,
        subtitle="\n".join(lines),
        images={name if volume.others else "image": _filled(array) for name, array in volume.channels.items()},
        masks=masks,
        structures=structures,
        view=view(volume.affine, one.image.axis, known=volume.grid.place_known),
    )


def _filled(array: NDArray[np.float32]) -> NDArray[np.float32]:
    """Replace voxels that are not finite by the smallest value of the image."""
    finite = np.isfinite(array)
    return np.where(finite, array, array[finite].min() if finite.any() else 0).astype(np.float32)


def _masks(case: Case, volume: Volume, labels: LabelMap | None) -> tuple[Mapping[str, NDArray[np.uint8]], list[str]]:
    if case.label is None:
        return {}, []
    try:
        array, grid = read_label_values(case.label, labels=labels, image=volume.grid)
    except UserError:
        return {}, []
    classes, structures = _classes(array, labels)
    if not grid_difference(grid, volume.grid):
        return {"label": classes}, structures
    masks = {"label placed by its affine": resample_label(classes, grid, volume.grid)}
    if classes.shape == volume.array.shape:
        masks = {"label placed voxel by voxel": classes, **masks}
    return masks, structures


def _classes(array: NDArray[Any], labels: LabelMap | None) -> tuple[NDArray[np.uint8], list[str]]:
    """Convert label values to class numbers; all values that are not in the map become one additional class."""
    whole = np.round(np.nan_to_num(array.astype(np.float64)))
    if labels is None:
        values = [int(value) for value in np.unique(whole) if value][:_MOST_VALUES]
        labels = LabelMap(("background", *(f"value {value}" for value in values)), (0, *values))
    classes = np.full(array.shape, len(labels), dtype=np.uint8)
    for number, value in enumerate(labels.values):
        classes[whole == value] = number
    extra = ["not in the map"] if (classes == len(labels)).any() else []
    return classes, [*labels.structures, *extra]
