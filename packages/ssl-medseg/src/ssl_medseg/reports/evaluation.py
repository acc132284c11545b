"""Compare masks with reference labels, by case and structure, in mm and mL (`ssl-medseg evaluate`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from contrastive_core.app.report.figures import to_png
from contrastive_core.errors import UserError
from contrastive_core.text import several, some_of
from contrastive_core.training import config
from contrastive_core.training.documents import read_object, reading
from contrastive_core.training.files import check_space, write_atomic
from contrastive_core.training.names import as_file_name, check_file_name
from contrastive_core.training.outputs import Outputs, run_files
from ssl_medseg.datasets.dataset import Case, DataSet
from ssl_medseg.datasets.open import open_with
from ssl_medseg.datasets.options import DataOptions
from ssl_medseg.datasets.splits import Split, fingerprint, read_fingerprints, read_split
from ssl_medseg.evaluation.cases import check_labels, choose_cases, find_masks, score_cases
from ssl_medseg.evaluation.plots import bland_altman_figure
from ssl_medseg.evaluation.results import Evaluation, write_evaluation
from ssl_medseg.evaluation.summary import Summary, summarise, summary_csv
from ssl_medseg.evaluation.text import table, warnings
from ssl_medseg.io.file_types import is_dicom
from ssl_medseg.models.model_folder import load_segmenter
from ssl_medseg.prediction import InferenceOptions, bytes_of_masks, is_model, predict_cases
from ssl_medseg.reports.overlay import case_sheets
from ssl_medseg.reports.run_folder import split_places

_OPENING = DataOptions()

Part = Literal["test", "validation", "labelled", "unlabelled", "all"]


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
                *(f"failed: {case}: {why}" for case, why in self.failed.items()),
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
            training are recognised by their content, also under another name.
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
    opened = open_with(data, opening)
    if model and len(opened.channels) > 1:  # masks are on the grid of the model's first channel
        settings = load_segmenter(folder, device="cpu").preprocessing
        opened = opened.with_channels(settings.channels, settings.channel_numbers)
    chosen: Split | None
    notes: list[str] = []
    if split is not None:
        chosen, shown = read_split(split, opened), part
    else:
        chosen, shown, notes = _of_run(folder, opened, part) if model else (None, "all", [])
    cases = choose_cases(opened, chosen, shown)
    if chosen is not None:
        chosen, more = _by_content(chosen, cases, _uses(chosen, split, cases_seen(folder) if model else {}))
        notes += more
    stem = name or as_file_name(f"{opened.name}-{shown}", otherwise="scores")
    check_file_name(stem, what="name", source="--name")
    target = Path(out) if out is not None else folder / "evaluation"
    masks, failed = ({}, {}) if model else find_masks(folder, cases)
    if not all(map(is_dicom, masks.values())):
        check_labels(folder, opened)
    planned = [target / f"{stem}{ending}" for ending in _ENDINGS]
    planned += [target / f"{stem}-masks" / f"{case.name}.nii.gz" for case in cases if model]
    read = [*masks.values(), *(path for case in cases for path in (*case.image.paths, case.label) if path is not None)]
    read += [*(run_files(folder) if model else ()), *filter(None, [split])]
    needed = _ROW * len(cases) + (_PICTURES if pictures else 0)
    needed += bytes_of_masks(case.image for case in cases) if model else 0
    check_space(target, needed, what=f"the results of {several(len(cases), 'case')}", files=len(planned))
    with Outputs(planned, command="ssl-medseg evaluate", inputs=read, folder=target, overwrite=overwrite):
        if model:
            done = predict_cases(folder, opened, cases, target / f"{stem}-masks", inference=inference)
            masks, failed = done.masks, done.failed
            if chosen is None:  # the model itself lists the cases whose labels it was trained with
                chosen = Split(labelled=tuple(case.name for case in cases if case.name in done.labelled))
        evaluation = score_cases(
            opened, cases, masks, split=chosen, name=stem, part=shown, tolerance=tolerance, folder=target
        )
        summary = summarise(evaluation)
        written = _write(evaluation, summary, target, opened, notes=notes, pictures=pictures)
    if chosen is not None and shown in ("test", "all"):
        bare = set(chosen.test).difference(case.name for case in cases)
        failed = {**failed, **dict.fromkeys(sorted(bare), "has no label to compare with")}
    return Evaluated(evaluation, summary, written, failed, notes)


def _of_run(run: Path, dataset: DataSet, part: Part) -> tuple[Split | None, Part, list[str]]:
    """Return the split of a run and the requested part if it has these data, otherwise all cases; with notes.

    Data are identified by content: a data set with the same names but different files is another data set, and a file
    used in training is recognised under any name. The split is None for a model outside a run folder.
    """
    seen, file = cases_seen(run), own_split(run)
    here = set(dataset.names)
    hashes = {name: fingerprint(dataset.case(name), label=False)["image"] for name in seen if name in here}
    changed = [name for name, image in hashes.items() if image != seen[name]["image"]]
    if file is not None and len(hashes) == len(seen) and not changed:
        return read_split(file, dataset), part, []
    if not seen:
        return None, "all", []
    part_of = _part_of_image(seen.values())
    parts: dict[str, list[str]] = {"labelled": []}
    for case in dataset.cases:
        parts.setdefault(part_of.get(fingerprint(case, label=False)["image"], "test"), []).append(case.name)
    found = {name: tuple(cases) for name, cases in parts.items()}
    split = Split(
        found["labelled"],
        validation=found.get("validation", ()),
        test=found.get("test", ()),
        unlabelled=found.get("unlabelled", ()),
    )
    note = (
        f"{several(len(changed), 'case')} of {dataset.name} had another image in training ({some_of(changed)}), so all "
        "cases are evaluated, and images used in training are recognised by their content."
    )
    return split, "all", [note] if changed else []


def _uses(split: Split, file: Path | None, seen: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Return hash of an image -> part, as the run recorded it, or the split file for images the run does not list."""
    prints = {} if file is None else read_fingerprints(file)
    stated = [{"part": part, **prints[name]} for part, names in split.parts.items() for name in names if name in prints]
    return _part_of_image(stated) | _part_of_image(seen.values())


def _part_of_image(known: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """Return hash of an image -> part; of several parts the one that spoils a score most."""
    order = ("test", "unlabelled", "validation", "labelled")
    listed = [found for found in known if "image" in found and found["part"] in order]
    return {found["image"]: found["part"] for found in sorted(listed, key=lambda found: order.index(found["part"]))}


def _by_content(split: Split, cases: Sequence[Case], uses: Mapping[str, str]) -> tuple[Split, list[str]]:
    """Move cases to the part in which training used their images, for files that were exchanged or copied; with notes.

    Args:
        split: Parts by name.
        cases: Cases to evaluate.
        uses: Hash of an image -> its part in training.
    """
    named = {name: part for part, names in split.parts.items() for name in names}
    by_content = {case.name: uses.get(fingerprint(case, label=False)["image"]) for case in cases} if uses else {}
    moved = {name: part for name, part in by_content.items() if part and part != named.get(name)}
    parts = {
        part: (*(n for n in names if n not in moved), *(n for n, to in moved.items() if to == part))
        for part, names in split.parts.items()
    }
    notes = [
        f"By its name, {name} belongs to the part {named.get(name, '(none)')}, but its image was in the part {part} in "
        "training, and counts as such: files were exchanged or copied, or the split is not that of the training."
        for name, part in moved.items()
    ]
    return dataclasses.replace(split, **parts), notes  # type: ignore[arg-type]


def cases_seen(run: Path) -> dict[str, dict[str, str]]:
    """Read case -> part and file hashes of the data used in training, or in the last stage of a run with stages."""
    files = [run / "data.json", run / "selftrain" / "data.json", run.parent / "data.json"]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        return {}
    with reading(file, "does not list the data of a run", "restore it from a copy"):
        cases = read_object(file).get("cases", {})
        return {name: found for name, found in cases.items() if isinstance(found, dict) and "image" in found}


_ROW, _PICTURES = 2_000, 1_000_000  # bytes of a case in JSON and CSV files, and of the pictures
_ENDINGS = (".json", ".csv", "-summary.csv", "-volumes.png", "-best.png", "-median.png", "-worst.png")


def own_split(run: Path) -> Path | None:
    """Return the split file that a run was trained with, if it still exists."""
    settings = run / "config.yaml"
    if not settings.is_file():
        return None
    named = config.read(settings).get("split")
    return next((file for file in split_places(run, named) if file.is_file()), None) if named else None


def _write(
    evaluation: Evaluation, summary: Summary, folder: Path, dataset: DataSet, *, notes: Sequence[str], pictures: bool
) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{evaluation.name}.json"
    written = [file.with_name(f"{evaluation.name}-summary.csv")]
    write_atomic(written[0], summary_csv(summary).encode())
    if pictures:
        if evaluation.unit == "mm":  # without a voxel size there are no volumes to plot
            written.append(file.with_name(f"{evaluation.name}-volumes.png"))
            write_atomic(written[-1], to_png(bland_altman_figure(evaluation)))
        for which, figure in case_sheets(evaluation, dataset, folder):
            written.append(file.with_name(f"{evaluation.name}-{which}.png"))
            write_atomic(written[-1], to_png(figure, dpi=110))
    said = [*notes, *warnings(evaluation, summary)]
    write_evaluation(evaluation, file, more={"summary": dataclasses.asdict(summary), "notes": said})
    return [file, file.with_name(f"{evaluation.name}.csv"), *written]
