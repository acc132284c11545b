"""Match masks with the cases of a data set and score them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from contrastive_core.errors import UserError
from ssl_medseg.datasets.dataset import Case, DataSet
from ssl_medseg.datasets.splits import Split
from ssl_medseg.evaluation.metrics import measure
from ssl_medseg.evaluation.results import CaseScores, Evaluation
from ssl_medseg.io import Grid, grid_difference, read_label
from ssl_medseg.io.file_types import is_image, stem


def find_masks(folder: Path, cases: Iterable[Case]) -> dict[str, Path]:
    """Case -> the file in a folder that is named like it, whatever its ending.

    Raises:
        UserError: there is no such folder, two files for a case, or none for all of them.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: is no folder; expected predicted masks, one file per case, named like the case")
    files: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.is_file() and is_image(path):
            files.setdefault(stem(path), []).append(path)
    found: dict[str, Path] = {}
    wanted = [case.name for case in cases]
    for name in wanted:
        paths = files.get(name, [])
        if len(paths) > 1:
            raise UserError(f"{folder}: has {len(paths)} files for {name} ({', '.join(p.name for p in paths)})")
        if paths:
            found[name] = paths[0]
    if not found:
        raise UserError(
            f"{folder}: none of its {len(files)} images is named like one of the cases to evaluate (such as "
            f"{wanted[0] if wanted else 'none'}); expected masks as `ssl-medseg predict` writes them"
        )
    return found


def read_pair(mask: Path, case: Case, dataset: DataSet) -> tuple[NDArray[np.uint8], NDArray[np.uint8], Grid]:
    """Predicted classes, true classes and the grid they share.

    Raises:
        UserError: one cannot be read, holds a value the data set does not know, or their grids differ.
    """
    if case.label is None:
        raise UserError(f"{case.name}: has no label to evaluate with")
    truth, affine = read_label(case.label, dataset.labels)
    predicted, other = read_label(mask, dataset.labels)
    grids = [Grid(_shape(array), place) for array, place in ((truth, affine), (predicted, other))]
    difference = grid_difference(*grids)
    if difference:
        raise UserError(
            f"{mask}: is on another grid than the truth of {case.name} ({difference}); expected a mask on the grid of "
            "the image, as `ssl-medseg predict` writes it. If it is one, the label is not: see `ssl-medseg check`"
        )
    return predicted, truth, grids[0]


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
    )


def _shape(array: NDArray[np.uint8]) -> tuple[int, int, int]:
    x, y, z = array.shape
    return x, y, z


def _relative(path: Path, folder: Path) -> str:
    """From one to the other, without naming what lies above both."""
    return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()
