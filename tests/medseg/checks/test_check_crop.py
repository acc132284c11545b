"""`check` reports how much of each label the slices of training would cut off."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from contrastive_core.errors import UserError
from ssl_medseg.checks import examine
from ssl_medseg.cli import main
from ssl_medseg.datasets import DataOptions, Split, open_dataset, write_split
from ssl_medseg.preprocessing import PreprocessingOptions
from ssl_medseg.preprocessing.cases import prepare_cases, share_lost
from ssl_medseg.training.data import open_training_data
from ssl_medseg.training.recipe import TrainingOptions, choose
from tests.medseg.broken_set import AFFINE, SHAPE
from tests.medseg.small_sets import ball, save

SIZE = PreprocessingOptions(image_size=32, spacing=1.5)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three cases: centred, towards an edge, and at the edge in another storage direction."""
    root = tmp_path / "data"
    for number, (name, shift) in enumerate((("middle", 0), ("beside", 7), ("edge", 12))):
        image, label = ball(number, SHAPE)
        label = np.roll(label, shift, axis=0)
        label[:shift] = 0
        affine = AFFINE
        if name == "edge":
            image, label, affine = image.transpose(1, 0, 2), label.transpose(1, 0, 2), AFFINE[:, [1, 0, 2, 3]]
        save(root / "imagesTr" / f"{name}.nii.gz", image, affine)
        save(root / "labelsTr" / f"{name}.nii.gz", label, affine)
    entries = [{"image": f"imagesTr/{n}.nii.gz", "label": f"labelsTr/{n}.nii.gz"} for n in ("middle", "beside", "edge")]
    content = {"labels": {"0": "background", "1": "shell", "2": "core"}, "training": entries}
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def outside(shift: int) -> dict[str, float]:
    """Count the lost voxels independently: slices of 32 x 32 pixels around the centre of 40 x 36."""
    label = np.roll(ball(0, SHAPE)[1], shift, axis=0)
    label[:shift] = 0
    inside = label[4:36, 2:34]
    return {name: 1 - np.sum(inside == v) / np.sum(label == v) for v, name in ((1, "shell"), (2, "core"))}


def test_what_a_crop_cuts_off_is_reported(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--image-size", "32", "--spacing", "1.5"]
    assert main(["check", str(data), *sizes, "--out", str(tmp_path / "check.json")]) == 0
    printed = capsys.readouterr().out
    expected = {"middle": outside(0), "beside": outside(7), "edge": outside(12)}
    assert "partly outside the slices of 32 x 32 pixels of 1.5 mm" in printed
    worst = f"edge: {expected['edge']['shell']:.1%} of shell, {expected['edge']['core']:.1%} of core"
    assert worst in printed
    assert printed.index(worst) < printed.index("beside: ")
    content = json.loads((tmp_path / "check.json").read_text())
    assert content["preprocessing"]["size"] == [32, 32]
    for case in content["cases"]:
        assert case["label"]["share_outside_slices"] == pytest.approx(expected[case["case"]], abs=1e-12)
    # The same as training says of the same slices.
    report = examine(data, preprocessing=SIZE)
    assert report.crop.settings is not None
    dataset = open_dataset(data)
    said = share_lost(prepare_cases(dataset, dataset.names, report.crop.settings, labels=True), dataset.labels.names)
    assert f"edge: {expected['edge']['shell']:.1%} of shell lies outside the slices" in said


def test_slices_derived_from_all_labels_show_them_whole(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = examine(data)
    assert not [finding for finding in report.findings if finding.kind == "crop"]
    assert set(report.crop.lost) == {"middle", "beside", "edge"}
    main(["check", str(data)])
    assert f"training   would use axial slices of {report.crop}" in capsys.readouterr().out


def test_of_a_split_the_labelled_cases_decide(data: Path, tmp_path: Path) -> None:
    split = tmp_path / "split.json"
    write_split(split, Split(labelled=("middle",), unlabelled=("beside",), test=("edge",)), open_dataset(data))
    report = examine(data, split=split, preprocessing=PreprocessingOptions(spacing=1.0))
    alone = examine(data, preprocessing=PreprocessingOptions(spacing=1.0))
    assert report.crop.settings is not None
    assert alone.crop.settings is not None
    assert report.crop.settings.size <= alone.crop.settings.size
    assert "the labels of 1 volume extend" in " ".join(report.crop.reasons)
    assert set(report.crop.lost) == {"middle", "beside", "edge"}  # whoever is cut off, in test too, is said


def seeds(root: Path) -> Path:
    """A small structure of two voxels in labels of fine pixels."""
    entries = []
    for number in range(3):
        image, label = ball(number, (96, 90, 5))
        label = (label > 0).astype(np.uint8)
        label[40, 41, 2] = label[50, 43, 3] = 2
        for folder, array in (("imagesTr", image), ("labelsTr", label)):
            save(root / folder / f"p{number}.nii.gz", array, np.diag([0.6, 0.6, 4.0, 1.0]))
        entries.append({"image": f"imagesTr/p{number}.nii.gz", "label": f"labelsTr/p{number}.nii.gz"})
    content = {"labels": {"0": "background", "1": "prostate", "2": "seed"}, "training": entries}
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def test_structures_that_resampling_erases_are_reported_with_numbers(tmp_path: Path) -> None:
    root = seeds(tmp_path)
    fine = examine(root)
    assert not [finding for finding in fine.findings if finding.kind == "erased"]
    report = examine(root, preprocessing=PreprocessingOptions(image_size=32))
    (found,) = [finding for finding in report.findings if finding.kind == "erased"]
    pixel = f"{report.crop.settings.spacing[0]:.3g} mm"
    assert found.level == "warning"
    assert pixel in found.title
    assert {item.files[0]: item.detail for item in found.items} == {
        f"p{n}": f"seed: 2 voxels of 0.6 mm before, 0 pixels of {report.crop.settings.spacing[0]:.2g} mm after"
        for n in range(3)
    }


def test_check_assumes_the_effort_of_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Slices are limited by the effort: small structures that a shorter training erases are reported beforehand."""
    root = seeds(tmp_path)
    for effort in ("minutes", "night"):
        main(["check", str(root), "--effort", effort])
        said = capsys.readouterr().out
        largest = choose(TrainingOptions(effort=effort), device="cpu").largest  # type: ignore[arg-type]
        report = examine(root, largest=largest)
        assert f"slices of {report.crop}" in said
        assert ("removes small structures of 3 cases" in said) == (effort == "minutes")


def test_training_says_what_resampling_erases_and_does_not_blame_the_labels(tmp_path: Path) -> None:
    root = seeds(tmp_path)
    dataset = open_dataset(root)
    write_split(tmp_path / "split.json", Split(labelled=("p0", "p1"), unlabelled=("p2",)), dataset)
    seen = open_training_data(
        str(root), tmp_path / "split.json", opening=DataOptions(), preprocessing=PreprocessingOptions(image_size=32),
        unlabelled=False, cache=tmp_path / "cache",
    )  # fmt: skip
    expected = "warning: p0: resampling removes a small structure: seed: 2 voxels of 0.6 mm before, 0 pixels of "
    assert any(note.startswith(expected) for note in seen.notes)
    with pytest.raises(UserError, match=r"removes seed \(p0: seed: 2 voxels of 0.6 mm before") as caught:
        seen.slices()
    assert "Label cases" not in str(caught.value)


def test_training_says_that_slices_cut_off_a_structure_and_does_not_blame_the_labels(tmp_path: Path) -> None:
    root = seeds(tmp_path)
    dataset = open_dataset(root)
    write_split(tmp_path / "split.json", Split(labelled=("p0", "p1"), unlabelled=("p2",)), dataset)
    seen = open_training_data(
        str(root), tmp_path / "split.json", opening=DataOptions(), unlabelled=False, cache=None,
        preprocessing=PreprocessingOptions(image_size=32, spacing=0.06),
    )  # fmt: skip
    with pytest.raises(UserError, match=r"the slices do not contain seed \(p0: 100.0% of seed lies outside") as caught:
        seen.slices()
    assert "Label cases" not in str(caught.value)
