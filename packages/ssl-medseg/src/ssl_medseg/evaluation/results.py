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
from contrastive_core.training.tables import safe_cell

FORMAT = "ssl-medseg evaluation 1"

Presence = Literal["both", "truth only", "prediction only", "neither"]
Unit = Literal["mm", "voxel"]


@dataclass(frozen=True)
class StructureScore:
    """Scores of one structure of one case; values that are not defined are None.

    Attributes:
        structure: Name of the structure.
        found: Masks that contain the structure.
        dice: Dice coefficient ``2 |A and B| / (|A| + |B|)``; 0 if only one mask contains the structure, None if neither
            does.
        hd95: 95th percentile of the distances between the surfaces, the larger of the two directions, in the unit of
            the evaluation; None, like all distances, unless both masks contain the structure.
        assd: Average symmetric surface distance, in the unit of the evaluation.
        surface_dice: Fraction of both surfaces that lies within the tolerance of the other surface.
        truth_voxels: Number of voxels in the truth.
        predicted_voxels: Number of voxels in the prediction.
        truth_ml: Volume in the truth, in mL; None if the voxel size is unknown.
        predicted_ml: Volume in the prediction, in mL; None if the voxel size is unknown.
        error_ml: Predicted minus true volume, in mL; None also if neither mask contains the structure.
        error_percent: Predicted minus true volume in percent of the true volume; None if the true volume is 0.
    """

    structure: str
    found: Presence
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
        spacing: Voxel size of the image file in mm; None if it is unknown.
        part: Part of the split; empty without a split. Training used the labels of ``labelled`` cases and chose
            settings with those of ``validation`` cases, so scores on both are too optimistic for new patients.
        mask: File of the predicted mask, relative to the folder of the evaluation; empty if it was not kept.
        structures: Scores of the structures.
        phase: Cardiac phase, ED or ES, if a table or the file name states it; otherwise empty.
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
        """Name of the case, with its phase if known."""
        return f"{self.case} ({self.phase})" if self.phase else self.case

    @property
    def unseen(self) -> bool:
        """Whether training did not use the label of this case, as far as is known."""
        return self.part not in ("labelled", "validation")


@dataclass(frozen=True)
class Evaluation:
    """Scores of a set of cases, with the settings of the measurement.

    Attributes:
        name: Name of the evaluation.
        data: Name of the data set.
        part: Part of the split, or "all".
        unit: Unit of the distances: "voxel" if the voxel size of any case is unknown, otherwise "mm".
        tolerance: Tolerance of the surface Dice, in that unit.
        structures: Names of the structures, without the background.
        cases: Scores of the cases.
        missing: Cases with a reference label but without a prediction.
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
        """Cases of the summary: those whose labels training did not use; if there are none, all cases."""
        return tuple(case for case in self.cases if case.unseen) or self.cases

    def of(self, structure: str) -> list[StructureScore]:
        """Return the scores of one structure in the cases of the summary, in their order."""
        return [score for case in self.judged for score in case.structures if score.structure == structure]


def write_evaluation(evaluation: Evaluation, file: Path, *, more: dict[str, Any] | None = None) -> None:
    """Write an evaluation as JSON and as CSV with the same name.

    Args:
        evaluation: Evaluation to write.
        file: JSON file.
        more: Further content for the JSON file, such as the summary.
    """
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
    remedy = "expected a file written by `ssl-medseg evaluate`; remove the file or evaluate again"
    with reading(file, "is not an evaluation", remedy):
        if content.get("format") != FORMAT:
            raise ValueError(f"format {content.get('format')!r}")
        fields = {field.name: content[field.name] for field in dataclasses.fields(Evaluation)}
        return from_plain(Evaluation, fields, "evaluation")


def scores_csv(evaluation: Evaluation) -> str:
    """Return a CSV table with one row per case and structure; the names of distance columns contain the unit."""
    unit = evaluation.unit
    columns = {
        "hd95": f"hd95_{unit}",
        "assd": f"assd_{unit}",
        "surface_dice": f"surface_dice_{evaluation.tolerance:g}{unit}",
    }
    fields = [field.name for field in dataclasses.fields(StructureScore)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    phased = any(case.phase for case in evaluation.cases)
    head = ["case", "patient", "part", *(["phase"] if phased else [])]
    writer.writerow([*head, *(columns.get(name, name) for name in fields)])
    for case in evaluation.cases:
        for score in case.structures:
            values = dataclasses.asdict(score)
            cells = [safe_cell(case.case), safe_cell(case.patient), case.part, *([case.phase] if phased else [])]
            writer.writerow([*cells, *map(_cell, values.values())])
    return text.getvalue()


def _cell(value: Any) -> str:
    """Format a number with six significant digits, and escape text; a missing value becomes an empty cell."""
    if value is None:
        return ""
    if isinstance(value, str):
        return safe_cell(value)
    return f"{value:.6g}" if isinstance(value, float) else str(value)
