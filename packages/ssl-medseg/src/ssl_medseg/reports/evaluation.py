"""Compare masks with reference labels, by case and structure, in mm and mL (`ssl-medseg evaluate`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from contrastive_core.app.report.figures import to_png
from contrastive_core.errors import UserError
from contrastive_core.text import several
from contrastive_core.training.files import check_space, write_atomic
from contrastive_core.training.names import as_file_name, check_file_name
from contrastive_core.training.outputs import Outputs, run_files
from ssl_medseg.datasets.dataset import DataSet
from ssl_medseg.datasets.open import open_with
from ssl_medseg.datasets.options import DataOptions
from ssl_medseg.datasets.splits import Split, read_split
from ssl_medseg.evaluation.cases import check_labels, choose_cases, find_masks, score_cases, untrained_notes
from ssl_medseg.evaluation.plots import bland_altman_figure
from ssl_medseg.evaluation.results import Evaluation, write_evaluation
from ssl_medseg.evaluation.summary import Summary, summarise, summary_csv
from ssl_medseg.evaluation.text import table, warnings
from ssl_medseg.io.file_types import is_dicom
from ssl_medseg.models.model_folder import load_segmenter
from ssl_medseg.prediction import InferenceOptions, bytes_of_masks, is_model, predict_cases
from ssl_medseg.reports.overlay import case_sheets
from ssl_medseg.reports.used_cases import (
    Part,
    Uses,
    by_content,
    images_seen,
    own_split,
    split_of_masks,
    split_of_run,
)

_OPENING = DataOptions()


@dataclass(frozen=True)
class Evaluated:
    """Result of an evaluation and its files; `str` returns the text that the command prints.

    Attributes:
        evaluation: All scores.
        summary: Summary over the cases.
        written: JSON, CSV files and pictures.
        failed: Case -> reason, for cases that could not be segmented or compared.
        notes: Sentences about cases whose files training used under another name or part.
    """

    evaluation: Evaluation
    summary: Summary
    written: list[Path]
    failed: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def __str__(self) -> str:
        return "\n".join(
            [
                *table(self.evaluation, self.summary),
                "",
                *(f"note: {text}" for text in (*self.notes, *warnings(self.evaluation, self.summary))),
                *(f"failed: {case}: {reason}" for case, reason in self.failed.items()),
                "",
                *(f"written: {file}" for file in self.written),
            ]
        )


def evaluate(
    predicted: Path,
    data: str,
    *,
    split: Path | None = None,
    part: Part = "test",
    tolerance: float = 2.0,
    name: str | None = None,
    out: Path | None = None,
    pictures: bool = True,
    opening: DataOptions = _OPENING,
    inference: InferenceOptions = InferenceOptions(),  # noqa: B008 - frozen
    overwrite: bool = False,
) -> Evaluated:
    """Compare masks with reference labels: Dice, HD95, ASSD, surface Dice and volumes, by case and structure.

    All scores are computed on the original grid of the images, with MONAI's metrics and the voxel size of the file. If
    the voxel size is unknown (form codes of 0, or an identity affine without a unit), distances are in voxels and there
    are no volumes in mL. A structure that is absent from truth, prediction or both has no distances; the summary counts
    such cases separately.

    The command writes ``NAME.json`` with every number, ``NAME.csv`` with a row per case and structure,
    ``NAME-summary.csv`` (mean, sd, median, quartiles, n, n_missing), ``NAME-volumes.png`` (Bland-Altman plot), and
    pictures of the best, the median and the worst case with mask overlays.

    Args:
        predicted: Folder with a mask per case, named like the case, as written by `ssl-medseg predict`; or a run folder
            or model folder, whose segmenter first predicts the cases.
        data: Data set with the reference labels.
        split: Split file of the training, used to exclude cases with labels used in training from the summary; by
            default that of the run. If the data set is not that of the run, all cases are evaluated. Images used in
            training are recognised by their voxels, also under another name, in another format or orientation; for
            masks, by the hashes that `predict` stores next to them.
        part: Part of the split to evaluate, or all for every case with a label. Without a split, all cases are
            evaluated.
        tolerance: Tolerance of the surface Dice in mm, or in voxels if the voxel size is unknown.
        name: Name of the output files; by default the names of data set and part.
        out: Folder for the results; by default ``evaluation`` in the folder of the masks or the run, where `report`
            finds it.
        pictures: Draw pictures of cases and the Bland-Altman plot.
        opening: Options for opening the data set.
        inference: Batch size and device, for a model.
        overwrite: Whether to replace files that this command did not write.

    Returns:
        The scores, their summary and the files.
    """
    if tolerance <= 0:
        raise UserError(f"tolerance is {tolerance:g}; expected a tolerance above 0")
    folder = Path(predicted)
    model = is_model(folder)
    if split is not None or (model and own_split(folder) is not None):
        opening = dataclasses.replace(opening, allow_unlabelled=True)  # the split states which cases have no label
    dataset = open_with(data, opening)
    if model and len(dataset.channels) > 1:  # masks are on the grid of the model's first channel
        settings = load_segmenter(folder, device="cpu").preprocessing
        dataset = dataset.with_channels(settings.channels, settings.channel_numbers)
    parts: Split | None
    notes: list[str]
    if split is not None:
        parts, scope, notes = read_split(split, dataset), part, []
    elif model:
        parts, scope, notes = split_of_run(folder, dataset, part)
    else:
        (parts, notes), scope = split_of_masks(folder, dataset), "all"
    cases = choose_cases(dataset, parts, scope)
    if parts is not None:
        seen = images_seen(folder) if model else []
        parts, more = by_content(parts, cases, Uses.of_split(parts, split, seen))
        notes += more
    stem = name or as_file_name(f"{dataset.name}-{scope}", otherwise="scores")
    check_file_name(stem, what="name", source="--name")
    target = Path(out) if out is not None else folder / "evaluation"
    masks, failed = ({}, {}) if model else find_masks(folder, cases)
    if not all(map(is_dicom, masks.values())):
        notes += untrained_notes(check_labels(folder, dataset), dataset)
    targets = [target / f"{stem}{ending}" for ending in _ENDINGS]
    targets += [target / f"{stem}-masks" / f"{case.name}.nii.gz" for case in cases if model]
    input_files = [
        *masks.values(),
        *(path for case in cases for path in (*case.image.paths, case.label) if path is not None),
    ]
    input_files += [*(run_files(folder) if model else ()), *filter(None, [split])]
    n_bytes = _ROW * len(cases) + (_PICTURES if pictures else 0)
    n_bytes += bytes_of_masks(case.image for case in cases) if model else 0
    check_space(target, n_bytes, what=f"the results of {several(len(cases), 'case')}", files=len(targets))
    with Outputs(targets, command="ssl-medseg evaluate", inputs=input_files, folder=target, overwrite=overwrite):
        if model:
            predictions = predict_cases(folder, dataset, cases, target / f"{stem}-masks", inference=inference)
            masks, failed = predictions.masks, predictions.failed
            notes += untrained_notes(predictions.labels, dataset)
            if parts is None:  # the model itself lists the cases whose labels it was trained with
                parts = Split(labelled=tuple(case.name for case in cases if case.name in predictions.labelled))
        evaluation = score_cases(
            dataset, cases, masks, split=parts, name=stem, part=scope, tolerance=tolerance, folder=target
        )
        summary = summarise(evaluation)
        files = _write(evaluation, summary, target, dataset, notes=notes, pictures=pictures)
    if parts is not None and (model or split is not None) and scope in ("test", "all"):
        bare = set(parts.test).difference(case.name for case in cases)
        failed = {**failed, **dict.fromkeys(sorted(bare), "has no label to compare with")}
    return Evaluated(evaluation, summary, files, failed, notes)


_ROW, _PICTURES = 2_000, 1_000_000  # bytes of a case in JSON and CSV files, and of the pictures
_ENDINGS = (".json", ".csv", "-summary.csv", "-volumes.png", "-best.png", "-median.png", "-worst.png")


def _write(
    evaluation: Evaluation, summary: Summary, folder: Path, dataset: DataSet, *, notes: Sequence[str], pictures: bool
) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{evaluation.name}.json"
    files = [file.with_name(f"{evaluation.name}-summary.csv")]
    write_atomic(files[0], summary_csv(summary).encode())
    if pictures:
        if evaluation.unit == "mm":  # without a voxel size there are no volumes to plot
            files.append(file.with_name(f"{evaluation.name}-volumes.png"))
            write_atomic(files[-1], to_png(bland_altman_figure(evaluation)))
        for rank, figure in case_sheets(evaluation, dataset, folder):
            files.append(file.with_name(f"{evaluation.name}-{rank}.png"))
            write_atomic(files[-1], to_png(figure, dpi=110))
    remarks = [*notes, *warnings(evaluation, summary)]
    write_evaluation(evaluation, file, more={"summary": dataclasses.asdict(summary), "notes": remarks})
    return [file, file.with_name(f"{evaluation.name}.csv"), *files]
