"""A data set with an example of every problem that `check` looks for."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import nibabel as nib
import numpy as np

from tests.medseg.small_sets import ball, save

SHAPE = (40, 36, 5)
AFFINE = np.array([[-1.5, 0, 0, 30], [0, -1.5, 0, 20], [0, 0, 8, -16], [0, 0, 0, 1]])
LABELS = {"0": "background", "1": "shell", "2": "core", "3": "never"}


def broken(root: Path) -> Path:
    """Write the data set and return its folder; every case is named after its problem."""
    names = [
        "good1", "good2", "good3", "good4", "nan", "constant", "grid_shape", "grid_shift", "grid_mirror", "unknown",
        "fraction", "rounded", "empty", "huge", "sform", "turned", "spacing", "tiny", "frames", "other_axis",
    ]  # fmt: skip
    for number, name in enumerate(names):
        _write(root, name, number)
    _copies(root)
    _damaged(root)
    training = [
        {"image": f"imagesTr/{name}.nii.gz", "label": f"labelsTr/{name}.nii.gz"}
        for name in [*names, "copy_of_good1", "good2_frame2", "same_label", "cut_off", "no_nifti", "cut_label"]
    ]
    training += [{"image": "imagesTr/gone.nii.gz", "label": "labelsTr/gone.nii.gz"}, {"image": "imagesTr/bare.nii.gz"}]
    save(root / "imagesTr" / "bare.nii.gz", ball(50, SHAPE)[0], AFFINE)
    save(root / "imagesTr" / "unlisted.nii.gz", ball(51, SHAPE)[0], AFFINE)
    save(root / "labelsTr" / "gonne.nii.gz", ball(50, SHAPE)[1], AFFINE)
    content = {"name": "Broken", "modality": {"0": "MRI"}, "labels": LABELS, "training": training}
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def _write(root: Path, name: str, number: int) -> None:
    image, label = ball(number, SHAPE)
    image_affine, label_affine = AFFINE, AFFINE
    label = np.roll(label, number % 3, axis=0)
    if name == "nan":
        image = image.astype(np.float32)
        image[10:14, 10:14, 2] = np.nan
        image[0, 0, 0] = np.inf
    elif name == "constant":
        image = np.full_like(image, 7)
        image[3, 3, 3] = 9
    elif name == "grid_shape":
        label = label[:-2]
    elif name == "grid_shift":
        label_affine = AFFINE.copy()
        label_affine[0, 3] += 15
    elif name == "grid_mirror":
        label_affine = AFFINE @ np.array([[-1, 0, 0, SHAPE[0] - 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    elif name == "unknown":
        label = np.where(label == 2, 7, label).astype(np.uint8)
    elif name == "fraction":
        label = label.astype(np.float32)
        label[20, 18] = 0.5
    elif name == "rounded":
        label = (label * 0.9998).astype(np.float32)
    elif name == "empty":
        label = np.zeros_like(label)
    elif name == "huge":
        label = np.full_like(label, 2)
    elif name == "turned":
        image_affine = label_affine = np.diag([1.5, 1.5, 8, 1]) + np.diag([0.0, 0, 0, 0])
    elif name == "spacing":
        image_affine = label_affine = AFFINE * np.array([[4], [4], [1], [1]])
    elif name == "tiny":
        image, label = image[:20, :, :2], label[:20, :, :2]
    elif name == "frames":
        image = np.stack([image, image + 1], axis=3)
    elif name == "other_axis":
        image, label = image.transpose(2, 0, 1), label.transpose(2, 0, 1)
        image_affine = label_affine = AFFINE[:, [2, 0, 1, 3]]
    save(root / "imagesTr" / f"{name}.nii.gz", image, image_affine)
    save(root / "labelsTr" / f"{name}.nii.gz", label, label_affine)
    if name == "sform":
        path = root / "imagesTr" / f"{name}.nii.gz"
        contradicting = nib.Nifti1Image(image, AFFINE)
        contradicting.set_qform(np.diag([1.5, 1.5, 8, 1]), code=1)
        contradicting.set_sform(AFFINE, code=1)
        contradicting.header["descrip"] = b"DOE^JANE 1970-01-01"
        contradicting.to_filename(path)


def _copies(root: Path) -> None:
    """Store an image under two patients, one twice for the same patient, and a label for two images."""
    for source, name in (("good1", "copy_of_good1"), ("good2", "good2_frame2")):
        for folder in ("imagesTr", "labelsTr"):
            (root / folder / f"{name}.nii.gz").write_bytes((root / folder / f"{source}.nii.gz").read_bytes())
    save(root / "imagesTr" / "same_label.nii.gz", ball(40, SHAPE)[0], AFFINE)
    (root / "labelsTr" / "same_label.nii.gz").write_bytes((root / "labelsTr" / "good3.nii.gz").read_bytes())


def _damaged(root: Path) -> None:
    whole = (root / "imagesTr" / "good4.nii.gz").read_bytes()
    (root / "imagesTr" / "cut_off.nii.gz").write_bytes(whole[: len(whole) // 2])
    (root / "imagesTr" / "no_nifti.nii.gz").write_bytes(gzip.compress(b"this is not an image"))
    for name in ("cut_off", "no_nifti"):
        save(root / "labelsTr" / f"{name}.nii.gz", ball(60, SHAPE)[1], AFFINE)
    save(root / "imagesTr" / "cut_label.nii.gz", ball(61, SHAPE)[0], AFFINE)
    label = (root / "labelsTr" / "good4.nii.gz").read_bytes()
    (root / "labelsTr" / "cut_label.nii.gz").write_bytes(label[: len(label) // 2])
