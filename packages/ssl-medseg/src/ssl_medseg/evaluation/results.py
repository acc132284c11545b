"""Evaluation results by case and structure, stored as JSON and CSV."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from contrastive_core.training.config import from_plain
from contrastive_core.training.documents import read_json, reading
from contrastive_core.training.files import write_atomic

FORMAT = "ssl-medseg evaluation 1"

Found = Literal["both", "truth only", "prediction only", "neither"]
Unit = Literal["mm", "voxel"]


@dataclass(frozen=True)
class StructureScore:
    """One structure of one case. What cannot be measured is None, never a stand-in.

    Attributes:
        structure: its name.
        found: where the structure is.
        dice: ``2 |A and B| / (|A| + |B|)``; 0 if it is on one side only, None if on neither.
        hd95: 95th percentile of the distances between the surfaces, the larger of the two directions; in the
            evaluation's unit, and like all distances None unless the structure is on both sides.
        assd: average symmetric surface distance.
        surface_dice: share of both surfaces within the tolerance of the other one.
        truth_voxels: of the truth.
        predicted_voxels: of the prediction.
        truth_ml: volume of the truth; None where the size of a voxel is unknown.
        predicted_ml: volume of the prediction.
        error_ml: predicted less true volume; None as well if the structure is on neither side.
        error_percent: the same in percent of the true volume; None if that is 0.
    """

    structure: str
    found: Found
    dice: float | None
    hd95: float | None
    assd: float | None
    surface_dice: float | None
    truth_voxels: int
    predicted_voxels: int
    truth_ml: float | None
    predicted_ml: float | None
    error_ml: float | None
    error_percent: float | None


@dataclass(frozen=True)
class CaseScores:
    """All structures of one case.

    Attributes:
        case: its name.
        patient: whom it shows.
        spacing: of the voxels in mm, as the file says; None where that is unknown.
        part: of the split it stands in; empty where no split was given. Scores of ``labelled`` and ``validation``
            cases say nothing about new patients: training saw their truth.
        mask: the file of the predicted mask, relative to the evaluation's folder; empty if none was kept.
        structures: their scores.
    """

    case: str
    patient: str
    spacing: tuple[float, float, float] | None
    part: str
    structures: tuple[StructureScore, ...]
    mask: str = ""

    @property
    def unseen(self) -> bool:
        """Whether training has not seen the truth of this case, as far as is known."""
        return self.part not in ("labelled", "validation")


@dataclass(frozen=True)
class Evaluation:
    """Scores of a set of cases, and how they were measured.

    Attributes:
        name: of the evaluation.
        data: name of the data set.
        part: of the split, or "all".
        unit: of the distances. "voxel" if the size of the voxels is unknown for any case.
        tolerance: of the surface Dice, in that unit.
        structures: their names, without the background.
        cases: their scores.
        missing: cases with a truth and without a prediction.
    """

    name: str
    data: str
    part: str
    unit: Unit
    tolerance: float
    structures: tuple[str, ...]
    cases: tuple[CaseScores, ...]
    missing: tuple[str, ...] = ()

    @property
    def judged(self) -> tuple[CaseScores, ...]:
        """The cases a summary is of: those whose truth training has not seen; all, if it has seen all."""
        return tuple(case for case in self.cases if case.unseen) or self.cases

    def of(self, structure: str) -> list[StructureScore]:
        """The scores of one structure in the judged cases, in their order."""
        return [score for case in self.judged for score in case.structures if score.structure == structure]


def write_evaluation(evaluation: Evaluation, file: Path, *, more: dict[str, Any] | None = None) -> None:
    """Write an evaluation as JSON, with `more` (a summary) beside it, and as CSV under the same name."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file.with_suffix(".csv"), scores_csv(evaluation).encode())
    content = {"format": FORMAT, **dataclasses.asdict(evaluation), **(more or {})}
    write_atomic(file, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())


def read_evaluation(file: Path) -> Evaluation:
    """Read what `write_evaluation` wrote.

    Raises:
        UserError: it is something else.
    """
    content = read_json(file)
    remedy = "expected what `ssl-medseg evaluate` writes; remove the file or evaluate again"
    with reading(file, "found no evaluation", remedy):
        if content.get("format") != FORMAT:
            raise ValueError(f"format {content.get('format')!r}")
        fields = {field.name: content[field.name] for field in dataclasses.fields(Evaluation)}
        return from_plain(Evaluation, fields, "evaluation")


def scores_csv(evaluation: Evaluation) -> str:
    """One row per case and structure; the columns of distances are named with their unit."""
    unit = evaluation.unit
    named = {
        "hd95": f"hd95_{unit}",
        "assd": f"assd_{unit}",
        "surface_dice": f"surface_dice_{evaluation.tolerance:g}{unit}",
    }
    fields = [field.name for field in dataclasses.fields(StructureScore)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["case", "patient", "part", *(named.get(name, name) for name in fields)])
    for case in evaluation.cases:
        for score in case.structures:
            values = dataclasses.asdict(score)
            writer.writerow([case.case, case.patient, case.part, *map(_cell, values.values())])
    return text.getvalue()


def _cell(value: Any) -> str:
    """A number to six digits; what is missing stays empty, and is not taken for a 0."""
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
