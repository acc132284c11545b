"""Commands write nothing that headers, tags or folders say about a patient, unless asked to."""

from __future__ import annotations

import base64
import gzip
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from contrastive_core.training import RunOptions
from ssl_medseg.cli import main
from ssl_medseg.commands.export import export
from ssl_medseg.commands.predict import predict
from ssl_medseg.commands.report import report
from ssl_medseg.datasets import Split, open_dataset, write_split
from ssl_medseg.models import NetworkOptions
from ssl_medseg.phantom import write_phantom
from ssl_medseg.preprocessing import PreprocessingOptions
from ssl_medseg.reports.evaluation import evaluate
from ssl_medseg.training.recipe import TrainingOptions
from ssl_medseg.training.supervised import train
from tests.medseg.dicom_series import write_series

NAMES = (b"jane", b"19700101")
FIELDS = ("descrip", "db_name", "aux_file")
# Letters of an encoded picture spell a short name by chance; what it decodes to is searched instead.
PICTURE = re.compile(rb"(?<=;base64,)([A-Za-z0-9+/=]+)")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder named after a patient, with a data set whose headers name her, new images and a finished run."""
    place = tmp_path_factory.mktemp("ward") / "Doe_Jane_19700101"
    data = place / "data"
    write_phantom(data, patients=4, frames=1, size=48)
    for file in data.glob("*/*.nii.gz"):
        image = nib.load(file)
        named = nib.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header)
        for field in FIELDS:
            named.header[field] = b"Doe^Jane"
        named.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Doe^Jane 19700101"))
        nib.save(named, file)
    dataset = open_dataset(data)
    one, two, three, four = dataset.patients.values()
    write_split(place / "split.json", Split(labelled=one, validation=two, unlabelled=three, test=four), dataset)
    train(
        str(data), place / "run", split=place / "split.json",
        training=TrainingOptions(steps=60, batch_size=4, validate_every=30), network=NetworkOptions("unet", 4),
        preprocessing=PreprocessingOptions(image_size=32), cache=place / "cache",
        run=RunOptions(progress=False, log_every=10, checkpoint_every=30),
    )  # fmt: skip
    new = place / "new"
    new.mkdir()
    image = nib.load(data / "imagesTr" / "patient004_frame01.nii.gz")
    nib.save(image, new / "whole.nii.gz")
    (new / "broken.nii.gz").write_bytes((new / "whole.nii.gz").read_bytes()[:900])
    write_series(new / "series", np.asarray(image.dataobj).astype(np.uint16), image.affine)
    return place


def assert_silent(*written: Path, but: tuple[str, ...] = ()) -> None:
    files = [f for folder in written for f in ([folder] if folder.is_file() else sorted(folder.rglob("*")))]
    files = [file for file in files if file.is_file() and file.name not in but]
    assert files
    for file in files:
        content = file.read_bytes()
        content = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
        content = PICTURE.sub(lambda picture: base64.b64decode(picture[1], validate=True), content)
        found = [name for name in NAMES if name in content.lower()]
        assert not found, f"{file.name} holds {found}"


def test_check(place: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = str(place / "data")
    (place / "data" / "labelsTr" / "patient003_frame01.nii.gz").rename(place / "label.nii.gz")
    (place / "data" / "labelsTr" / "patient003_frame01.nii.gz").write_bytes(b"no label")
    try:
        assert main(["check", data, "--out", str(tmp_path / "check.json"), "--split", str(place / "split.json")]) == 1
        assert main(["check", data, "--json", "--picture-folder", str(tmp_path / "pictures")]) == 1
        (tmp_path / "printed").write_text("".join(capfd.readouterr()).replace(str(tmp_path), ""))
        assert_silent(tmp_path)
        main(["check", data, "--show-headers"])
        assert "Doe^Jane" in capfd.readouterr().out
        main(["check", data, "--json", "--show_paths"])
        assert "Doe_Jane" in capfd.readouterr().out
    finally:
        (place / "label.nii.gz").rename(place / "data" / "labelsTr" / "patient003_frame01.nii.gz")


def test_a_run_its_evaluation_and_its_report(place: Path) -> None:
    evaluate(place / "run", str(place / "data"))
    report(place / "run")
    # The configuration alone says where the data lie: --resume needs it.
    assert_silent(place / "run", place / "split.json", place / "cache", but=("config.yaml",))
    assert b"Doe_Jane" in (place / "run" / "config.yaml").read_bytes()
    page = report(place / "run", out=place / "open.html", show_paths=True).read_text()
    assert "Doe_Jane" in page


def test_predictions(place: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    masks = tmp_path / "masks"
    arguments = ["predict", str(place / "run"), str(place / "new"), str(masks), "--pictures"]
    assert main([*arguments, "--mask_format", "nifti", "--probabilities"]) == 1
    printed = "".join(capfd.readouterr()).replace(str(tmp_path), "")
    assert "broken: " in printed
    (tmp_path / "printed").write_text(printed)
    assert {"series.nii.gz", "whole.nii.gz", "whole.png", "predictions.json"} <= {f.name for f in masks.iterdir()}
    assert_silent(tmp_path)
    # A DICOM segmentation refers to a series and repeats its patient, as the standard demands; see docs dicom.md.
    predict(str(place / "run"), str(place / "new" / "series"), tmp_path / "mask.dcm")
    assert b"Doe^Jane" in (tmp_path / "mask.dcm").read_bytes()


@pytest.mark.slow
def test_exported_files(place: Path, tmp_path: Path) -> None:
    for name in ("bundle", "network.pt2", "network.onnx"):
        export(str(place / "run"), tmp_path / name)
    assert_silent(tmp_path)
