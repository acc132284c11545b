"""Match masks with the cases of a data set and score them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from contrastive_core.errors import UserError
from contrastive_core.training.documents import read_json, reading
from ssl_medseg.datasets.dataset import Case, DataSet
from ssl_medseg.datasets.splits import Split
from ssl_medseg.evaluation.metrics import measure
from ssl_medseg.evaluation.results import CaseScores, Evaluation
from ssl_medseg.io import Grid, grid_difference, read_grid, read_label
from ssl_medseg.io.file_types import is_image, stem
from ssl_medseg.preprocessing.cases import read_truth

_NAMED = 5


def find_masks(folder: Path, cases: Iterable[Case]) -> tuple[dict[str, Path], dict[str, str]]:
    """Find the masks of cases in a folder: files named like the case, with any ending.

    Returns:
        Case -> file; and case -> the reason why its file is not used: predictions.json says that an earlier run of
        `predict` wrote it.

    Raises:
        UserError: The folder does not exist, holds two files for a case, or holds no mask at all.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: is no folder; expected predicted masks, one file per case, named like the case")
    files: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.is_file() and is_image(path):
            files.setdefault(stem(path), []).append(path)
    old, why = _stale(folder)
    found: dict[str, Path] = {}
    left: dict[str, str] = {}
    wanted = [case.name for case in cases]
    for name in wanted:
        paths = [path for path in files.get(name, []) if path.name not in old]
        if not paths and name in files:
            left[name] = why.get(
                name, "its mask is of an earlier run of predict, whose image was not among the last ones"
            )
        if len(paths) > 1:
            raise UserError(f"{folder}: has {len(paths)} files for {name} ({', '.join(p.name for p in paths)})")
        if paths:
            found[name] = paths[0]
    if not found and left:
        raise UserError(
            f"{folder}: holds no mask of the last run of predict for the cases to evaluate ("
            + "; ".join(f"{name}: {reason}" for name, reason in list(left.items())[:_NAMED])
            + "); predict again"
        )
    if not found:
        raise UserError(
            f"{folder}: none of its {len(files)} images is named like one of the cases to evaluate (such as "
            f"{wanted[0] if wanted else 'none'}); expected masks as `ssl-medseg predict` writes them"
        )
    return found, left


def _stale(folder: Path) -> tuple[set[str], dict[str, str]]:
    """Return the files of earlier runs according to predictions.json, and image -> reason of its failure."""
    file = folder / "predictions.json"
    if not file.is_file():
        return set(), {}
    content = read_json(file)
    with reading(file, "is damaged", "expected what `ssl-medseg predict` writes; predict again"):
        failed = {str(case["image"]): str(case["error"]) for case in content["cases"] if case["error"]}
        return set(content.get("stale", [])), {
            name: f"its mask is of an earlier run of predict; in the last one: {error}"
            for name, error in failed.items()
        }


def read_pair(mask: Path, case: Case, dataset: DataSet) -> tuple[NDArray[np.uint8], NDArray[np.uint8], Grid]:
    """Read predicted classes, true classes and the grid of the image, on which both lie.

    Raises:
        UserError: A file cannot be read or holds an unknown value, or the grids differ.
    """
    if case.label is None:
        raise UserError(f"{case.name}: has no label to evaluate with")
    image = read_grid(case.image)
    truth = read_truth(dataset, case, image)
    predicted, grid = read_label(mask, dataset.labels)
    difference = grid_difference(grid, image)
    if difference:
        raise UserError(
            f"{mask}: is on another grid than the image of {case.name} ({difference}); expected a mask on the grid of "
            "the image, as `ssl-medseg predict` writes it"
        )
    return predicted, truth, image


def choose_cases(dataset: DataSet, split: Split | None, part: str) -> tuple[Case, ...]:
    """Select the cases with a reference label that are to be evaluated.

    Raises:
        UserError: There are none.
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
) -> Evaluation:
    """Score all cases that have a mask.

    Args:
        dataset: Data set with the reference labels.
        cases: Cases to evaluate.
        masks: Case -> file; a case without one is listed as missing.
        split: Split of the training, if known.
        name: Name of the evaluation.
        part: Part of the split, or "all".
        tolerance: Tolerance of the surface Dice.
        folder: Folder to which stored paths of masks are relative.
    """
    of_split = {name: which for which, names in split.parts.items() for name in names} if split else {}
    pairs = [(case, read_pair(masks[case.name], case, dataset)) for case in cases if case.name in masks]
    known = all(grid.size_known for _, (_, _, grid) in pairs)
    scored = tuple(
        CaseScores(
            case=case.name,
            patient=case.patient,
            phase=case.phase,
            spacing=grid.spacing if grid.size_known else None,
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
    )


def _relative(path: Path, folder: Path) -> str:
    """Return the relative path, without the names of folders above both."""
    return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()
