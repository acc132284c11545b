"""Rank unlabelled cases by the uncertainty of the model (`ssl-medseg next`)."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from contrastive_core.errors import UserError
from contrastive_core.text import several, some_of
from contrastive_core.training.files import write_atomic
from contrastive_core.training.outputs import Outputs, run_files
from contrastive_core.training.progress import track
from contrastive_core.training.tables import safe_cell
from ssl_medseg.datasets import DataOptions, open_with, read_split
from ssl_medseg.datasets.dataset import Case, DataSet
from ssl_medseg.evaluation.uncertainty import agreement, quality
from ssl_medseg.io import read_volume
from ssl_medseg.io.file_types import without_paths
from ssl_medseg.io.volume import Volume
from ssl_medseg.models.model_folder import Segmenter, load_segmenter
from ssl_medseg.prediction import InferenceOptions, Segmented, segment
from ssl_medseg.reports.used_cases import own_split, split_of_run

_COMMAND = "ssl-medseg next"


@dataclass(frozen=True)
class RankedCase:
    """An unlabelled case in the ranking.

    Attributes:
        case: Name of the case.
        patient: Name of the patient.
        quality: Mean of `mirrored` and `baseline`, in [0, 1]; label the cases with the lowest values first.
        mirrored: Agreement of the predictions of the volume and its mirror images (or quarter turns, see `next_cases`),
            averaged over structures.
        baseline: Agreement of the prediction with that of the baseline of the run; None without a baseline.
        structures: The same for each structure; None if none of the predictions contains it.
        error: Reason why there is no prediction.
    """

    case: str
    patient: str
    quality: float | None = None
    mirrored: float | None = None
    baseline: float | None = None
    structures: dict[str, float | None] | None = None
    error: str = ""


@dataclass(frozen=True)
class Ranking:
    """Ranking of cases.

    Attributes:
        out: Folder of the ranking.
        cases: The ranked cases, most uncertain first.
        shown: Number of cases to print.
        left_out: Cases that the run used without labels and that have labels by now.
    """

    out: Path
    cases: tuple[RankedCase, ...]
    shown: int
    left_out: tuple[str, ...] = ()

    def __str__(self) -> str:
        ranked = [case for case in self.cases if case.quality is not None]
        failed = [case for case in self.cases if case.quality is None]
        lines = [f"{self.out}: {several(len(ranked), 'unlabelled case')}, most uncertain first"]
        width = max((len(case.case) for case in ranked), default=4)
        lines.append(f"  {'case':{width}}  quality  mirrored  baseline")
        for case in ranked[: self.shown]:
            other = "       -" if case.baseline is None else f"{case.baseline:8.2f}"
            lines.append(f"  {case.case:{width}}  {case.quality:7.2f}  {case.mirrored:8.2f}  {other}")
        if len(ranked) > self.shown:
            lines.append(f"  and {len(ranked) - self.shown:,} more in next.csv")
        lines += [f"  {case.case}: no prediction: {case.error}" for case in failed]
        if self.left_out:
            verb = "is" if len(self.left_out) == 1 else "are"
            lines.append(
                f"  {several(len(self.left_out), 'case')} with a label {verb} left out: {some_of(self.left_out)}"
            )
        lines.append("Label the first ones, add their labels to the data set, and train again.")
        return "\n".join(lines)


def next_cases(
    model: str,
    data: str,
    out: Path,
    *,
    split: Path | None = None,
    number: int = 10,
    pictures: bool = True,
    overwrite: bool = False,
    inference: InferenceOptions = InferenceOptions(),  # noqa: B008 - frozen
    opening: DataOptions = DataOptions(),  # noqa: B008
) -> Ranking:
    """Rank unlabelled cases by uncertainty, to choose which ones to label next.

    The model segments every volume and its mirror images (slices rotated by quarter turns, if structures are named
    after a side of the body). If these predictions disagree, the model is uncertain, and a label for the case is most
    informative. If the model is a folder written by `ssl-medseg run`, the prediction is also compared with that of the
    baseline, because cases that self-training changed much deserve a look. Agreement is measured by Dice:

        quality = mean(pairwise Dice of these predictions, Dice of prediction and baseline)

    The output folder contains ``next.csv`` and ``next.json`` with all cases, and a picture of each of the first cases
    with its mask. Labels are never opened.

    Args:
        model: Run folder or model folder to use.
        data: Data set: a folder in one of the layouts listed by `check`, or a CSV file.
        out: Folder for the ranking.
        split: Split file whose unlabelled cases are ranked. By default the split of the run, whose cases are recognised
            by their content if files were renamed, and of which those with labels are left out unless all have one; for
            other data and models without a run, every case that has no label and was not used as a labelled case in
            training.
        number: Number of cases to print and draw.
        pictures: Draw the first cases with their masks.
        overwrite: Whether to replace files that this command did not write.
        inference: Batch size and device.
        opening: Options for opening the data set.

    Returns:
        The ranking.

    Raises:
        UserError: There is no model, there are no unlabelled cases, or the model was trained for other structures.
    """
    if number < 1:
        raise UserError(f"number is {number}; expected at least 1")
    run, out = Path(model), Path(out).expanduser()
    dataset = open_with(data, replace(opening, allow_unlabelled=True))
    segmenter = load_segmenter(model, device=inference.device)
    settings = segmenter.preprocessing
    dataset = dataset.with_channels(settings.channels, settings.channel_numbers)
    baseline = _baseline(run, segmenter, device=inference.device)
    cases, left_out = _unlabelled(dataset, segmenter, run, split)
    pairs: list[tuple[RankedCase, Case]] = []
    for case in track(cases, total=len(cases), what="volumes"):
        try:
            ranked = _examine(case, read_volume(case.image), segmenter, baseline, inference)
        except UserError as error:
            ranked = RankedCase(case.name, case.patient, error=without_paths(error, case.image.paths))
        pairs.append((ranked, case))
    pairs.sort(key=lambda pair: (pair[0].quality is None, pair[0].quality or 0.0, pair[0].case))
    top = [(rank, case) for rank, case in pairs[:number] if rank.quality is not None] if pictures else []
    sheets = {case.name: out / f"{place:03d}-{case.name}.png" for place, (_, case) in enumerate(top, 1)}
    ranking = Ranking(out, tuple(rank for rank, _ in pairs), number, left_out)
    targets = [out / "next.json", out / "next.csv", *sheets.values()]
    sources = [path for case in dataset.cases for path in (*case.image.paths, case.label) if path is not None]
    sources += [*run_files(model), *filter(None, [split])]
    with Outputs(targets, command=_COMMAND, inputs=sources, folder=out, overwrite=overwrite):
        out.mkdir(parents=True, exist_ok=True)
        card = {"format": "ssl-medseg ranking 1", "cases": [asdict(case) for case in ranking.cases]}
        write_atomic(out / "next.json", (json.dumps(card, indent=1) + "\n").encode())
        write_atomic(out / "next.csv", _csv(ranking, segmenter.labels.structures).encode())
        for _, case in top:
            _draw(case, segmenter, sheets[case.name], inference)
    return ranking


def _baseline(run: Path, segmenter: Segmenter, *, device: str) -> Segmenter | None:
    """Load the baseline of a run with several stages, if it exists and has the same structures."""
    folder = run / "baseline"
    if not (folder / "model" / "model.json").is_file():
        return None
    baseline = load_segmenter(folder, device=device)
    return baseline if baseline.labels == segmenter.labels else None


def _unlabelled(
    dataset: DataSet, segmenter: Segmenter, run: Path, split: Path | None
) -> tuple[tuple[Case, ...], tuple[str, ...]]:
    """Return the cases to rank, and the names of those left out because they have been labelled since the training."""
    if segmenter.labels != dataset.labels and dataset.labelled:
        raise UserError(
            f"{dataset.name} has the structures {dataset.labels}, but the model was trained for {segmenter.labels}; "
            "expected the same structures. Pass the label map of the training (--label-map)"
        )
    parts, part = (read_split(split, dataset), "") if split else split_of_run(run, dataset, "unlabelled")[:2]
    if parts is not None and parts.unlabelled:
        unlabelled = dataset.select(parts.unlabelled)
        # In a data set with labels for all cases, the split alone states which ones count as unlabelled.
        if without_label := tuple(case for case in unlabelled if case.label is None):
            return without_label, tuple(case.name for case in unlabelled if case.label is not None)
        return unlabelled, ()
    if parts is not None and part != "all":
        raise UserError(f"{split or own_split(run)}: the split has no unlabelled cases; expected some to rank")
    # The data are others than those of the run, whose names mean nothing here.
    seen = set(segmenter.details.get("labelled", ())) if parts is None else {*parts.labelled, *parts.validation}
    cases = tuple(case for case in dataset.cases if case.label is None and case.name not in seen)
    if not cases:
        raise UserError(
            f"{dataset.name}: all {len(dataset)} cases have labels, so there is nothing to rank. Pass the split file "
            "of the training (--split) to rank its unlabelled cases"
        )
    return cases, ()


def _examine(
    case: Case, volume: Volume, segmenter: Segmenter, baseline: Segmenter | None, inference: InferenceOptions
) -> RankedCase:
    prediction = _segment(volume, segmenter, inference, uncertainty=True)
    structures = segmenter.labels.structures
    views = prediction.agreement or ()
    mirrored, between = quality(views), None
    if baseline is not None:
        before = _segment(volume, baseline, inference)
        between = quality(agreement([before.classes, prediction.classes], classes=len(structures) + 1))
    return RankedCase(
        case.name,
        case.patient,
        quality=mirrored if between is None else float(np.mean([mirrored, between])),
        mirrored=mirrored,
        baseline=between,
        structures=dict(zip(structures, views, strict=True)),
    )


def _segment(
    volume: Volume, segmenter: Segmenter, inference: InferenceOptions, *, uncertainty: bool = False
) -> Segmented:
    return segment(
        volume, segmenter.network, segmenter.preprocessing, batch_size=inference.batch_size,
        precision=inference.precision, refinement=segmenter.refinement, uncertainty=uncertainty,
        sided=bool(segmenter.labels.sided),
    )  # fmt: skip


def _csv(ranking: Ranking, structures: tuple[str, ...]) -> str:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["case", "patient", "quality", "mirrored", "baseline", *map(safe_cell, structures), "error"])
    for case in ranking.cases:
        views = case.structures or dict.fromkeys(structures)
        row = [case.quality, case.mirrored, case.baseline, *views.values()]
        numbers = ["" if value is None else f"{value:.4f}" for value in row]
        table.writerow([safe_cell(case.case), safe_cell(case.patient), *numbers, safe_cell(case.error)])
    return text.getvalue()


def _draw(case: Case, segmenter: Segmenter, target: Path, inference: InferenceOptions) -> None:
    from contrastive_core.app.report.figures import to_png  # noqa: PLC0415 - the ranking needs no matplotlib
    from ssl_medseg.reports.overlay import mask_sheet  # noqa: PLC0415

    volume = read_volume(case.image)
    prediction = _segment(volume, segmenter, inference)
    figure = mask_sheet(volume, prediction.classes, name=case.name, structures=segmenter.labels.structures)
    write_atomic(target, to_png(figure, dpi=110))
