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
    """Scores of one structure of one case; values that cannot be measured are None.

    Attributes:
        structure: Name of the structure.
        found: Masks that contain the structure.
        dice: ``2 |A and B| / (|A| + |B|)``; 0 if one mask alone contains it, None if neither does.
        hd95: 95th percentile of the distances between the surfaces, the larger of the two directions; in the
            evaluation's unit and, like all distances, None unless both masks contain the structure.
        assd: Average symmetric surface distance.
        surface_dice: Share of both surfaces within the tolerance of the other one.
        truth_voxels: Number of voxels in the truth.
        predicted_voxels: Number of voxels in the prediction.
        truth_ml: Volume in the truth; None where the size of a voxel is unknown.
        predicted_ml: Volume in the prediction.
        error_ml: Predicted minus true volume; None also if neither mask contains the structure.
        error_percent: The same in percent of the true volume; None if that is 0.
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
    """Scores of all structures of one case.

    Attributes:
        case: Name of the case.
        patient: Patient of the case.
        spacing: Spacing of the voxels in mm, from the file; None where it is unknown.
        part: Part of the split; empty without a split. Scores of ``labelled`` and ``validation`` cases do not predict
            those of new patients, because training saw their labels.
        mask: File of the predicted mask, relative to the evaluation's folder; empty if none was kept.
        structures: Scores of the structures.
        phase: ED or ES of a heart, where a table or file states it.
    """

    case: str
    patient: str
    spacing: tuple[float, float, float] | None
    part: str
    structures: tuple[StructureScore, ...]
    mask: str = ""
    phase: str = ""

    @property
    def title(self) -> str:
        """Name of the case, with its phase where it is known."""
        return f"{self.case} ({self.phase})" if self.phase else self.case

    @property
    def unseen(self) -> bool:
        """Whether training has not seen the label of this case, as far as is known."""
        return self.part not in ("labelled", "validation")


@dataclass(frozen=True)
class Evaluation:
    """Scores of a set of cases, with the settings of the measurement.

    Attributes:
        name: Name of the evaluation.
        data: Name of the data set.
        part: Part of the split, or "all".
        unit: Unit of the distances: "voxel" if the size of the voxels is unknown for any case, else "mm".
        tolerance: Tolerance of the surface Dice, in that unit.
        structures: Names of the structures, without the background.
        cases: Scores of the cases.
        missing: Cases with a reference label and without a prediction.
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
        """Cases of a summary: those whose label training has not seen; all, if it has seen all."""
        return tuple(case for case in self.cases if case.unseen) or self.cases

    def of(self, structure: str) -> list[StructureScore]:
        """Return the scores of one structure in the judged cases, in their order."""
        return [score for case in self.judged for score in case.structures if score.structure == structure]


def write_evaluation(evaluation: Evaluation, file: Path, *, more: dict[str, Any] | None = None) -> None:
    """Write an evaluation as JSON, with `more` (a summary) in it, and as CSV of the same name."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file.with_suffix(".csv"), scores_csv(evaluation).encode())
    content = {"format": FORMAT, **dataclasses.asdict(evaluation), **(more or {})}
    write_atomic(file, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())


def read_evaluation(file: Path) -> Evaluation:
    """Read an evaluation that `write_evaluation` wrote.

    Raises:
        UserError: The file is not an evaluation.
    """
    content = read_json(file)
    remedy = "expected what `ssl-medseg evaluate` writes; remove the file or evaluate again"
    with reading(file, "found no evaluation", remedy):
        if content.get("format") != FORMAT:
            raise ValueError(f"format {content.get('format')!r}")
        fields = {field.name: content[field.name] for field in dataclasses.fields(Evaluation)}
        return from_plain(Evaluation, fields, "evaluation")


def scores_csv(evaluation: Evaluation) -> str:
    """Return one row per case and structure; the columns of distances are named with their unit."""
    unit = evaluation.unit
    named = {
        "hd95": f"hd95_{unit}",
        "assd": f"assd_{unit}",
        "surface_dice": f"surface_dice_{evaluation.tolerance:g}{unit}",
    }
    fields = [field.name for field in dataclasses.fields(StructureScore)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    phased = any(case.phase for case in evaluation.cases)
    head = ["case", "patient", "part", *(["phase"] if phased else [])]
    writer.writerow([*head, *(named.get(name, name) for name in fields)])
    for case in evaluation.cases:
        for score in case.structures:
            values = dataclasses.asdict(score)
            known = [case.case, case.patient, case.part, *([case.phase] if phased else [])]
            writer.writerow([*known, *map(_cell, values.values())])
    return text.getvalue()


def _cell(value: Any) -> str:
    """Format a number with six digits; a missing value stays empty, which is not 0."""
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
