"""The phantom is a function of its seed, its hearts are anatomically plausible, and its files state their position."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import binary_dilation

from contrastive_core.errors import UserError
from ssl_medseg.phantom import LABELS, PhantomCase, make_case, write_phantom

SIZE = 48


def volume(case: PhantomCase, value: int) -> float:
    """Return the volume in mL."""
    return float((case.label == value).sum() * abs(np.linalg.det(case.affine[:3, :3])) / 1000)


def centre(case: PhantomCase, value: int) -> np.ndarray:
    """Return the centre in mm, RAS+."""
    return nib.affines.apply_affine(case.affine, np.argwhere(case.label == value)).mean(axis=0)


def test_function_of_seed_patient_and_frame() -> None:
    first, again, other = (make_case(2, 1, size=SIZE, seed=seed) for seed in (3, 3, 4))
    assert (first.image == again.image).all()
    assert (first.affine == again.affine).all()
    assert first.image.shape != other.image.shape or (first.image != other.image).mean() > 0.5


@pytest.mark.parametrize("patient", [1, 2, 3, 4, 5])
def test_hearts_are_hearts(patient: int) -> None:
    diastole, systole = (make_case(patient, frame, size=64) for frame in (1, 2))
    lv, myocardium, rv = (volume(diastole, LABELS[name]) for name in ("LV", "myocardium", "RV"))
    assert 70 < lv < 320
    assert 80 < myocardium < 300
    assert 40 < rv < 260
    ejected = 1 - volume(systole, LABELS["LV"]) / lv
    assert 0.2 < ejected < 0.8
    assert volume(systole, LABELS["myocardium"]) == pytest.approx(myocardium, rel=0.3)
    # The right ventricle lies to the right (RAS+: greater x) and in front of the left one, wherever the axes run.
    assert centre(diastole, 1)[0] > centre(diastole, 3)[0]
    assert centre(diastole, 1)[1] > centre(diastole, 3)[1]
    # In a slice, myocardium closes around the left ventricle (but for the slice that the base runs through).
    ring = np.ones((3, 3, 1), dtype=bool)
    cavity = diastole.label == 3
    touched = diastole.label[binary_dilation(cavity, ring) & ~cavity]
    assert 1 not in touched
    assert (touched == 2).mean() > 0.95
    # Slices beyond the heart have no structure; some in it lack the right ventricle.
    found = [set(np.unique(diastole.label[..., k])) for k in range(diastole.label.shape[2])]
    assert {0} in found
    assert {0, 2, 3} in found
    assert {0, 1, 2, 3} in found


def test_affines_are_oblique_anisotropic_and_run_either_way() -> None:
    cases = [make_case(patient, 1, size=SIZE) for patient in range(1, 13)]
    for case in cases:
        sizes = nib.affines.voxel_sizes(case.affine)
        assert sizes[2] > 7.99
        assert sizes[0] == pytest.approx(sizes[1])
        assert sizes[0] < 5
        directions = case.affine[:3, :3] / sizes
        np.testing.assert_allclose(directions.T @ directions, np.eye(3), atol=1e-9)
        assert np.abs(directions).max() < 0.99
    handed = {bool(np.linalg.det(case.affine) > 0) for case in cases}
    assert handed == {False, True}
    # Blood is brighter than the muscle around it.
    for case in cases:
        assert case.image[case.label == 3].mean() > 1.4 * case.image[case.label == 2].mean()
    assert (make_case(1, 2, size=SIZE).affine == cases[0].affine).all()


def test_folder(tmp_path: Path) -> None:
    content = json.loads(write_phantom(tmp_path, patients=3, labelled=1, size=SIZE, seed=5).read_text())
    assert [len(content[key]) for key in ("training", "unlabeled", "test")] == [2, 4, 0]
    assert content["labels"] == {"0": "background", "1": "RV", "2": "myocardium", "3": "LV"}
    assert len(list((tmp_path / "imagesTr").iterdir())) == 6
    for entry in content["training"]:
        image, label = (nib.load(tmp_path / entry[key]) for key in ("image", "label"))
        case = make_case(1, int(Path(entry["image"]).name[16:18]), size=SIZE, seed=5)
        assert (np.asarray(image.dataobj) == case.image).all()
        assert (np.asarray(label.dataobj) == case.label).all()
        for file in (image, label):
            np.testing.assert_allclose(file.affine, case.affine, atol=1e-4)
            assert (file.header["qform_code"], file.header["sform_code"]) == (1, 1)
            assert file.header.get_xyzt_units() == ("mm", "sec")


def test_wrong_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="frame 1 or 2"):
        make_case(1, 3)
    with pytest.raises(UserError, match="no more labelled patients than patients"):
        write_phantom(tmp_path, patients=2, labelled=3)
