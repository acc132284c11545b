"""A table states which frame of each cine image is used."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from contrastive_core.errors import UserError
from ssl_medseg.checks import examine
from ssl_medseg.cli import main
from ssl_medseg.commands.predict import predict
from ssl_medseg.datasets import DataOptions, open_dataset
from ssl_medseg.prediction import InferenceOptions, find_images
from ssl_medseg.preprocessing import Preprocessing
from ssl_medseg.preprocessing.cases import prepare_cases
from tests.medseg.small_models import random_segmenter
from tests.medseg.small_sets import ball, decathlon, save


@pytest.fixture
def cine(tmp_path: Path) -> Path:
    """Three hearts of four time points, which differ in more than brightness."""
    data = decathlon(tmp_path / "data", ["a", "b", "c"])
    for number, name in enumerate(("a", "b", "c")):
        frames = [ball(10 * number + time)[0] for time in range(4)]
        save(data / "imagesTr" / f"{name}.nii.gz", np.stack(frames, axis=3))
    return data


def test_each_case_is_read_at_its_own_frame(cine: Path, tmp_path: Path) -> None:
    assert {finding.kind for finding in examine(cine).errors} == {"several_volumes"}
    table = tmp_path / "frames.csv"
    table.write_text("case,frame\na,3\nc,1\n")
    data = open_dataset(cine, frame=0, frame_table=table)
    assert [case.image.frame for case in data.cases] == [3, 0, 1]
    p = Preprocessing(size=(32, 32))
    alone = decathlon(tmp_path / "alone", ["a", "b", "c"])
    for number, (name, time) in enumerate((("a", 3), ("b", 0), ("c", 1))):
        save(alone / "imagesTr" / f"{name}.nii.gz", ball(10 * number + time)[0])
    single = prepare_cases(open_dataset(alone), ["a", "b", "c"], p, labels=False)
    for one, other in zip(prepare_cases(data, ["a", "b", "c"], p, labels=False), single, strict=True):
        np.testing.assert_array_equal(one.slices.numpy(), other.slices.numpy())


def test_the_command_takes_the_table(cine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "frames.csv"
    table.write_text("case,frame\na,3\nb,2\nc,1\n")
    assert main(["check", str(cine), "--frame-table", str(table)]) == 0
    table.write_text("case,frame\na,3\nb,2\nc,4\n")
    assert main(["check", str(cine), "--frame-table", str(table)]) == 1
    assert "c: has no frame 4; it has 4, counted from 0" in capsys.readouterr().out


def test_images_to_segment_have_their_own_frames_too(cine: Path, tmp_path: Path) -> None:
    table = tmp_path / "frames.csv"
    table.write_text("case,frame\na,3\nc,1\n")
    opening, images = DataOptions(frame=0, frame_table=table), cine / "imagesTr"
    expected = [("a", 3), ("b", 0), ("c", 1)]
    for data in (cine, images):
        found = find_images(data, opening=opening)
        assert [(wanted.name, wanted.image.frame) for wanted in found] == expected
    model = str(random_segmenter(tmp_path / "model", Preprocessing(size=(32, 32))))
    predict(model, str(images), tmp_path / "table", opening=opening, inference=InferenceOptions(device="cpu"))
    for name, frame in expected:
        mask = tmp_path / f"{name}.nii.gz"
        predict(
            model,
            str(images / f"{name}.nii.gz"),
            mask,
            opening=DataOptions(frame=frame),
            inference=InferenceOptions(device="cpu"),
        )
        masks = [nibabel.load(file).get_fdata() for file in (mask, tmp_path / "table" / mask.name)]
        np.testing.assert_array_equal(*masks)
    table.write_text("case,frame\nd,3\n")
    with pytest.raises(UserError, match=r"lists the case 'd', which .*imagesTr does not contain"):
        find_images(images, opening=opening)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("aa,1", "lists the case 'aa', which Small does not contain; did you mean a?"),
        ("a,1\na,2", "lists the case a twice"),
        ("a,ED", "found frame 'ED'; expected a whole number"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(cine: Path, tmp_path: Path, rows: str, words: str) -> None:
    table = tmp_path / "frames.csv"
    table.write_text(f"case,frame\n{rows}\n")
    with pytest.raises(UserError) as error:
        examine(cine, opening=DataOptions(frame_table=table))
    assert words in str(error.value)
