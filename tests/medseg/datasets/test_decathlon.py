"""The Decathlon layout; and in every layout, no typo makes a labelled case unlabelled."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from contrastive_core.errors import UserError
from ssl_medseg.datasets import Case, DataOptions, Split, open_dataset, open_split, write_split
from ssl_medseg.io.label_map import LabelMap
from ssl_medseg.io.volume import ImageFile
from tests.medseg.small_sets import decathlon, save_case


def edit(root: Path, **changes: object) -> None:
    file = root / "dataset.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_cases_of_every_list(tmp_path: Path) -> None:
    decathlon(tmp_path, ["p1_frame01", "p1_frame02", "p2_ED"], unlabelled=["p3_ED"], test=["./imagesTs/p4.nii.gz"])
    save_case(tmp_path / "elsewhere", "p4", labelled=False)
    (tmp_path / "elsewhere" / "imagesTr").rename(tmp_path / "imagesTs")
    data = open_dataset(tmp_path)
    assert (data.name, data.layout, data.root) == ("Small", "decathlon", tmp_path)
    assert data.labels == LabelMap(("background", "shell", "core"), (0, 1, 2))
    assert data.patients == {"p1": ("p1_frame01", "p1_frame02"), "p2": ("p2_ED",), "p3": ("p3_ED",), "p4": ("p4",)}
    assert [case.listed for case in data.cases] == ["training"] * 3 + ["unlabelled", "test"]
    assert data.labelled == ("p1_frame01", "p1_frame02", "p2_ED")
    image, label = tmp_path / "imagesTr" / "p2_ED.nii.gz", tmp_path / "labelsTr" / "p2_ED.nii.gz"
    assert data.case("p2_ED") == Case(
        "p2_ED", "p2", ImageFile(image, name="MRI", number=0), label, "training", phase="ED"
    )
    assert open_dataset(tmp_path / "dataset.json") == data


def test_a_typo_in_a_label_is_an_error(tmp_path: Path) -> None:
    decathlon(tmp_path, ["p1", "p2"])
    (tmp_path / "labelsTr" / "p2.nii.gz").rename(tmp_path / "labelsTr" / "p02.nii.gz")
    with pytest.raises(UserError) as caught:
        open_dataset(tmp_path)
    message = str(caught.value)
    assert "1 label file listed but missing" in message
    assert "labelsTr/p2.nii.gz: there is p02.nii.gz" in message
    assert "1 label file without an image" in message
    assert "labelsTr/p02.nii.gz: does it belong to p2?" in message
    # Consent to unlabelled cases is no consent to a label that belongs to nothing.
    with pytest.raises(UserError, match=r"labelsTr/p02\.nii\.gz: does it belong to p2"):
        open_dataset(tmp_path, allow_unlabelled=True)


def test_unlabelled_cases_need_consent(tmp_path: Path) -> None:
    decathlon(tmp_path, ["p1", "p2"])
    (tmp_path / "labelsTr" / "p2.nii.gz").unlink()
    edit(
        tmp_path,
        training=[
            *json.loads((tmp_path / "dataset.json").read_text())["training"],
            save_case(tmp_path, "p3", labelled=False),
        ],
    )
    with pytest.raises(UserError) as caught:
        open_dataset(tmp_path)
    assert "labelsTr/p2.nii.gz" in str(caught.value)
    assert "1 case without a label" in str(caught.value)
    assert open_dataset(tmp_path, allow_unlabelled=True).labelled == ("p1",)
    names = tmp_path / "unlabelled.txt"
    names.write_text("p2\n\n p3\n")
    assert open_dataset(tmp_path, unlabelled=names).labelled == ("p1",)
    names.write_text("p2\n")
    with pytest.raises(UserError, match="1 case without a label"):
        open_dataset(tmp_path, unlabelled=names)
    names.write_text("p1\np2\np3\np4\n")
    with pytest.raises(UserError) as caught:
        open_dataset(tmp_path, unlabelled=names)
    assert "cases that do not exist\n      p4" in str(caught.value)
    assert "cases that have a label: the split decides whether a label is used\n      p1" in str(caught.value)


def test_a_split_says_which_labels_may_be_missing(tmp_path: Path) -> None:
    decathlon(tmp_path / "data", ["p1", "p2", "p3", "p4"])
    split = Split(("p1",), ("p2",), ("p3",), ("p4",))
    write_split(tmp_path / "split.json", split, open_dataset(tmp_path / "data"))
    for name in ("p3", "p4"):
        (tmp_path / "data" / "labelsTr" / f"{name}.nii.gz").unlink()
    with pytest.raises(UserError, match="2 label files listed but missing"):
        open_dataset(tmp_path / "data")
    data, read = open_split(tmp_path / "data", tmp_path / "split.json", DataOptions())
    assert (data.labelled, read) == (("p1", "p2"), split)
    (tmp_path / "data" / "labelsTr" / "p2.nii.gz").unlink()
    with pytest.raises(UserError, match="p2 is in the part validation, but Small has no label for it"):
        open_split(tmp_path / "data", tmp_path / "split.json", DataOptions())


def test_everything_wrong_comes_in_one_message(tmp_path: Path) -> None:
    decathlon(tmp_path, ["p1", "p2"], modality={"0": "T2", "1": "ADC"})
    training = json.loads((tmp_path / "dataset.json").read_text())["training"]
    edit(tmp_path, training=[*training, training[0], {"image": "imagesTr/p9.nii.gz", "label": "labelsTr/p9.nii.gz"}])
    with pytest.raises(UserError) as caught:
        open_dataset(tmp_path)
    for words in (
        "imagesTr/p9.nii.gz",
        "labelsTr/p9.nii.gz",
        "1 name given to more than one case",
    ):
        assert words in str(caught.value)


def test_one_label_for_two_cases_is_an_error(tmp_path: Path) -> None:
    decathlon(tmp_path, ["p1", "p2"])
    training = json.loads((tmp_path / "dataset.json").read_text())["training"]
    edit(tmp_path, training=[training[0], training[1] | {"label": training[0]["label"]}])
    with pytest.raises(UserError, match=r"1 label file used by more than one case\n +p1\.nii\.gz"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"training": "imagesTr"}, "'training' is a str, expected a list"),
        ({"training": [3]}, "found 3 in 'training'"),
        ({"training": [], "unlabeled": []}, "no images are listed or found"),
        ({"labels": {"0": "background"}}, None),
    ],
)
def test_lists_of_another_form(changes: dict[str, object], words: str | None, tmp_path: Path) -> None:
    decathlon(tmp_path, ["p1"])
    edit(tmp_path, **changes)
    if words is None:
        assert len(open_dataset(tmp_path).labels) == 1
    else:
        with pytest.raises(UserError, match=words):
            open_dataset(tmp_path)


def test_labels_without_a_meaning_are_refused(tmp_path: Path) -> None:
    decathlon(tmp_path, ["p1"])
    content = json.loads((tmp_path / "dataset.json").read_text())
    del content["labels"]
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="does not state the meaning of its label values; pass --label-map"):
        open_dataset(tmp_path)
    (tmp_path / "map.json").write_text('{"shell": 1, "core": 2}')
    assert open_dataset(tmp_path, label_map=tmp_path / "map.json").labels.structures == ("shell", "core")


def test_patients_by_pattern_and_by_table(tmp_path: Path) -> None:
    decathlon(tmp_path, ["x-1-a", "x-1-b", "x-2-a"])
    assert list(open_dataset(tmp_path).patients) == ["x-1-a", "x-1-b", "x-2-a"]
    assert list(open_dataset(tmp_path, patient_pattern=r"x-\d").patients) == ["x-1", "x-2"]
    assert list(open_dataset(tmp_path, patient_pattern=r"x-(\d)").patients) == ["1", "2"]
    with pytest.raises(UserError, match="does not match the case x-1-a"):
        open_dataset(tmp_path, patient_pattern="y")
    with pytest.raises(UserError, match="is not a valid regular expression"):
        open_dataset(tmp_path, patient_pattern="(")
    table = tmp_path / "patients.csv"
    table.write_text("case,patient,age\nx-1-a,A,1\nx-1-b,A,1\nx-2-a,B,2\n")
    assert open_dataset(tmp_path, patients=table).patients == {"A": ("x-1-a", "x-1-b"), "B": ("x-2-a",)}
    table.write_text("case,patient\nx-1-a,A\n")
    with pytest.raises(UserError, match="lists no patient for the case x-1-b"):
        open_dataset(tmp_path, patients=table)


def test_real_data(shared_data: Path) -> None:
    heart = open_dataset(shared_data / "acdc")
    assert (len(heart), len(heart.patients), len(heart.labelled)) == (120, 60, 120)
    assert set(map(len, heart.patients.values())) == {2}
    prostate = open_dataset(shared_data / "prostate")
    assert prostate.labels.structures == ("peripheral zone", "transition zone")
    assert len(prostate.patients) == 10
