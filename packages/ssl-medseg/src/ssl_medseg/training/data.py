"""Prepare the labelled, unlabelled and validation volumes of a split for training."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contrastive_core.errors import UserError
from contrastive_core.text import some_of
from contrastive_core.training import Run
from contrastive_core.training.documents import read_object, reading
from contrastive_core.training.files import write_atomic
from ssl_medseg.datasets import DataOptions, Split, open_split
from ssl_medseg.datasets.splits import data_file, identify
from ssl_medseg.io.label_map import LabelMap
from ssl_medseg.preprocessing import Preprocessing, PreprocessingOptions, choose_preprocessing
from ssl_medseg.preprocessing.cases import (
    PreparedCase,
    erased_notes,
    prepare_cases,
    read_truth,
    share_lost,
    skipped_notes,
)
from ssl_medseg.preprocessing.prepare import axis_letters, describe_erased
from ssl_medseg.training.recipe import RecipeName
from ssl_medseg.training.slices import SliceSet, stack_slices
from ssl_medseg.training.validation import Validation

_SHOWN = 5


@dataclass(frozen=True)
class TrainingData:
    """Data used by training. Labels of unlabelled cases and files of test cases have not been opened.

    Attributes:
        labels: Label map of the classes.
        preprocessing: Preprocessing, given or derived from the training images and labels.
        labelled: Labelled cases.
        unlabelled: Unlabelled cases; empty if the method does not use them.
        validation: Labelled cases for validation.
        truths: Classes [X, Y, Z] of the validation cases, on their original grids.
        notes: Messages for the log.
        identity: Case -> its part of the split and the hashes of its files. A resumed run recognises its data by these,
            even if the files have moved.
    """

    labels: LabelMap
    preprocessing: Preprocessing
    labelled: list[PreparedCase]
    unlabelled: list[PreparedCase] = field(default_factory=list)
    validation: list[PreparedCase] = field(default_factory=list)
    truths: list[NDArray[np.uint8]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    identity: dict[str, dict[str, str]] = field(default_factory=dict)

    def preparation(self) -> dict[str, dict[str, Any]]:
        """Case -> how it is stored, what its slices cut off and leave out, remarks, and hash of its voxels; as JSON."""
        return {case.name: self._prepared(case) for case in (*self.labelled, *self.validation, *self.unlabelled)}

    def _prepared(self, case: PreparedCase) -> dict[str, Any]:
        grid = case.geometry.grid
        outside = {n: round(share, 4) for n, share in zip(self.labels.names, case.lost, strict=False) if share > 0}
        outside.pop(self.labels.names[0], None)
        return {
            "shape": list(grid.shape),
            "spacing_mm": [round(s, 4) for s in grid.spacing] if grid.size_known else None,
            "stored": axis_letters(grid) or None,
            "slices": case.geometry.slices,
            "outside_slices": outside,
            "removed_by_resampling": [
                describe_erased(self.labels.names[number], *counts, case.geometry)
                for number, counts in case.erased.items()
            ],
            "notes": list(case.notes),
            "voxels": case.digest,
        }

    def slices(self) -> SliceSet:
        """Stack the labelled slices.

        Raises:
            UserError: No slice contains some structure, which therefore cannot be learnt.
        """
        slices = stack_slices(self.labelled)
        present = slices.presence(len(self.labels)).any(0).tolist()
        missing = [name for name, seen in zip(self.labels.names, present, strict=True) if not seen]
        if erased := self._erased(missing):
            raise UserError(
                f"resampling the slices removes {', '.join(missing)} ({erased}); expected slices with every structure. "
                "Use smaller pixels (--spacing), larger slices (--image-size) or a larger --effort"
            )
        if outside := self._outside(missing):
            raise UserError(
                f"the slices do not contain {', '.join(missing)} ({outside}); expected slices with every structure. "
                "Use larger slices (--image-size) or larger pixels (--spacing)"
            )
        if missing:
            numbers = [self.labels.names.index(name) for name in missing]
            texts = [f"{name} (value {self.labels.values[n]})" for name, n in zip(missing, numbers, strict=True)]
            pairs = zip(self.validation, self.truths, strict=True)
            others = [case.name for case, truth in pairs if np.isin(numbers, truth).any()]
            # A network that never saw a structure would leave it out of every mask, with a volume of 0 mL.
            raise UserError(
                f"none of the {len(slices)} labelled slices ({some_of(slices.names)}) contains {', '.join(texts)}; "
                "expected every structure of the label map. Label cases that contain it"
                + (f", make labelled cases of those for validation that do ({some_of(others)})" if others else "")
                + ", or train with a label map without it (--label-map); `ssl-medseg evaluate` also accepts "
                "labels with further structures, and their map"
            )
        return slices

    def _erased(self, missing: Sequence[str]) -> str:
        """Describe how much resampling leaves of structures that labels contain and slices do not; may be empty."""
        texts = [
            f"{case.name}: {describe_erased(self.labels.names[number], *counts, case.geometry)}"
            for case in self.labelled
            for number, counts in case.erased.items()
            if self.labels.names[number] in missing
        ]
        return _first(texts)

    def _outside(self, missing: Sequence[str]) -> str:
        """Describe which structures the slices cut off completely; may be empty."""
        outside = [case for case in self.labelled if any(
            share == 1 and name in missing for name, share in zip(self.labels.names, case.lost, strict=False)
        )]  # fmt: skip
        return _first(share_lost(outside, self.labels.names))

    def validate_with(self, run: Run, *, steps: int, every: int, recipe: RecipeName) -> Validation | None:
        """Create the validation of a run of `steps` steps, run every `every` steps; None without validation cases."""
        if not self.validation:
            return None
        return Validation(
            run, self.validation, self.truths, self.labels.structures, steps=steps, every=every, recipe=recipe
        )


def open_training_data(
    data: str,
    split: Path,
    *,
    opening: DataOptions,
    preprocessing: PreprocessingOptions | Preprocessing,
    unlabelled: bool,
    cache: Path | None,
    largest: int = 0,
) -> TrainingData:
    """Open a data set and prepare the parts of a split that training may use.

    Args:
        data: Data set.
        split: Split file.
        opening: Options for opening the data set.
        preprocessing: Preprocessing options, of which unset ones are derived from the images of labelled and unlabelled
            cases and the labels of labelled ones; or the complete preprocessing of a model.
        unlabelled: Whether to prepare the unlabelled cases, too.
        cache: Folder for preprocessed volumes.
        largest: Largest side of the slices in pixels, as for `choose_preprocessing`.

    Raises:
        UserError: See `open_split`, `choose_preprocessing` and `prepare_cases`.
    """
    dataset, parts = open_split(data, split, opening)
    if not parts.labelled:
        raise UserError(f"{split}: the split has no labelled cases; training needs at least one")
    names = [*parts.labelled, *parts.unlabelled]
    if isinstance(preprocessing, Preprocessing):
        settings, reasons = preprocessing, ["using the preprocessing of the model"]
        dataset = dataset.with_channels(settings.channels, settings.channel_numbers)
    else:
        settings, reasons = choose_preprocessing(
            dataset, names, labelled=parts.labelled, options=preprocessing, largest=largest
        )
    notes = [f"{dataset.name}: {_counts(parts)}", *(f"warning: {note}" for note in dataset.notes), *reasons]
    labelled = prepare_cases(dataset, parts.labelled, settings, labels=True, cache=cache)
    rest = prepare_cases(dataset, parts.unlabelled if unlabelled else (), settings, labels=False, cache=cache)
    validation = prepare_cases(dataset, parts.validation, settings, labels=False, cache=cache)
    notes += [*share_lost(labelled, dataset.labels.names), *erased_notes(labelled, dataset.labels.names)]
    notes += skipped_notes(labelled)
    notes += _by_note([*labelled, *rest, *validation])
    truths = [read_truth(dataset, dataset.case(case.name), case.geometry.grid) for case in validation]
    identity = identify(dataset, parts)
    return TrainingData(dataset.labels, settings, labelled, rest, validation, truths, notes, identity)


#: Settings of a run with the paths of files, which may change on resume; `keep_identity` compares the contents.
PLACES = (
    "cache", "data", "split", "opening.label_map", "opening.frame_table", "opening.patients", "opening.unlabelled",
)  # fmt: skip


def labels_before(model: str | Path) -> list[dict[str, str]]:
    """Return part and hashes of the images whose labels trained or validated a segmenter, or the one it started from.

    A run that starts from the segmenter stores them, so that `evaluate` does not count these images as test cases.
    """
    file = data_file(Path(model))
    if file is None:
        return []
    with reading(file, "does not list the data of a run", "restore it from a copy"):
        content = read_object(file)
        preparation = content.get("preparation", {})
        own = [
            {"part": case["part"], "image": case["image"], "voxels": preparation.get(name, {}).get("voxels", "")}
            for name, case in content.get("cases", {}).items()
            if case["part"] in ("labelled", "validation")
        ]
        return [*own, *(case for case in content.get("before", []) if case not in own)]


def keep_identity(
    run: Run, training_data: TrainingData, *, model: str = "", before: Sequence[Mapping[str, str]] = ()
) -> None:
    """Write the hashes of the data and its preparation to the run folder; in a resumed run, compare the hashes.

    Args:
        run: Run.
        training_data: Data of the run.
        model: Hash of the segmenter that the run starts from, if any.
        before: Images whose labels this segmenter was trained with, from `labels_before`.

    Raises:
        UserError: The run was started with other files, another split, another label map or another segmenter.
    """
    if not run.is_main:
        return
    file = run.out / "data.json"
    if not file.is_file():
        content = {
            "format": "ssl-medseg data 1",
            "labels": training_data.labels.to_json(),
            "model": model,
            "cases": training_data.identity,
            "preparation": training_data.preparation(),
            "before": list(before),
        }
        write_atomic(file, (json.dumps(content, indent=1) + "\n").encode())
        return
    card = read_object(file)
    for kind, current in (("label map", training_data.labels.to_json()), ("initial segmenter", model)):
        previous = card.get({"label map": "labels", "initial segmenter": "model"}[kind], current)
        if previous != current:
            raise UserError(
                f"{run.out}: the run was started with another {kind}. Use the same one, which may have moved, or "
                "another --out"
            )
    before = card.get("cases", {})
    if not isinstance(before, dict):
        raise UserError(
            f"{file}: 'cases' is a {type(before).__name__}, expected the files of each case; restore it from a copy"
        )
    changed = [
        name for name in {**before, **training_data.identity} if before.get(name) != training_data.identity.get(name)
    ]
    if changed:
        raise UserError(
            f"{run.out}: the run was started with other data: files or split parts of {len(changed)} cases differ "
            f"({some_of(changed, _SHOWN)}). Use the same files, which may "
            "have moved, or another --out"
        )


def _first(texts: Sequence[str]) -> str:
    return "; ".join(texts[:_SHOWN]) + ("; ..." if len(texts) > _SHOWN else "")


def _by_note(cases: Sequence[PreparedCase]) -> list[str]:
    """Collect the notes on the images, and group the images that share a note."""
    groups: dict[str, list[str]] = {}
    for case in cases:
        for note in case.notes:
            groups.setdefault(note, []).append(case.name)
    return [
        f"{', '.join(names)}: {note}"
        if len(names) <= _SHOWN
        else f"{', '.join(names[:_SHOWN])} and {len(names) - _SHOWN} more: {note}"
        for note, names in groups.items()
    ]


def _counts(split: Split) -> str:
    return ", ".join(f"{len(names)} {part}" for part, names in split.parts.items()) + " volumes"
