"""No file of a data set vanishes: unread files are named, and patients are never silently merged."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest

from contrastive_core.errors import UserError
from ssl_medseg.checks import examine
from ssl_medseg.datasets import open_dataset
from ssl_medseg.prediction import find_images, unread_files
from tests.medseg.volumes_on_disk import affine, phantom, write_nifti

MATRIX = affine((1.5, 1.5, 6.0), letters="LPS")
MAP = {"0": "background", "1": "a", "2": "b", "3": "c"}


def case(root: Path, name: str, seed: int = 0, *, images: str = "images", labels: str = "labels") -> None:
    image, classes = phantom((40, 36, 5), seed=seed)
    for folder, array in ((images, image), (labels, classes)):
        (root / folder).mkdir(parents=True, exist_ok=True)
        write_nifti(root / folder / f"{name}.nii.gz", array, MATRIX)


def folders(root: Path) -> Path:
    for number in range(2):
        case(root, f"p{number}", number)
    (root / "labels.json").write_text(json.dumps(MAP))
    return root


def decathlon(root: Path) -> Path:
    for number in range(2):
        case(root, f"p{number}", number, images="imagesTr", labels="labelsTr")
    listed = [{"image": f"imagesTr/p{n}.nii.gz", "label": f"labelsTr/p{n}.nii.gz"} for n in range(2)]
    (root / "dataset.json").write_text(json.dumps({"name": "d", "labels": MAP, "training": listed}))
    return root


def nnunet(root: Path) -> Path:
    for number in range(2):
        case(root, f"p{number}_0000", number, images="imagesTr", labels="labelsTr")
        (root / f"labelsTr/p{number}_0000.nii.gz").rename(root / f"labelsTr/p{number}.nii.gz")
    content = {"channel_names": {"0": "T2"}, "labels": {name: int(v) for v, name in MAP.items()}}
    (root / "dataset.json").write_text(json.dumps({**content, "file_ending": ".nii.gz"}))
    return root


def bids(root: Path) -> Path:
    for number in range(2):
        image, classes = phantom((40, 36, 5), seed=number)
        folder = root / f"sub-{number:02}" / "anat"
        folder.mkdir(parents=True)
        write_nifti(folder / f"sub-{number:02}_T2w.nii.gz", image, MATRIX)
        write_nifti(folder / f"sub-{number:02}_dseg.nii.gz", classes, MATRIX)
    (root / "labels_dseg.tsv").write_text("index\tname\n" + "".join(f"{v}\t{n}\n" for v, n in MAP.items()))
    return root


def table(root: Path) -> Path:
    folders(root)
    rows = ["image,label", *(f"images/p{n}.nii.gz,labels/p{n}.nii.gz" for n in range(2))]
    (root / "set.csv").write_text("\n".join(rows) + "\n")
    return root / "set.csv"


def test_masks_of_predict_inside_of_its_input_are_no_images(tmp_path: Path) -> None:
    for name in ("p0", "masks/p0", "masks/deep/p1", "deep/p1"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{name}.nii.gz").touch()
    (tmp_path / "masks" / "predictions.json").write_text('{"format": "ssl-medseg predictions 1"}')
    found = find_images(tmp_path)
    assert [wanted.name for wanted in found] == ["p0", "deep/p1"]
    assert unread_files(tmp_path, found) == ["masks: masks of `predict`, which are not segmented"]
    assert [wanted.name for wanted in find_images(tmp_path / "masks")] == ["p0", "deep/p1"]  # asked for


@pytest.mark.parametrize("layout", [folders, decathlon, nnunet, bids, table])
def test_links_that_lead_nowhere_and_kinds_that_are_not_read_are_listed(tmp_path: Path, layout) -> None:
    source = layout(tmp_path / "data")
    assert examine(source).unused == 0
    root = tmp_path / "data"
    beside = next(path.parent for path in root.rglob("*.nii.gz"))
    (beside / "gone.nii.gz").symlink_to(tmp_path / "nowhere.nii.gz")
    (beside / "scan.npz").write_bytes(b"PK")
    (beside / "part.nii.gz.part").write_bytes(b"x")
    (beside / "lonely.img").write_bytes(b"x")
    for name in ("._p0.nii.gz", ".DS_Store", "Thumbs.db", "notes.txt"):
        (beside / name).write_bytes(b"x")
    report = examine(source)
    (finding,) = [found for found in report.findings if found.kind == "not_used"]
    assert finding.level == "warning"
    reasons = {Path(name).name: item.detail for item in finding.items for name in item.files}
    assert set(reasons) == {"gone.nii.gz", "scan.npz", "part.nii.gz.part", "lonely.img"}
    assert "link to a file that does not exist" in reasons["gone.nii.gz"]
    assert "without its .hdr" in reasons["lonely.img"]
    assert "2 volumes of 2 patients, 2 with labels; 4 files not used" in report.text()
    dataset = open_dataset(source)
    assert any("4 files" in note for note in dataset.notes)


@pytest.mark.parametrize("layout", [folders, nnunet, bids, table])
def test_images_that_the_layout_does_not_claim_are_listed(tmp_path: Path, layout) -> None:
    source, root = layout(tmp_path / "data"), tmp_path / "data"
    folder = root / "images" if layout is table else root / "more"
    folder.mkdir(exist_ok=True)
    write_nifti(folder / "other.nii.gz", phantom((40, 36, 5), seed=9)[0], MATRIX)
    (finding,) = [found for found in examine(source).findings if found.kind == "not_used"]
    assert [Path(name).name for item in finding.items for name in item.files] == ["other.nii.gz"]


@pytest.mark.parametrize("layout", [folders, decathlon, nnunet, bids, table])
def test_the_target_of_a_used_link_is_used_and_linked_folders_are_searched(tmp_path: Path, layout) -> None:
    source, root = layout(tmp_path / "data"), tmp_path / "data"
    first = sorted(root.rglob("*.nii.gz"))[0]
    (root / "elsewhere").mkdir()
    first.rename(root / "elsewhere" / "x.nii.gz")
    first.symlink_to(root / "elsewhere" / "x.nii.gz")
    outside = tmp_path / "store"
    outside.mkdir()
    beside = first.parent
    (beside / "linked").symlink_to(outside, target_is_directory=True)
    (beside / "back").symlink_to(root, target_is_directory=True)
    (beside / "itself.nii.gz").symlink_to(beside / "itself.nii.gz")
    report = examine(source)
    assert len(report.facts) == 2
    assert [f.title for f in report.findings if f.kind == "not_used"] == ["1 file next to the images is not used"]
    if layout is not table:
        write_nifti(outside / "more.nii.gz", phantom((40, 36, 5), seed=9)[0], MATRIX)
        (finding,) = [found for found in examine(source).findings if found.kind == "not_used"]
        assert {Path(name).name for item in finding.items for name in item.files} == {"itself.nii.gz", "more.nii.gz"}


def test_one_dicom_file_among_images_hides_nothing(tmp_path: Path) -> None:
    root = folders(tmp_path / "data")
    for name in ("slice.dcm", "scan.npz", "old.nii.gz.bak", "p0.nii.gz.json"):
        (root / "images" / name).write_bytes(b"x")
    (finding,) = [found for found in examine(root).findings if found.kind == "not_used"]
    assert {Path(name).name for item in finding.items for name in item.files} == {
        "slice.dcm", "scan.npz", "old.nii.gz.bak",
    }  # fmt: skip
    assert {each.name for each in find_images(root / "images")} == {"images", "p0", "p1"}


@pytest.mark.parametrize("layout", [folders, nnunet])
def test_labels_beside_images_are_not_taken_for_images_to_segment(tmp_path: Path, layout) -> None:
    root = layout(tmp_path / "data")
    (root / "dataset.json").unlink(missing_ok=True)
    found = find_images(root)
    assert len(found) == 2
    assert all(each.name.startswith("images") for each in found)
    (unread,) = unread_files(root, found)
    assert "labels, which are not segmented" in unread
    alone = next(path for path in root.iterdir() if path.name.startswith("labels") and path.is_dir())
    assert len(find_images(alone)) == 2  # asked for


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("ct_train_1001_image", "ct_train_1001_label"),  # MM-WHS
        ("imaging", "segmentation"),  # KiTS
        ("volume-0", "segmentation-0"),  # LiTS
        ("BraTS-GLI-00001-000-t1c", "BraTS-GLI-00001-000-seg"),
        ("Patient_01", "GT"),  # SegTHOR
        ("img/img0001", "label/label0001"),  # BTCV
        ("imagesVa/amos_0008", "labelsVa/amos_0008"),
        ("sub-01_T1w", "sub-01_dseg"),
        ("sub-01_T1w", "sub-01_desc-brain_mask"),
    ],
)
def test_labels_in_the_folder_of_their_image_are_not_segmented(tmp_path: Path, image: str, label: str) -> None:
    for name in (image, label):
        file = tmp_path / f"{name}.nii.gz"
        file.parent.mkdir(exist_ok=True)
        write_nifti(file, phantom((12, 10, 5))[0], MATRIX)
    found = find_images(tmp_path)
    assert [each.name for each in found] == [image]
    folder, inside, name = label.rpartition("/")
    said = f"{folder}: labels, which are not" if inside else f"{name}.nii.gz: a label, which is not"
    assert unread_files(tmp_path, found) == [f"{said} segmented"]
    (tmp_path / f"{image}.nii.gz").unlink()
    assert [each.name for each in find_images(tmp_path / folder)] == [name]  # asked for


def test_channels_named_like_labels_are_channels(tmp_path: Path) -> None:
    for name in ("p1_T2", "p1_mask", "p1_seg"):
        write_nifti(tmp_path / f"{name}.nii.gz", phantom((12, 10, 5))[0], MATRIX)
    [found] = find_images(tmp_path, channels=("T2", "mask"))
    assert (found.error, [path.name for path in found.image.paths]) == ("", ["p1_T2.nii.gz", "p1_mask.nii.gz"])


def test_the_mask_of_a_link_has_the_name_of_the_link(tmp_path: Path) -> None:
    stored = write_nifti(tmp_path / "MD5E-s123--ab12.nii.gz", phantom((12, 10, 5))[0], MATRIX)  # git-annex
    (tmp_path / "sub-01_T1w.nii.gz").symlink_to(stored)
    assert [each.name for each in find_images(tmp_path / "sub-01_T1w.nii.gz")] == ["sub-01_T1w"]


@pytest.mark.parametrize("layout", [decathlon, nnunet])
def test_numbers_of_images_that_a_list_contradicts_are_warned_of(tmp_path: Path, layout) -> None:
    root = layout(tmp_path / "data")
    content = json.loads((root / "dataset.json").read_text())
    for stated, titles in ((2, []), (32, ["dataset.json states 32"])):
        (root / "dataset.json").write_text(json.dumps({**content, "numTraining": stated}))
        found = [each.title for each in examine(root).findings if each.kind == "image_count"]
        assert [title[: len("dataset.json states 32")] for title in found] == titles


def test_paths_of_lists_made_on_windows_are_found(tmp_path: Path) -> None:
    root = decathlon(tmp_path / "data")
    text = (root / "dataset.json").read_text()
    (root / "dataset.json").write_text(text.replace("imagesTr/", r"imagesTr\\").replace("labelsTr/", r".\\labelsTr\\"))
    assert [(case.name, case.label is not None) for case in open_dataset(root).cases] == [("p0", True), ("p1", True)]
    source = table(tmp_path / "other")
    source.write_text(source.read_text().replace("/", "\\"))
    assert [case.name for case in open_dataset(source).cases] == ["p0", "p1"]


@pytest.mark.parametrize(
    "change",
    [
        lambda text: ("\ufeff" + text.replace(",", ";").replace("\n", "\r\n")).encode(),
        lambda text: ("sep=;\r\n" + text.replace(",", ";").replace("\n", "\r\n")).encode(),
        lambda text: (text.title().replace("Nii.Gz", "nii.gz").replace("Images/P", "images/p")
                      .replace("Labels/P", "labels/p") + ",\n,\n").encode(),
        lambda text: text.replace(",", "\t").encode(),
        lambda text: re.sub(r"^(?=.*p(\d))", r"\1,", text, flags=re.MULTILINE).encode(),  # R: numbers without a header
    ],
)  # fmt: skip
def test_tables_saved_by_spreadsheets_are_read(tmp_path: Path, change) -> None:
    source = table(tmp_path / "data")
    source.write_bytes(change(source.read_text()))
    assert [case.name for case in open_dataset(source).cases] == ["p0", "p1"]


def test_a_table_of_another_encoding_says_how_to_save_it(tmp_path: Path) -> None:
    source = table(tmp_path / "data")
    source.write_bytes(source.read_text().replace("p0", "Müller").encode("cp1252"))
    with pytest.raises(UserError, match=r"set\.csv: is not text in UTF-8 .* in Excel as \"CSV UTF-8\""):
        open_dataset(source)


def test_subjects_of_bids_may_be_links_to_folders(tmp_path: Path) -> None:
    root = bids(tmp_path / "data")
    (root / "sub-01").rename(tmp_path / "sub-01")
    (root / "sub-01").symlink_to(tmp_path / "sub-01", target_is_directory=True)
    assert [case.patient for case in open_dataset(root).cases] == ["sub-00", "sub-01"]


def test_remarks_of_a_data_set_are_sentences(tmp_path: Path) -> None:
    root = folders(tmp_path / "data")
    (root / "images" / "scan.npz").write_bytes(b"PK")
    (note,) = open_dataset(root).notes
    assert note == "1 file next to the images is not used (images/scan.npz: .npz files are not read)"


def test_masks_of_a_run_in_the_folder_are_no_unused_images(tmp_path: Path) -> None:
    root = folders(tmp_path / "data")
    (root / "masks").mkdir()
    write_nifti(root / "masks" / "p0.nii.gz", phantom((40, 36, 5))[1], MATRIX)
    with pytest.raises(UserError, match=r"p0 has several labels.*\n.*labels/p0\.nii\.gz, masks/p0\.nii\.gz"):
        open_dataset(root)
    _state_masks(root / "masks", ["p0"])
    assert examine(root).unused == 0
    assert open_dataset(root).case("p0").label == root / "labels" / "p0.nii.gz"


def test_masks_of_predict_are_labels_once_they_have_been_corrected(tmp_path: Path) -> None:
    root = folders(tmp_path / "data")
    for name in ("p2", "p3"):
        shutil.copy(root / "images" / "p0.nii.gz", root / "images" / f"{name}.nii.gz")
        shutil.copy(root / "labels" / "p0.nii.gz", root / "labels" / f"{name}.nii.gz")
    _state_masks(root / "labels", ["p2", "p3"])  # copied with the masks, among labels drawn by hand
    corrected = phantom((40, 36, 5))[1]
    corrected[0, 0, 0] = 1
    write_nifti(root / "labels" / "p3.nii.gz", corrected, MATRIX)
    dataset = open_dataset(root, allow_unlabelled=True)
    assert dataset.labelled == ("p0", "p1", "p3")
    assert any(note.startswith("1 mask of `predict` without changes") and "p2" in note for note in dataset.notes)


@pytest.mark.parametrize("content", ["[]", '{"cases": "none"}', "{", '{"p0": [0.5, 0.5]}'])
def test_a_predictions_json_of_another_program_hides_no_labels_and_images(tmp_path: Path, content: str) -> None:
    root = folders(tmp_path / "data")
    for folder in (root / "labels", root / "images"):
        (folder / "predictions.json").write_text(content)
    assert open_dataset(root).labelled == ("p0", "p1")
    assert [source.name for source in find_images(tmp_path)] == ["data/images/p0", "data/images/p1"]
    (root / "images" / "notes.xyz.nii.gz.part").write_bytes(b"x")
    found = {finding.kind: finding for finding in examine(root).findings}
    assert found["other_predictions"].title == "labels/predictions.json was not written by `predict`: not used"
    assert "not_used" in found


def _state_masks(folder: Path, names: list[str]) -> None:
    files = [folder / f"{name}.nii.gz" for name in names]
    cases = [{"mask": file.name, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()} for file in files]
    (folder / "predictions.json").write_text(json.dumps({"format": "ssl-medseg predictions 1", "cases": cases}))


def test_pairs_of_img_and_hdr_are_images(tmp_path: Path) -> None:
    root = folders(tmp_path / "data")
    for folder, array in zip(("images", "labels"), phantom((40, 36, 5), seed=5), strict=True):
        pair = nibabel.Nifti1Pair(array, MATRIX)
        pair.header.set_xyzt_units("mm")
        nibabel.save(pair, root / folder / "pair.img")
    report = examine(root)
    assert (len(report.facts), report.unused, report.errors) == (3, 0, [])


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["prostate_scan_000", "prostate_scan_001", "prostate_scan_002"], "one_patient"),
        (["heart_time_01", "heart_time_02"], "one_patient"),
        (["p1_frame01", "p1_frame12", "p2_frame01"], "folded"),
        (["a", "b"], None),
    ],
)
def test_cases_are_never_folded_into_patients_silently(tmp_path: Path, names: list[str], kind: str | None) -> None:
    for number, name in enumerate(names):
        case(tmp_path / "data", name, number)
    (tmp_path / "data" / "labels.json").write_text(json.dumps(MAP))
    found = [f for f in examine(tmp_path / "data").findings if f.kind in ("one_patient", "folded")]
    assert [f.kind for f in found] == ([kind] if kind else [])
    assert all("--patient-pattern" in f.title for f in found)
    (tmp_path / "patients.csv").write_text("case,patient\n" + "".join(f"{name},{name}\n" for name in names))
    report = examine(tmp_path / "data", opening=_patients(tmp_path / "patients.csv"))
    assert not [f for f in report.findings if f.kind in ("one_patient", "folded")]


def _patients(file: Path):
    from ssl_medseg.datasets import DataOptions

    return DataOptions(patients=file)


def test_files_of_one_name_are_named_with_their_folders(tmp_path: Path) -> None:
    for number, site in enumerate(("siteA", "siteB")):
        case(tmp_path / site, "001", number)
    rows = ["image;label", *(f"{s}/images/001.nii.gz;{s}/labels/001.nii.gz" for s in ("siteA", "siteB"))]
    (tmp_path / "all.csv").write_text("\n".join(rows) + "\n")  # as Excel writes it in half of Europe
    (tmp_path / "labels.json").write_text(json.dumps(MAP))
    with pytest.raises(UserError, match=r"siteA/images/001\.nii\.gz, siteB/images/001\.nii\.gz"):
        open_dataset(tmp_path / "all.csv")


def test_a_json_that_disagrees_with_the_files_is_said(tmp_path: Path) -> None:
    root = nnunet(tmp_path / "data")
    content = json.loads((root / "dataset.json").read_text())
    content |= {"channel_names": {"0": "T2", "1": "ADC"}, "file_ending": ".nrrd"}
    (root / "dataset.json").write_text(json.dumps(content))
    kinds = {found.kind: found for found in examine(root).findings}
    assert "2 channels (T2, ADC)" in kinds["channel_names"].title
    assert len(kinds["file_ending"].items[0].files) == 2


def test_channels_of_some_cases_only_are_said(tmp_path: Path) -> None:
    root = nnunet(tmp_path / "data")
    write_nifti(root / "imagesTr" / "p0_0001.nii.gz", phantom((40, 36, 5), seed=7)[0], MATRIX)
    kinds = {found.kind: found for found in examine(root).findings}
    assert (kinds["missing_channel"].level, kinds["missing_channel"].items[0].files) == ("error", ["p1"])


def test_spacings_that_vary_within_a_set_are_said(tmp_path: Path) -> None:
    for number, step in enumerate((3.0, 3.0, 5.0, 5.0)):
        case(tmp_path / "data", f"p{number}", number)
        for folder in ("images", "labels"):
            path = tmp_path / "data" / folder / f"p{number}.nii.gz"
            write_nifti(path, np.asarray(nibabel.load(path).dataobj), affine((1.0, 1.0, step), letters="LPS"))
    (tmp_path / "data" / "labels.json").write_text(json.dumps(MAP))
    (found,) = [f for f in examine(tmp_path / "data").findings if f.kind == "mixed_spacing"]
    assert "distance between slices 3 to 5 mm" in found.title


def test_a_listed_label_that_is_a_link_to_nothing_is_called_that(tmp_path: Path) -> None:
    root = decathlon(tmp_path / "d")
    label = root / "labelsTr" / "p1.nii.gz"
    label.unlink()
    label.symlink_to("/nowhere/p1.nii.gz")
    table = tmp_path / "cases.csv"
    table.write_text("image,label\n" + "".join(f"d/imagesTr/p{n}.nii.gz,d/labelsTr/p{n}.nii.gz\n" for n in range(2)))
    (tmp_path / "labels.json").write_text(json.dumps(MAP))
    for data in (root, table):
        (finding,) = [each for each in examine(data).findings if each.kind == "missing_label"]
        assert [item.detail for item in finding.items] == ["a link to a file that does not exist"]


def test_a_case_listed_twice_is_said_with_its_lists_and_misses_no_label(tmp_path: Path) -> None:
    root = decathlon(tmp_path)
    content = json.loads((root / "dataset.json").read_text())
    content["unlabeled"] = [content["training"][0]["image"]]
    (root / "dataset.json").write_text(json.dumps(content))
    findings = examine(root).findings
    assert not [each for each in findings if each.kind == "missing_label"]
    (finding,) = [each for each in findings if each.kind == "same_name"]
    assert [(item.files, item.detail) for item in finding.items] == [
        (["p0"], "imagesTr/p0.nii.gz listed 2 times (training, unlabelled)")
    ]


def test_one_image_in_two_forms_misses_no_listed_label(tmp_path: Path) -> None:
    root = folders(tmp_path)
    (root / "images" / "p0.nii").write_bytes(gzip.decompress((root / "images" / "p0.nii.gz").read_bytes()))
    kinds = {each.kind for each in examine(root).findings if each.level == "error"}
    assert kinds == {"no_label", "same_name"}


def test_deleted_scans_are_not_found(tmp_path: Path) -> None:
    """A share of a NAS keeps them in a recycle bin, and thumbnails beside the files."""
    folders(tmp_path)
    for bin_of_the_system in ("#recycle", "$RECYCLE.BIN", "images/@eaDir", "lost+found"):
        case(tmp_path / bin_of_the_system, "old", 5)
    assert open_dataset(tmp_path).names == ("p0", "p1")
    assert {wanted.name for wanted in find_images(tmp_path)} == {"images/p0", "images/p1"}
    assert all("old" not in name for name in unread_files(tmp_path, find_images(tmp_path)))
    images = tmp_path / "images"
    assert [wanted.name for wanted in find_images(images)] == ["p0", "p1"]


def test_binary_masks_of_totalsegmentator_are_not_taken_for_images(tmp_path: Path) -> None:
    image, mask = phantom((40, 36, 5), seed=9)
    for name in ("s0001/ct", "s0001/segmentations/liver", "s0001/segmentations/spleen"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write_nifti(tmp_path / f"{name}.nii.gz", image if name.endswith("ct") else mask, MATRIX)
    found = find_images(tmp_path)
    assert [each.name for each in found] == ["s0001/ct"]
    assert unread_files(tmp_path, found) == ["s0001/segmentations: labels, which are not segmented"]
    assert len(find_images(tmp_path / "s0001" / "segmentations")) == 2  # asked for
    with pytest.raises(UserError, match="layout of TotalSegmentator, with a binary mask of every structure"):
        open_dataset(tmp_path)


def test_labels_by_several_raters_are_neither_images_nor_chosen_silently(tmp_path: Path) -> None:
    root = folders(tmp_path / "data")
    label = next((root / "labels").glob("p0*"))
    for place in ("labels", "images"):
        for rater in ("p0_rater1", "p0_Reader-2_seg"):
            shutil.copy(label, root / place / f"{rater}.nii.gz")
    assert {each.name for each in find_images(root / "images")} == {"p0", "p1"}
    for rater in (root / "images").glob("p0_*"):
        unread = unread_files(root / "images", find_images(root / "images"))
        assert f"{rater.name}: a label, which is not segmented" in unread
        rater.unlink()
    label.unlink()
    with pytest.raises(UserError, match="p0 has several labels: keep one, or list the cases in a CSV file"):
        open_dataset(root)
