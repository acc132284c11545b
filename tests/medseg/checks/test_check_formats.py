"""`check` and `make-splits` on DICOM series, NRRD and MetaImage; what a series says about its patient stays out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ssl_medseg.checks import examine
from ssl_medseg.checks.pictures import draw_pictures
from ssl_medseg.cli import main
from ssl_medseg.commands.make_splits import make_splits
from ssl_medseg.datasets.splits import read_fingerprints
from ssl_medseg.io import read_grid
from ssl_medseg.io.volume import ImageFile
from tests.medseg.broken_set import AFFINE, SHAPE
from tests.medseg.small_sets import ball, save


@pytest.fixture
def series(tmp_path: Path) -> Path:
    """Three series with NIfTI labels: the second lacks a slice, the label of the third lies elsewhere."""
    pytest.importorskip("highdicom")
    from tests.medseg.dicom_series import write_series

    for number in range(3):
        image, label = ball(number, SHAPE)
        leave_out = [2] if number == 1 else []
        folder = tmp_path / "images" / f"p{number}"
        write_series(folder, image.astype(np.uint16), AFFINE, leave_out=leave_out)
        affine = AFFINE if number == 1 else read_grid(ImageFile(folder)).affine  # slices may be counted from above
        if number == 2:
            affine = affine @ np.diag([-1, 1, 1, 1])
        save(tmp_path / "labels" / f"p{number}.nii.gz", np.roll(label, number, axis=0), affine)
    (tmp_path / "labels.json").write_text('{"shell": 1, "core": 2}')
    return tmp_path


def test_dicom_series(series: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = examine(series)
    errors = {finding.kind: [item.files for item in finding.items] for finding in report.errors}
    assert errors == {"unreadable": [["p1"]], "grid": [["p2"]]}
    first, gap, elsewhere = report.facts
    assert first.label is not None
    assert first.label.difference == ""
    assert "1 slice seems to be missing" in str(gap.image.problem)
    assert elsewhere.label is not None
    assert elsewhere.label.difference.endswith("its axes are flipped")
    assert [path.stem for path in draw_pictures(report, tmp_path / "pictures")] == ["p2"]
    assert main(["check", str(series)]) == 1
    printed = capsys.readouterr().out
    assert "PatientName 3" in printed
    assert "Jane" not in printed
    assert "19700101" not in printed
    main(["check", str(series), "--show-headers"])
    assert "PatientName 'Doe^Jane'" in capsys.readouterr().out


def test_splits_of_dicom_series(series: Path, tmp_path: Path) -> None:
    for file in (series / "images" / "p1").iterdir():
        file.unlink()
    (series / "images" / "p1").rmdir()
    (series / "labels" / "p1.nii.gz").unlink()
    written = make_splits(str(series), tmp_path / "s", n_labelled=(1,), draws=1, n_validation=1)
    file = next(iter(written.files))
    assert {counts["labelled"] for counts in written.counts.values()} == {(1, 1, SHAPE[2])}
    before = read_fingerprints(file)["p0"]["image"]
    sorted((series / "images" / "p0").iterdir())[0].write_bytes(b"changed")
    (changed,) = [finding for finding in examine(series, split=file).findings if finding.kind == "changed"]
    assert [item.files for item in changed.items] == [["p0"]]
    assert len(before) == 64


@pytest.mark.parametrize("ending", ["nrrd", "mha"])
def test_nrrd_and_metaimage(ending: str, tmp_path: Path) -> None:
    sitk = pytest.importorskip("SimpleITK")
    for number in range(2):
        for folder, array in zip(("images", "labels"), ball(number, SHAPE), strict=True):
            image = sitk.GetImageFromArray(np.roll(array, number, axis=0).transpose(2, 1, 0))
            image.SetSpacing((1.5, 1.5, 8.0))
            (tmp_path / folder).mkdir(exist_ok=True)
            sitk.WriteImage(image, str(tmp_path / folder / f"p{number}.{ending}"))
    (tmp_path / "labels.json").write_text('{"shell": 1, "core": 2}')
    report = examine(tmp_path)
    assert report.findings == []
    assert [one.image.grid.spacing for one in report.facts if one.image.grid] == [(1.5, 1.5, 8.0)] * 2
