"""What resolution alone costs: the truth on the pixels that a segmenter sees, brought back as its predictions are.

python -m tools.label_ceiling runs/small DATA splits/2-labelled-draw1.json
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from ssl_medseg.data import open_dataset, read_split
from ssl_medseg.model_folder import load_segmenter
from ssl_medseg.preprocessing.geometry import plan
from ssl_medseg.preprocessing.interpolate import to_voxels
from ssl_medseg.preprocessing.prepare import prepare_label
from ssl_medseg.volumes import read_label
from ssl_medseg.volumes.volume import Grid


def ceiling(model: Path, data: Path, split: Path) -> float:
    """Mean foreground Dice, over test volumes and the structures in each, of the truth after both resamplings.

    Args:
        model: whose preprocessing it is.
        data: the data set.
        split: the file whose test cases are taken.
    """
    segmenter, dataset = load_segmenter(str(model), device="cpu"), open_dataset(data)
    found = []
    for case in dataset.select(read_split(split, dataset).test):
        if case.label is None:
            raise ValueError(f"{data}: the test case {case.name} has no label")
        classes, affine = read_label(case.label, segmenter.labels)
        rows, columns, slices = classes.shape
        geometry, _ = plan(Grid((rows, columns, slices), affine), segmenter.preprocessing)
        pixels, _ = prepare_label(classes, affine, segmenter.preprocessing)
        shares = F.one_hot(pixels.long(), len(segmenter.labels)).permute(0, 3, 1, 2).float()
        back = to_voxels(shares, geometry).argmax(dim=1)
        truth = torch.from_numpy(np.ascontiguousarray(geometry.to_slices(classes)))
        for structure in range(1, len(segmenter.labels)):
            one, other = back == structure, truth == structure
            if other.any():
                found.append(2 * (one & other).sum().item() / (one.sum() + other.sum()).item())
    return statistics.mean(found)


if __name__ == "__main__":
    print(f"{ceiling(*map(Path, sys.argv[1:4])):.4f}")
