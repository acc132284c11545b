"""`ssl-medseg evaluate`: masks against the truth, by case and structure, in mm and mL."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from contrastive_core.errors import UserError
from contrastive_core.report.style import to_png
from contrastive_core.train.files import write_atomic
from ssl_medseg.data.cases import Case, DataSet
from ssl_medseg.data.open import open_with
from ssl_medseg.data.options import DataOptions
from ssl_medseg.data.splits import Split, read_split
from ssl_medseg.reporting.case_sheets import case_sheets
from ssl_medseg.scoring.cases import find_masks, read_pair
from ssl_medseg.scoring.figure import bland_altman_figure
from ssl_medseg.scoring.measure import measure
from ssl_medseg.scoring.records import CaseScores, Evaluation, write_evaluation
from ssl_medseg.scoring.summary import Summary, summarise, summary_csv
from ssl_medseg.scoring.words import table, warnings

_DATASET = DataOptions()

Part = Literal["test", "validation", "labelled", "unlabelled", "all"]


@dataclass(frozen=True)
class Evaluated:
    """What was found, and the files that hold it; `str` is what the command prints.

    Attributes:
        evaluation: every score.
        summary: over the cases.
        written: JSON, CSV files and pictures.
    """

    evaluation: Evaluation
    summary: Summary
    written: list[Path]

    def __str__(self) -> str:
        return "\n".join(
            [
                *table(self.evaluation, self.summary),
                "",
                *(f"note: {text}" for text in warnings(self.evaluation, self.summary)),
                "",
                *(f"written: {file}" for file in self.written),
            ]
        )


def evaluate(
    masks: Path,
    data: str,
    *,
    split: Path | None = None,
    part: Part = "test",
    tolerance: float = 2.0,
    name: str | None = None,
    out: Path | None = None,
    pictures: bool = True,
    dataset: DataOptions = _DATASET,
) -> Evaluated:
    """Compare predicted masks with the truth: Dice, HD95, ASSD, surface Dice, volumes, by case and structure.

    Everything is measured on the images' own grid, with MONAI's metrics and the voxel size of the file. Where the file
    does not know it (the affine is the identity), distances are in voxels and volumes have no mL. A structure that is
    missing in the truth, in the prediction or in both is counted as such; it has no distance, and no average hides it.

    Written are ``NAME.json`` with every number, ``NAME.csv`` with a row per case and structure, ``NAME-summary.csv``
    (mean, sd, median, quartiles, n, n_missing), ``NAME-volumes.png`` (Bland-Altman) and sheets of the best, the median
    and the worst case with the masks on the image.

    Args:
        masks: folder with a mask per case, named like the case, as `ssl-medseg predict` writes them.
        data: the data set with the truth.
        split: the split training used, so that cases whose truth it has seen are kept out of the summary.
        part: which cases of the split; all: every case with a label. Without a split all are evaluated.
        tolerance: of the surface Dice in mm: surfaces nearer than this count as the same. In voxels where the voxel
            size is unknown.
        name: of the files; by default of data set and part.
        out: folder for them; by default ``evaluation`` beside the masks.
        pictures: draw the sheets and the plot of volumes.
        dataset: how to open the data.

    Returns:
        The scores, their summary and the files.
    """
    if tolerance <= 0:
        raise UserError(f"evaluate needs a tolerance above 0, got {tolerance:g}")
    folder, opened = Path(masks), open_with(data, dataset)
    chosen = read_split(split, opened) if split is not None else None
    shown = part if chosen is not None else "all"
    cases = choose_cases(opened, chosen, shown)
    found = find_masks(folder, cases)
    stem = name or re.sub(r"[^\w.-]+", "-", f"{opened.name}-{shown}")
    target = Path(out) if out is not None else folder / "evaluation"
    evaluation = score_cases(
        opened, cases, found, split=chosen, name=stem, part=shown, tolerance=tolerance, folder=target
    )
    summary = summarise(evaluation)
    return Evaluated(evaluation, summary, _write(evaluation, summary, target, opened, pictures=pictures))


def choose_cases(dataset: DataSet, split: Split | None, part: str) -> tuple[Case, ...]:
    """The cases with a truth that are to be evaluated.

    Raises:
        UserError: there are none.
    """
    names = dataset.names if split is None or part == "all" else split.parts[part]
    cases = tuple(case for case in dataset.select(names) if case.label is not None)
    if not cases:
        which = "the data set" if split is None else f"part {part} of the split"
        raise UserError(f"{dataset.name}: no case of {which} has a label; expected a truth to evaluate with")
    return cases


def score_cases(
    dataset: DataSet,
    cases: Sequence[Case],
    masks: Mapping[str, Path],
    *,
    split: Split | None,
    name: str,
    part: str,
    tolerance: float,
    folder: Path,
    model: str | None = None,
) -> Evaluation:
    """Scores of all cases that have a mask.

    Args:
        dataset: with the truth.
        cases: to be evaluated.
        masks: case -> file; a case without one is listed as missing.
        split: that training used, if known.
        name: of the evaluation.
        part: of the split, or "all".
        tolerance: of the surface Dice.
        folder: that paths of masks are noted relative to.
        model: hash of the network that predicted.
    """
    of_split = {name: which for which, names in split.parts.items() for name in names} if split else {}
    pairs = [(case, read_pair(masks[case.name], case, dataset)) for case in cases if case.name in masks]
    known = all(grid.spacing_known for _, (_, _, grid) in pairs)
    scored = tuple(
        CaseScores(
            case=case.name,
            patient=case.patient,
            spacing=grid.spacing if grid.spacing_known else None,
            part=of_split.get(case.name, ""),
            structures=measure(
                predicted,
                truth,
                structures=dataset.labels.structures,
                spacing=grid.spacing if known else (1.0, 1.0, 1.0),
                tolerance=tolerance,
                volumes=known,
            ),
            mask=_relative(masks[case.name], folder),
        )
        for case, (predicted, truth, grid) in pairs
    )
    return Evaluation(
        name=name,
        data=dataset.name,
        part=part,
        unit="mm" if known else "voxel",
        tolerance=tolerance,
        structures=tuple(dataset.labels.structures),
        cases=scored,
        missing=tuple(case.name for case in cases if case.name not in masks),
        model=model,
    )


def _write(evaluation: Evaluation, summary: Summary, folder: Path, dataset: DataSet, *, pictures: bool) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{evaluation.name}.json"
    written = [file.with_name(f"{evaluation.name}-summary.csv")]
    write_atomic(written[0], summary_csv(summary).encode())
    if pictures:
        written.append(file.with_name(f"{evaluation.name}-volumes.png"))
        write_atomic(written[-1], to_png(bland_altman_figure(evaluation)))
        for which, figure in case_sheets(evaluation, dataset, folder):
            written.append(file.with_name(f"{evaluation.name}-{which}.png"))
            write_atomic(written[-1], to_png(figure, dpi=110))
    notes = list(warnings(evaluation, summary))
    write_evaluation(evaluation, file, more={"summary": dataclasses.asdict(summary), "notes": notes})
    return [file, file.with_name(f"{evaluation.name}.csv"), *written]


def _relative(path: Path, folder: Path) -> str:
    """From one to the other, without naming what lies above both."""
    return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()
