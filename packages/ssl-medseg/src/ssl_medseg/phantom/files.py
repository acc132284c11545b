"""The phantom as a folder of NIfTI files in the layout of the Medical Segmentation Decathlon."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from contrastive_core.errors import UserError
from ssl_medseg.phantom.scan import LABELS, PhantomCase, make_case


def write_phantom(
    folder: Path, *, patients: int = 8, frames: int = 2, labelled: int | None = None, size: int = 96, seed: int = 0
) -> Path:
    """Write patients of the phantom, each with its frames, and a ``dataset.json``.

    Args:
        folder: where ``imagesTr``, ``labelsTr`` and ``dataset.json`` go.
        patients: how many; patient i is the same however many there are.
        frames: 1 (end-diastole) or 2 (and end-systole) of each.
        labelled: how many patients, the first ones, get label files; all by default. The others are listed under
            ``unlabeled``.
        size: pixels along the longer side of a slice.
        seed: of everything.

    Returns:
        The file ``dataset.json``.
    """
    known = patients if labelled is None else labelled
    if patients < 1 or frames not in (1, 2) or not 0 <= known <= patients:
        raise UserError(
            "write_phantom needs patients >= 1, frames 1 or 2 and labelled <= patients, got "
            f"patients={patients}, frames={frames}, labelled={labelled}"
        )
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    training: list[dict[str, str]] = []
    unlabelled: list[str] = []
    for patient in range(1, patients + 1):
        for frame in range(1, frames + 1):
            case = make_case(patient, frame, size=size, seed=seed)
            image, label = f"imagesTr/{case.name}.nii.gz", f"labelsTr/{case.name}.nii.gz"
            _write(folder / image, case.image, case)
            if patient <= known:
                _write(folder / label, case.label, case)
                training.append({"image": f"./{image}", "label": f"./{label}"})
            else:
                unlabelled.append(f"./{image}")
    content: dict[str, Any] = {
        "name": "Phantom",
        "description": "generated short-axis cine MRI of hearts, end-diastole and end-systole",
        "tensorImageSize": "3D",
        "modality": {"0": "MRI"},
        "labels": {str(value): name for name, value in LABELS.items()},
        "numTraining": len(training),
        "numTest": 0,
        "training": training,
        "test": [],
    }
    if unlabelled:
        content["unlabeled"] = unlabelled
    file = folder / "dataset.json"
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return file


def _write(path: Path, array: NDArray[np.int16] | NDArray[np.uint8], case: PhantomCase) -> None:
    image = nib.Nifti1Image(array, case.affine)
    image.set_qform(case.affine, code=1)
    image.set_sform(case.affine, code=1)
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, path)
