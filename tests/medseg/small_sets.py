"""Small data sets on disk: generated volumes with a bright ball, whose label is the ball."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

SHAPE = (12, 10, 4)
AFFINE = np.diag([1.5, 1.5, 8.0, 1.0])


def ball(number: int = 0, shape: Sequence[int] = SHAPE) -> tuple[np.ndarray, np.ndarray]:
    """Return an image (int16) and its label (uint8, values 0, 1 and 2), the same for the same number."""
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    radius = np.sqrt((grid**2).sum(axis=0))
    label = (radius < 0.8).astype(np.uint8) + (radius < 0.5)
    noise = np.random.default_rng(number).normal(0, 20, shape)
    return (100 + 150 * label.astype(np.int16) + noise).astype(np.int16), label


def save(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    """Write a NIfTI file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.Nifti1Image(array, affine).to_filename(path)
    return path


def save_case(root: Path, name: str, *, number: int = 0, labelled: bool = True) -> dict[str, str]:
    """Write image and label of a case to imagesTr and labelsTr; return its entry of dataset.json."""
    image, label = ball(number)
    save(root / "imagesTr" / f"{name}.nii.gz", image)
    entry = {"image": f"./imagesTr/{name}.nii.gz"}
    if labelled:
        save(root / "labelsTr" / f"{name}.nii.gz", label)
        entry["label"] = f"./labelsTr/{name}.nii.gz"
    return entry


def decathlon(
    root: Path,
    labelled: Sequence[str],
    *,
    unlabelled: Sequence[str] = (),
    labels: Mapping[str, str] | None = None,
    **more: Any,
) -> Path:
    """Write a Decathlon data set with these cases; `more` is added to dataset.json."""
    names = [*labelled, *unlabelled]
    entries = [save_case(root, name, number=i, labelled=name in labelled) for i, name in enumerate(names)]
    content = {
        "name": "Small",
        "modality": {"0": "MRI"},
        "labels": labels or {"0": "background", "1": "shell", "2": "core"},
        "training": entries[: len(labelled)],
        "unlabeled": [entry["image"] for entry in entries[len(labelled) :]],
    }
    (root / "dataset.json").write_text(json.dumps(content | more))
    return root
