"""Rules about the slices of training: labelled voxels outside them, and structures lost by resampling."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from contrastive_core.app.checks import Finding, Item
from contrastive_core.errors import UserError
from contrastive_core.text import several
from ssl_medseg.checks.facts import CaseFacts
from ssl_medseg.datasets import DataSet, read_split
from ssl_medseg.io import read_label
from ssl_medseg.preprocessing import (
    Preprocessing,
    PreprocessingOptions,
    choose_preprocessing,
    prepare_label,
    slice_geometry,
)
from ssl_medseg.preprocessing.prepare import describe_erased, erased_structures


@dataclass(frozen=True)
class Crop:
    """Slices that training would use.

    Attributes:
        settings: Preprocessing that training would derive from the same cases; None if no case can be used.
        reasons: One sentence per decision.
        lost: Case -> structure -> fraction of its labelled voxels outside the slices.
        erased: Case -> description of each structure of which few or no pixels remain.
    """

    settings: Preprocessing | None = None
    reasons: Sequence[str] = ()
    lost: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    erased: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __str__(self) -> str:
        """Format the size of the slices and of their pixels."""
        if self.settings is None:
            return "unknown"
        pixels = f" of {self.settings.spacing[0]:.3g} mm" if self.settings.spacing is not None else ""
        return f"{' x '.join(map(str, self.settings.size))} pixels{pixels}"


def crop_of(
    dataset: DataSet,
    facts: Sequence[CaseFacts],
    options: PreprocessingOptions,
    *,
    split: Path | None = None,
    largest: int = 0,
) -> Crop:
    """Derive the slices that training would use, and what every label without errors loses in them.

    Args:
        dataset: Data set.
        facts: Facts about its cases.
        options: Preprocessing settings that are given rather than derived.
        split: Split file; the slices are then derived from its labelled and unlabelled cases, as in training. None
            derives them from all cases.
        largest: Largest side of the slices in pixels, as for `choose_preprocessing`.
    """
    grids = {one.case.name: one.image.grid for one in facts if one.image.grid is not None}
    labelled = [one.case.name for one in facts if _is_usable(one, dataset)]
    seen, known = list(grids), labelled
    if split is not None:
        try:
            parts = read_split(split, dataset)
        except UserError:  # another rule reports it
            return Crop()
        seen = [name for name in (*parts.labelled, *parts.unlabelled) if name in grids]
        known = [name for name in parts.labelled if name in labelled]
    if not seen or not known:
        return Crop()
    settings, reasons = choose_preprocessing(
        dataset, seen, labelled=known, options=options, grids=grids, largest=largest
    )
    lost, descriptions = {}, {}
    for case in dataset.select(labelled):
        if case.label is not None:
            geometry, _ = slice_geometry(grids[case.name], settings)
            classes, _ = read_label(case.label, dataset.labels, image=grids[case.name])
            pixels, shares = prepare_label(classes, geometry)
            counts = erased_structures(classes, pixels, geometry)
            lost[case.name] = {
                name: float(shares[number]) if number < len(shares) else 0.0
                for number, name in enumerate(dataset.labels.structures, start=1)
            }
            if counts:
                descriptions[case.name] = [
                    describe_erased(dataset.labels.names[number], *remaining, geometry)
                    for number, remaining in counts.items()
                ]
    return Crop(settings, reasons, lost, descriptions)


def cut_off(crop: Crop) -> Iterator[Finding]:
    """Find labels that lie partly outside the slices, the largest part first."""
    items = [
        (
            max(shares.values()),
            Item([case], ", ".join(f"{share:.1%} of {name}" for name, share in shares.items() if share)),
        )
        for case, shares in crop.lost.items()
        if any(shares.values())
    ]
    if items:
        title = (
            f"{several(len(items), 'label')} partly outside the slices of {crop}: the parts outside are neither learnt "
            "nor predicted. Enlarge the slices with --image-size, or the pixels with --spacing"
        )
        ordered = sorted(items, key=lambda pair: (-pair[0], pair[1].files[0]))
        yield Finding("warning", "crop", title, [item for _, item in ordered])


def erased(crop: Crop) -> Iterator[Finding]:
    """Find structures that mostly or completely disappear when labels are resampled to the pixels of the slices."""
    items = [Item([case], ", ".join(structures)) for case, structures in crop.erased.items()]
    if items and crop.settings is not None:
        pixel = "" if crop.settings.spacing is None else f" of {crop.settings.spacing[0]:.3g} mm"
        title = (
            f"resampling to pixels{pixel} removes small structures of {several(len(items), 'case')}. Use smaller "
            "pixels (--spacing), larger slices (--image-size) or a larger --effort"
        )
        yield Finding("warning", "erased", title, items)


def _is_usable(one: CaseFacts, dataset: DataSet) -> bool:
    label = one.label
    if label is None or one.image.grid is None or label.problem is not None:
        return False
    return not (label.difference or label.fractions or label.unknown(dataset.labels))
