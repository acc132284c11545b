"""Which predicted mask belongs to which case, and both read on the same grid."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from contrastive_core.errors import UserError
from ssl_medseg.data.cases import Case, DataSet
from ssl_medseg.data.files import is_image, stem
from ssl_medseg.volumes import Grid, grid_difference, read_label


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
            "the image, as `ssl-medseg predict` writes it"
        )
    return predicted, truth, grids[0]


def _shape(array: NDArray[np.uint8]) -> tuple[int, int, int]:
    x, y, z = array.shape
    return x, y, z
