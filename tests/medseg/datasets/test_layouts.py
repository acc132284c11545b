"""nnU-Net, BIDS-like, plain folders and CSV give the same cases; typos are found in each."""

from __future__ import annotations

import functools
import json
import re
import shutil
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import pytest

from contrastive_core.errors import UserError
from ssl_medseg.datasets import DataOptions, DataSet, open_dataset, open_with
from ssl_medseg.datasets.draw_splits import Pool, split_by_labels
from ssl_medseg.datasets.layouts.folders import label_folders
from ssl_medseg.datasets.layouts.listing import Entry
from ssl_medseg.io.label_map import LabelMap
from ssl_medseg.io.volume import ImageFile

MAP = {"background": 0, "RV": 1, "LV": 2}
LABELS = LabelMap(("background", "RV", "LV"), (0, 1, 2))


def lay(root: Path, *files: str, **texts: str) -> Path:
    """Write empty files, which opening a data set does not read, and text files (`labels_json` is labels.json)."""
    for name in files:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    for name, text in texts.items():
        (root / name.replace("_json", ".json").replace("_csv", ".csv")).write_text(text)
    return root


def lies(data: DataSet) -> Mapping[str, tuple[str, str | None]]:
    """Return case -> image and label, as relative paths."""
    return {
        case.name: (data.shown(case.image.path), None if case.label is None else data.shown(case.label))
        for case in data.cases
    }


def nnunet(root: Path, *more: str, version: int = 2) -> Path:
    """Two labelled cases with two channels and one unlabelled case."""
    content: dict[str, object] = {"channel_names": {"0": "T2", "1": "ADC"}, "labels": MAP, "file_ending": ".nii.gz"}
    if version == 1:
        training = [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in ("a_1", "a_2")]
        labels = {str(value): name for name, value in MAP.items()}
        content = {"modality": {"0": "T2", "1": "ADC"}, "labels": labels, "training": training}
    images = [f"imagesTr/{name}_000{channel}.nii.gz" for name in ("a_1", "a_2") for channel in (0, 1)]
    tests = ["imagesTs/b_1_0000.nii.gz", "imagesTs/b_1_0001.nii.gz"]
    lay(root, *images, *tests, "labelsTr/a_1.nii.gz", "labelsTr/a_2.nii.gz", *more, dataset_json=json.dumps(content))
    return root


@pytest.mark.parametrize("version", [1, 2])
def test_nnunet(version: int, tmp_path: Path) -> None:
    data = open_dataset(nnunet(tmp_path, version=version), channels=("ADC",))
    assert data.layout == "nnunet"
    assert data.labels == LABELS
    assert lies(data) == {
        "a_1": ("imagesTr/a_1_0001.nii.gz", "labelsTr/a_1.nii.gz"),
        "a_2": ("imagesTr/a_2_0001.nii.gz", "labelsTr/a_2.nii.gz"),
        "b_1": ("imagesTs/b_1_0001.nii.gz", None),
    }
    # The file has one channel, whichever it is.
    assert {case.image.channel for case in data.cases} == {None}
    assert data.channels == ("ADC",)


def test_nnunet_problems(tmp_path: Path) -> None:
    nnunet(tmp_path, "imagesTr/c.nii.gz", "imagesTr/d_0000.nii.gz", "labelsTr/dd.nii.gz")
    with pytest.raises(UserError) as caught:
        open_dataset(tmp_path)
    for words in (
        "1 file in imagesTr without a channel number (_0000), left out\n      c.nii.gz",
        "1 case without a channel that others have (T2, ADC)",
        "d: lacks ADC",
        "1 case without a label",
        "1 label file without an image",
    ):
        assert words in str(caught.value)


def test_nnunet_without_its_list(tmp_path: Path) -> None:
    lay(tmp_path, "imagesTr/a_0000.nrrd", "labelsTr/a.nrrd", labels_json=json.dumps(MAP))
    assert lies(open_dataset(tmp_path, label_map=tmp_path / "labels.json")) == {
        "a": ("imagesTr/a_0000.nrrd", "labelsTr/a.nrrd")
    }


def test_folders(tmp_path: Path) -> None:
    lay(
        tmp_path,
        "images/p1_ED.nii.gz",
        "images/p1_ES.nii",
        "images/p2_image.mha",
        "images/._p1_ED.nii.gz",
        "images/readme.txt",
        "images/p3/0001.dcm",
        "images/p5.nii.gz",
        "images/p6_seg.nii.gz",
        "labels/p1_ED.nii.gz",
        "labels/p1_ES_gt.nii.gz",
        "labels/p2_label.mha",
        "labels/p3.nii.gz",
        "labels/p5-label.nrrd",
        "labels/p6_seg.nii.gz",
        "unlabelled/p4.nii.gz",
        labels_json=json.dumps(MAP),
    )
    data = open_dataset(tmp_path)
    assert data.layout == "folders"
    assert data.labels == LABELS
    assert lies(data) == {
        "p1_ED": ("images/p1_ED.nii.gz", "labels/p1_ED.nii.gz"),
        "p1_ES": ("images/p1_ES.nii", "labels/p1_ES_gt.nii.gz"),
        "p2": ("images/p2_image.mha", "labels/p2_label.mha"),
        "p3": ("images/p3", "labels/p3.nii.gz"),
        "p5": ("images/p5.nii.gz", "labels/p5-label.nrrd"),
        "p6_seg": ("images/p6_seg.nii.gz", "labels/p6_seg.nii.gz"),
        "p4": ("unlabelled/p4.nii.gz", None),
    }
    assert list(data.patients) == ["p1", "p2", "p3", "p5", "p6_seg", "p4"]
    (tmp_path / "labels" / "p3.nii.gz").rename(tmp_path / "labels" / "P3.nii.gz")
    with pytest.raises(UserError, match=r"1 case without a label.*\n      p3\n.*1 label file without"):
        open_dataset(tmp_path)


def test_folders_may_begin_with_a_capital(tmp_path: Path) -> None:
    lay(tmp_path, "Images/a.NII.GZ", "Masks/a_Mask.Nii.gz", "Unlabelled/b.MHA", labels_json=json.dumps(MAP))
    assert lies(open_dataset(tmp_path)) == {
        "a": ("Images/a.NII.GZ", "Masks/a_Mask.Nii.gz"), "b": ("Unlabelled/b.MHA", None),
    }  # fmt: skip
    assert label_folders(["Images", "Masks", "more"]) == ["Masks"]


def test_the_names_of_the_structures_are_asked_for(tmp_path: Path) -> None:
    lay(tmp_path, "images/a.nii.gz", "labels/a.nii.gz")
    with pytest.raises(UserError, match="does not state the meaning of its label values"):
        open_dataset(tmp_path)


def test_unlabelled_images_alone_are_a_data_set(tmp_path: Path) -> None:
    lay(tmp_path, "unlabelled/a.nii.gz")
    data = open_dataset(tmp_path)
    assert (len(data), data.labelled, len(data.labels)) == (1, (), 1)


def test_bids(tmp_path: Path) -> None:
    lay(
        tmp_path,
        "sub-01/ses-1/anat/sub-01_ses-1_T2w.nii.gz",
        "sub-01/ses-2/anat/sub-01_ses-2_T2w.nii.gz",
        "sub-02/anat/sub-02_T2w.nii.gz",
        "sub-02/anat/sub-02_T1w.nii.gz",
        "sub-03/anat/sub-03_T2w.nii.gz",
        "derivatives/labels/sub-01/ses-1/anat/sub-01_ses-1_desc-manual_dseg.nii.gz",
        "derivatives/labels/sub-01/ses-2/anat/sub-01_ses-2_T2w_dseg.nii.gz",
        "sub-02/anat/sub-02_space-orig_dseg.nii.gz",
        "derivatives/other/sub-02/anat/sub-02_desc-smooth_T2w.nii.gz",
        "dataset_description.json",
    )
    (tmp_path / "derivatives" / "dseg.tsv").write_text("index\tname\n1\tRV\n2\tLV\n")
    with pytest.raises(UserError) as caught:
        open_dataset(tmp_path)
    assert "3 cases without a channel that others have (T2w, T1w)" in str(caught.value)
    with pytest.raises(UserError, match=r"1 case without a label.*\n      sub-03_T2w$"):
        open_dataset(tmp_path, channels=("T2w",))
    data = open_dataset(tmp_path, channels=("T2w",), allow_unlabelled=True)
    assert data.layout == "bids"
    assert data.labels == LABELS
    labels = "derivatives/labels/sub-01"
    assert lies(data) == {
        "sub-01_ses-1_T2w": (
            "sub-01/ses-1/anat/sub-01_ses-1_T2w.nii.gz",
            f"{labels}/ses-1/anat/sub-01_ses-1_desc-manual_dseg.nii.gz",
        ),
        "sub-01_ses-2_T2w": (
            "sub-01/ses-2/anat/sub-01_ses-2_T2w.nii.gz",
            f"{labels}/ses-2/anat/sub-01_ses-2_T2w_dseg.nii.gz",
        ),
        "sub-02_T2w": ("sub-02/anat/sub-02_T2w.nii.gz", "sub-02/anat/sub-02_space-orig_dseg.nii.gz"),
        "sub-03_T2w": ("sub-03/anat/sub-03_T2w.nii.gz", None),
    }
    assert list(data.patients) == ["sub-01", "sub-02", "sub-03"]


def test_bids_problems(tmp_path: Path) -> None:
    lay(
        tmp_path,
        "sub-01/anat/sub-01_T2w.nii.gz",
        "sub-01/anat/sub-01_dseg.nii.gz",
        "sub-01/anat/sub-01_desc-b_dseg.nii.gz",
        "sub-02/anat/sub-02_ses-1_dseg.nii.gz",
        "sub-02/anat/sub-02_ses-2_T2w.nii.gz",
    )
    with pytest.raises(UserError) as caught:
        open_dataset(tmp_path, channels=("T3w",))
    assert "has no channel 'T3w'; its channels are 0 T2w" in str(caught.value)
    with pytest.raises(UserError) as caught:
        open_dataset(tmp_path)
    assert "sub-01_T2w has several labels" in str(caught.value)
    assert "1 label file without an image" in str(caught.value)
    (tmp_path / "a_dseg.tsv").write_text("index\tname\n1\tRV\n")
    (tmp_path / "b_dseg.tsv").write_text("index\tname\n1\tLV\n")
    with pytest.raises(UserError, match=r"b_dseg\.tsv contains 0 background, 1 LV, but a_dseg\.tsv contains .* 1 RV"):
        open_dataset(tmp_path)


def test_csv(tmp_path: Path) -> None:
    lay(
        tmp_path,
        "scans/x1.nii.gz",
        "scans/x2.nii.gz",
        "scans/x3.nii.gz",
        "masks/mask1.nii.gz",
        cases_csv=(
            "Case,Patient,Image,Label,Split,Frame\n"
            "one,A,scans/x1.nii.gz,masks/mask1.nii.gz,labelled,3\n"
            "two,A,scans/x2.nii.gz,,unlabelled,\n"
            ",B,scans/x3.nii.gz,,test,\n"
        ),
        labels_json=json.dumps(MAP),
    )
    data = open_dataset(tmp_path / "cases.csv", frame=0)
    assert data.layout == "csv"
    assert data.patients == {"A": ("one", "two"), "B": ("x3",)}
    assert [case.listed for case in data.cases] == ["training", "unlabelled", "test"]
    assert data.case("one").image == ImageFile(tmp_path / "scans" / "x1.nii.gz", frame=3)
    assert data.case("two").image.frame == 0
    text = (tmp_path / "cases.csv").read_text()
    (tmp_path / "cases.csv").write_text(text.replace("unlabelled", "unlabled"))
    with pytest.raises(UserError, match=r"found 'unlabled' in the column split \(two\); expected train, "):
        open_dataset(tmp_path / "cases.csv")
    (tmp_path / "cases.csv").write_text(text.replace("mask1", "mask9"))
    with pytest.raises(UserError, match=r"masks/mask9\.nii\.gz: there is mask1\.nii\.gz"):
        open_dataset(tmp_path / "cases.csv")
    (tmp_path / "cases.csv").write_text(text.replace(",3\n", ",last\n"))
    with pytest.raises(UserError, match="found frame 'last'; expected a whole number"):
        open_dataset(tmp_path / "cases.csv")
    (tmp_path / "cases.csv").write_text("case,patient\na,b\n")
    with pytest.raises(UserError, match="found the columns case, patient, expected image, or one column per channel"):
        open_dataset(tmp_path / "cases.csv")


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ("image_path,mask_path", "Rename image_path to image and mask_path to label$"),
        ("image,seg", "found the columns image, seg; expected image .* Rename seg to label$"),
        ("image,label,patient_id", "Rename patient_id to patient$"),
        ("image,label,subset", "Rename subset to split$"),
        ("image,label,image_id", "Rename image_id to something else$"),
        ("image_file,label,Image_ID", "Rename image_file to image and image_ID to image$"),
    ],
)
def test_columns_of_other_names_are_not_left_out(tmp_path: Path, columns: str, words: str) -> None:
    """A patient or subset that is left out would mix training and test data; a label, train without it."""
    lay(tmp_path, "x.nii.gz", "y.nii.gz", labels_json=json.dumps(MAP))
    table = tmp_path / "cases.csv"
    table.write_text(f"{columns}\n" + ",".join(["x.nii.gz", "y.nii.gz", "z"][: columns.count(",") + 1]) + "\n")
    with pytest.raises(UserError, match=words):
        open_dataset(table, allow_unlabelled=True)


def test_columns_that_describe_a_patient_may_stay(tmp_path: Path) -> None:
    lay(tmp_path, "x.nii.gz", "y.nii.gz", labels_json=json.dumps(MAP))
    (tmp_path / "cases.csv").write_text("image,label,patient,patient_id,sex,mask\nx.nii.gz,y.nii.gz,P,7,f,m\n")
    assert open_dataset(tmp_path / "cases.csv").patients == {"P": ("x",)}


@pytest.mark.parametrize("source", ["nowhere", "empty", "empty/notes.txt"])
def test_what_is_no_data_set(source: str, tmp_path: Path) -> None:
    lay(tmp_path, "empty/notes.txt")
    with pytest.raises(UserError, match=r"expected a folder with dataset\.json"):
        open_dataset(tmp_path / source)


def test_a_layout_can_be_insisted_on(tmp_path: Path) -> None:
    lay(nnunet(tmp_path), "images/z.nii.gz")
    assert "z" not in open_dataset(tmp_path, channels=("0",)).names
    shutil.rmtree(tmp_path / "labelsTr")
    data = open_dataset(tmp_path, layout="folders", allow_unlabelled=True, label_map=tmp_path / "dataset.json")
    assert "z" in data.names


def table(root: Path, header: str, *rows: str) -> DataSet:
    """Open a CSV file with the columns image and label, and one more, for the images x0, x1, ..."""
    files = [name for number in range(len(rows)) for name in (f"scans/x{number}.nii.gz", f"masks/x{number}.nii.gz")]
    text = "\n".join([f"image,label,{header}", *rows])
    return open_dataset(lay(root, *files, cases_csv=text, labels_json=json.dumps(MAP)) / "cases.csv")


def test_the_parts_of_a_table_are_kept(tmp_path: Path) -> None:
    words = ["Training", "labelled", "val", "testing", "Unlabelled", ""]
    data = table(tmp_path, "split", *(f"scans/x{n}.nii.gz,masks/x{n}.nii.gz,{word}" for n, word in enumerate(words)))
    assert [case.listed for case in data.cases] == ["training", "training", "validation", "test", "unlabelled", ""]
    split, _ = split_by_labels(data)
    assert split.parts == {
        "labelled": ("x0", "x1", "x5"), "validation": ("x2",), "test": ("x3",), "unlabelled": ("x4",),
    }  # fmt: skip
    assert Pool.of(data, data.cases).fully_labelled == ["x0", "x1", "x2", "x3", "x5"]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["P01_ED", "p01_ES", "P2"], r"1 group of patients whose names differ only in case.*\(P01, p01\)"),
        (["P1", "P_01", "P-001", "P2"], r"leading zeros or separators.*\(P-001, P1, P_01\)"),
        (
            ["P1_20190101", "P1_2020-01-31", "P2_20190101"],
            r"names differ only in a date.*\(P1_20190101, P1_2020-01-31\)",
        ),
        (["P1_pre", "P1_post", "P2"], r"repeated scans, .*\(P1_post, P1_pre\)"),
        (["P1", "P1_followup", "P2"], "repeated scans"),
        (["P1a", "P1b", "P2"], "repeated scans"),
        (["P1_1", "P11", "P12"], None),
        (["scan_20190101", "scan_20190102", "scan_20190103"], None),
        (["P1_frame01", "P1_frame12", "P2"], None),
    ],
)
def test_patients_that_a_split_may_separate_by_mistake_are_reported(
    tmp_path: Path, names: list[str], words: str | None
) -> None:
    files = [f"{folder}/{name}.nii.gz" for folder in ("images", "labels") for name in names]
    notes = open_dataset(lay(tmp_path, *files, labels_json=json.dumps(MAP))).notes
    assert not notes if words is None else len(notes) == 1
    assert words is None or re.search(words, notes[0])


def test_spellings_of_a_patient_are_one_patient(tmp_path: Path) -> None:
    names = ["P01_ED", "p1_ES", "P-001_time2", "P2"]
    files = [f"{folder}/{name}.nii.gz" for folder in ("images", "labels") for name in names]
    data = lay(tmp_path, *files, labels_json=json.dumps(MAP))
    dataset = open_dataset(data)
    assert dataset.patients == {"P-001": ("P-001_time2", "P01_ED", "p1_ES"), "P2": ("P2",)}
    assert "each group counts as one patient" in dataset.notes[0]
    (tmp_path / "patients.csv").write_text("case,patient\n" + "".join(f"{name},{name[:3]}\n" for name in names))
    stated = open_with(data, DataOptions(patients=tmp_path / "patients.csv"))
    assert [case.patient for case in stated.cases] == ["P-0", "P01", "P2", "p1_"]
    assert "they count as different patients" in stated.notes[0]


def test_a_column_of_patients_with_empty_cells_is_reported(tmp_path: Path) -> None:
    data = table(tmp_path, "patient", *(f"scans/x{n}.nii.gz,masks/x{n}.nii.gz,{who}" for n, who in enumerate("A B")))
    assert [case.patient for case in data.cases] == ["A", "x1", "B"]
    assert data.notes[0].startswith("1 case without a stated patient")


def test_a_table_of_patients_states_one_for_each_case(tmp_path: Path) -> None:
    files = [f"{folder}/P{n}.nii.gz" for folder in ("images", "labels") for n in (1, 2)]
    lay(tmp_path, *files, labels_json=json.dumps(MAP), who_csv="case,patient\nP1,A\nP2,B\nP1,A\n")
    assert open_dataset(tmp_path, patients=tmp_path / "who.csv").patients == {"A": ("P1",), "B": ("P2",)}
    lay(tmp_path, who_csv="case,patient\nP1,A\nP2,B\nP1,B\n")
    with pytest.raises(UserError, match=r"who\.csv: lists several patients for P1; expected one for each case"):
        open_dataset(tmp_path, patients=tmp_path / "who.csv")


def test_labels_of_other_cases_are_reported(tmp_path: Path) -> None:
    crossed = table(tmp_path / "a", "case", *(f"scans/x{n}.nii.gz,masks/x{(n + 1) % 3}.nii.gz,c{n}" for n in range(3)))
    assert crossed.notes[0].startswith("3 labels named like the image of another case")
    assert "c0: has the label masks/x1.nii.gz" in crossed.notes[0]
    files = [f"P{n}/{name}.nii.gz" for n in range(2) for name in ("t2", "seg")]
    for first, is_right in ((0, True), (1, False)):
        rows = [f"P{n}/t2.nii.gz,P{(n + first) % 2}/seg.nii.gz,c{n}" for n in range(2)]
        text = "\n".join(["image,label,case", *rows])
        root = lay(tmp_path / f"{first}", *files, cases_csv=text, labels_json=json.dumps(MAP))
        assert any("another case" in note for note in open_dataset(root / "cases.csv").notes) is not is_right


def test_cases_are_not_compared_with_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This took a minute for 6000 cases."""

    def compared(first: Entry, second: object) -> bool:
        raise AssertionError(f"{first} is compared with {second}")

    lay(
        tmp_path,
        *(f"{folder}/{n}.nii.gz" for folder in ("images", "labels") for n in "abc"),
        labels_json=json.dumps(MAP),
    )
    monkeypatch.setattr(Entry, "__eq__", compared)
    assert len(open_dataset(tmp_path)) == 3


@pytest.mark.parametrize("on_disk", ["NFC", "NFD"])
def test_accents_are_composed_or_decomposed_alike(tmp_path: Path, on_disk: Literal["NFC", "NFD"]) -> None:
    """macOS decomposes accents in the names of files, where people and other systems compose them."""
    stored = functools.partial(unicodedata.normalize, on_disk)
    other: Literal["NFC", "NFD"] = "NFD" if on_disk == "NFC" else "NFC"
    written = functools.partial(unicodedata.normalize, other)
    name = unicodedata.normalize("NFC", "Jörg")
    folders = lay(
        tmp_path / "folders", f"images/{stored(name)}.nii.gz", f"labels/{written(name)}.nii.gz",
        labels_json=json.dumps(MAP), patients_csv=f"case,patient\n{written(name)},{written('Zoë')}\n",
    )  # fmt: skip
    data = open_dataset(folders, patients=folders / "patients.csv")
    assert data.names == (name,)
    assert data.cases[0].label is not None
    assert data.cases[0].patient == unicodedata.normalize("NFC", "Zoë")
    files = [f"imagesTr/{stored(name)}_000{channel}.nii.gz" for channel in (0, 1)]
    numbered = nnunet(tmp_path / "nnunet", *files, f"labelsTr/{written(name)}.nii.gz")
    assert {case.name: case.label is not None for case in open_dataset(numbered).cases}[name]
    images = [f"./imagesTr/{written(each)}.nii.gz" for each in ("Jörg", "José")]
    label = f"./labelsTr/{written(name)}.nii.gz"
    content = {"labels": MAP, "training": [{"image": images[0], "label": label}], "unlabeled": images[1:]}
    files = [f"imagesTr/{stored(each)}.nii.gz" for each in ("Jörg", "José")]
    table = f"case,image,label\n{written(name)},{images[0]},{label}\n"
    listed = lay(
        tmp_path / "listed", *files, f"labelsTr/{stored(name)}.nii.gz", dataset_json=json.dumps(content), all_csv=table
    )
    assert open_dataset(listed).names == (name, unicodedata.normalize("NFC", "José"))
    assert open_dataset(listed / "all.csv").names == (name,)
    with pytest.raises(UserError, match="1 name given to more than one case"):
        open_dataset(lay(folders, f"images/{written(name)}.nii.gz"))
