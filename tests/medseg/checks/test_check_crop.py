"""`check` says of every label how much of it the slices of training would cut off."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ssl_medseg.checks import examine
from ssl_medseg.cli import main
from ssl_medseg.datasets import Split, open_dataset, write_split
from ssl_medseg.preprocessing import PreprocessingOptions
from ssl_medseg.preprocessing.cases import prepare_cases, share_lost
from tests.medseg.broken_set import AFFINE, SHAPE
from tests.medseg.small_sets import ball, save

SIZE = PreprocessingOptions(size=32, spacing=1.5)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three cases: in the middle, towards an edge, and at the edge in another direction of storage."""
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
    """Counted without the package: slices of 32 x 32 pixels around the centre of 40 x 36."""
    label = np.roll(ball(0, SHAPE)[1], shift, axis=0)
    label[:shift] = 0
    inside = label[4:36, 2:34]
    return {name: 1 - np.sum(inside == v) / np.sum(label == v) for v, name in ((1, "shell"), (2, "core"))}


def test_what_a_crop_cuts_off_is_reported(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--size", "32", "--spacing", "1.5"]
    assert main(["check", str(data), *sizes, "--out", str(tmp_path / "check.json")]) == 0
    printed = capsys.readouterr().out
    expected = {"middle": outside(0), "beside": outside(7), "edge": outside(12)}
    assert "not whole in slices of 32 x 32 pixels of 1.5 mm" in printed
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
    assert f"training   in slices of {report.crop}" in capsys.readouterr().out


def test_of_a_split_the_labelled_cases_decide(data: Path, tmp_path: Path) -> None:
    split = tmp_path / "split.json"
    write_split(split, Split(labelled=("middle",), unlabelled=("beside",), test=("edge",)), open_dataset(data))
    report = examine(data, split=split, preprocessing=PreprocessingOptions(spacing=1.0))
    alone = examine(data, preprocessing=PreprocessingOptions(spacing=1.0))
    assert report.crop.settings is not None
    assert alone.crop.settings is not None
    assert report.crop.settings.size <= alone.crop.settings.size
    assert "the labels of 1 volumes" in " ".join(report.crop.reasons)
    assert set(report.crop.lost) == {"middle", "beside", "edge"}  # whoever is cut off, in test too, is said
