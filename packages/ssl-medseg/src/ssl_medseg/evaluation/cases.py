"""Match masks with the cases of a data set and score them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from contrastive_core.errors import UserError
from contrastive_core.text import several
from contrastive_core.training.documents import reading
from ssl_medseg.datasets.dataset import Case, DataSet
from ssl_medseg.datasets.splits import Split
from ssl_medseg.evaluation.metrics import measure
from ssl_medseg.evaluation.results import CaseScores, Evaluation
from ssl_medseg.io import Grid, grid_difference, read_grid, read_label
from ssl_medseg.io.file_types import DICOM_ENDINGS, is_dicom, is_image, stem
from ssl_medseg.io.label_map import LabelMap
from ssl_medseg.io.mask import PREDICTIONS, read_predictions
from ssl_medseg.preprocessing.cases import read_truth

_NAMED = 5


def find_masks(folder: Path, cases: Iterable[Case]) -> tuple[dict[str, Path], dict[str, str]]:
    """Find the masks of cases in a folder; a mask has the name of its case and the ending of any image format.

    Masks may also be DICOM segmentations, or .seg.nrrd files of 3D Slicer. Masks that `predict` wrote to subfolders, as
    for the images of a folder ``images``, are found by its predictions.json.

    Masks that an earlier run of `predict` wrote, according to predictions.json, are not used.

    Returns:
        Case -> file, and case -> reason why its file is not used.

    Raises:
        UserError: The folder does not exist, contains two files for a case, or contains no mask of any case.
    """
    if not folder.is_dir():
        raise UserError(
            f"{folder}: is not a folder; expected a folder with one predicted mask per case, named like the case"
        )
    files: dict[str, list[Path]] = {}
    old, errors, inside = _of_predict(folder)
    for path in (*sorted(folder.iterdir()), *(folder / mask for mask in inside)):
        if path.is_file() and not path.name.startswith(".") and (is_image(path) or is_dicom(path)):
            name = stem(path.with_suffix("") if path.suffix.lower() in DICOM_ENDINGS else path)
            files.setdefault(name.removesuffix(".seg"), []).append(path)
    masks: dict[str, Path] = {}
    reasons: dict[str, str] = {}
    names = [case.name for case in cases]
    for name in names:
        paths = [path for path in files.get(name, []) if path.relative_to(folder).as_posix() not in old]
        if not paths and name in files:
            reasons[name] = errors.get(
                name, "its mask was not written by the last run of predict, which did not include its image"
            )
        if len(paths) > 1:
            raise UserError(
                f"{folder}: contains {len(paths)} files for {name} "
                f"({', '.join(p.relative_to(folder).as_posix() for p in paths)}); expected one mask per case. Remove "
                "the others"
            )
        if paths:
            masks[name] = paths[0]
    if not masks and reasons:
        raise UserError(
            f"{folder}: the last run of predict wrote no mask for the cases to evaluate ("
            + "; ".join(f"{name}: {reason}" for name, reason in list(reasons.items())[:_NAMED])
            + "); predict again"
        )
    if not masks:
        found = f"contains {several(len(files), 'image')}, but none with the name of a case" if files else "is empty"
        if not files and any(folder.iterdir()):
            found = "contains no masks"
        raise UserError(
            f"{folder}: {found}; expected a mask for each case to evaluate, such as {names[0]}.nii.gz, as `ssl-medseg "
            "predict` writes them"
        )
    return masks, reasons


def _of_predict(folder: Path) -> tuple[set[str], dict[str, str], list[str]]:
    """Return what predictions.json states: files of earlier runs, case -> why it failed, and masks in subfolders."""
    if not (content := read_predictions(folder)):
        return set(), {}, []
    with reading(folder / PREDICTIONS, "is damaged", "expected a file written by `ssl-medseg predict`; predict again"):
        old = set(content.get("stale", ()))
        failed = {PurePosixPath(case["image"]).name: str(case["error"]) for case in content["cases"] if case["error"]}
        masks = {*(str(case.get("mask") or "") for case in content["cases"]), *old}
        inside = sorted(mask for mask in masks if "/" in mask and not {"..", "/"} & {*PurePosixPath(mask).parts})
    return (
        old,
        {
            name: f"its mask was not written by the last run of predict, which failed for this case: {error}"
            for name, error in failed.items()
        },
        inside,
    )


def check_labels(folder: Path, dataset: DataSet) -> LabelMap | None:
    """Refuse masks of `predict` in which a value stands for another structure than in the data set.

    DICOM segmentations are matched by the names of their segments, so their folders may have other values.

    Returns:
        The label map of the masks; None if `predict` did not write them.

    Raises:
        UserError: A structure has another value in predictions.json than in the data set.
    """
    if (content := read_predictions(folder).get("labels")) is None:
        return None
    with reading(folder / PREDICTIONS, "is damaged", "expected a file written by `ssl-medseg predict`; predict again"):
        labels = LabelMap.from_json(content)
    values = {name.casefold(): value for name, value in zip(dataset.labels.names, dataset.labels.values, strict=True)}
    pairs = zip(labels.names, labels.values, strict=True)
    if any(values.get(name.casefold(), value) != value for name, value in pairs):
        raise UserError(
            f"{folder}: the masks were written for {labels}, but {dataset.name} has {dataset.labels}; expected the "
            "same value for a structure. Pass the label map of the training (--label-map), if it is that of the labels"
        )
    return labels


def untrained_notes(labels: LabelMap | None, dataset: DataSet) -> list[str]:
    """Note the structures of a data set that are not in the label map of a model, if it is known."""
    if labels is None:
        return []
    own = {name.casefold() for name in labels.names}
    return [
        f"{name}: the model was not trained for this structure, so it is in none of the masks. Where the label "
        "contains it, its Dice is 0."
        for name, value in zip(dataset.labels.names, dataset.labels.values, strict=True)
        if name.casefold() not in own and value not in labels.values
    ]


def read_pair(mask: Path, case: Case, dataset: DataSet) -> tuple[NDArray[np.uint8], NDArray[np.uint8], Grid]:
    """Read the predicted classes, the true classes and the grid of the image, which both must have.

    Returns:
        Predicted and true classes uint8 ``[X, Y, Z]``, and the grid.

    Raises:
        UserError: A file cannot be read or contains an unknown value, or the grids differ.
    """
    if case.label is None:
        raise UserError(f"{case.name}: has no label; expected a reference label to evaluate the mask with")
    image = read_grid(case.image)
    truth = read_truth(dataset, case, image)
    prediction, grid = read_label(mask, dataset.labels, image=image)
    difference = grid_difference(grid, image)
    if difference:
        raise UserError(
            f"{mask}: has a different grid from the image of {case.name} ({difference}); expected a mask on the grid "
            "of the image, as `ssl-medseg predict` writes it. If the mask is the label of a data set, `ssl-medseg "
            "check --repair grid` puts it on that grid"
        )
    return prediction, truth, image


def choose_cases(dataset: DataSet, split: Split | None, part: str) -> tuple[Case, ...]:
    """Select the cases of a part that have a reference label.

    Args:
        dataset: Data set.
        split: Split, or None to select from all cases.
        part: Part of the split, or "all".

    Raises:
        UserError: No case of the part has a label.
    """
    names = dataset.names if split is None or part == "all" else split.parts[part]
    cases = tuple(case for case in dataset.select(names) if case.label is not None)
    if not cases:
        which = "the data set" if split is None else f"part {part} of the split"
        raise UserError(f"{dataset.name}: no case of {which} has a label; expected reference labels to evaluate with")
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
) -> Evaluation:
    """Score all cases that have a mask.

    Args:
        dataset: Data set with the reference labels.
        cases: Cases to evaluate.
        masks: Case -> file of its mask; cases without a mask are listed as missing.
        split: Split used in training, if known.
        name: Name of the evaluation.
        part: Part of the split, or "all".
        tolerance: Tolerance of the surface Dice, in mm or, if any voxel size is unknown, in voxels.
        folder: Folder to which the stored paths of masks are relative.

    Returns:
        Evaluation with the scores of every case and structure.

    Raises:
        UserError: A mask or label cannot be read, or the grid of a mask differs from that of its image.
    """
    of_split = {name: which for which, names in split.parts.items() for name in names} if split else {}
    pairs = [(case, read_pair(masks[case.name], case, dataset)) for case in cases if case.name in masks]
    sizes_known = all(grid.size_known for _, (_, _, grid) in pairs)
    scores = tuple(
        CaseScores(
            case=case.name,
            patient=case.patient,
            phase=case.phase,
            spacing=grid.spacing if grid.size_known else None,
            part=of_split.get(case.name, ""),
            structures=measure(
                prediction,
                truth,
                structures=dataset.labels.structures,
                axes=grid.affine[:3, :3] if sizes_known else None,
                tolerance=tolerance,
            ),
            mask=_relative(masks[case.name], folder),
        )
        for case, (prediction, truth, grid) in pairs
    )
    return Evaluation(
        name=name,
        data=dataset.name,
        part=part,
        unit="mm" if sizes_known else "voxel",
        tolerance=tolerance,
        structures=tuple(dataset.labels.structures),
        cases=scores,
        missing=tuple(case.name for case in cases if case.name not in masks),
    )


def _relative(path: Path, folder: Path) -> str:
    """Return a path relative to a folder, so that the names of folders above both are not stored."""
    return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()
