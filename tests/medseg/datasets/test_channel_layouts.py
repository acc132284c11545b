"""Channels in every layout: their names and order, missing ones, and contradictions to the list."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from contrastive_core.errors import UserError
from ssl_medseg.checks import examine
from ssl_medseg.datasets import open_dataset
from ssl_medseg.datasets.channels import fit_channels
from ssl_medseg.io import ImageFile, join_channels, read_volume
from tests.medseg.dicom_series import write_series
from tests.medseg.volumes_on_disk import affine, phantom, write_nifti

MAP = {"background": 0, "outer": 1, "middle": 2, "inner": 3}
SHAPE, MATRIX = (36, 32, 4), affine((1.2, 1.2, 5.0), letters="LPS")
NAMES = ("p1", "p2")


def image(case: str, channel: int) -> np.ndarray:
    return phantom(SHAPE, seed=10 * NAMES.index(case) + channel)[0].astype(np.int16)


def put(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_nifti(path, array, MATRIX)


def nnunet(root: Path, *, stated: tuple[str, ...] = ("T2", "ADC")) -> Path:
    for case in NAMES:
        for channel in (0, 1):
            put(root / "imagesTr" / f"{case}_{channel:04}.nii.gz", image(case, channel))
        put(root / "labelsTr" / f"{case}.nii.gz", phantom(SHAPE)[1])
    content = {"channel_names": {str(n): name for n, name in enumerate(stated)}, "labels": MAP}
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def decathlon(root: Path, *, stated: tuple[str, ...] = ("T2", "ADC")) -> Path:
    for case in NAMES:
        put(root / "imagesTr" / f"{case}.nii.gz", np.stack([image(case, 0), image(case, 1)], -1))
        put(root / "labelsTr" / f"{case}.nii.gz", phantom(SHAPE)[1])
    content = {
        "modality": {str(n): name for n, name in enumerate(stated)},
        "labels": {str(value): name for name, value in MAP.items()},
        "training": [{"image": f"imagesTr/{n}.nii.gz", "label": f"labelsTr/{n}.nii.gz"} for n in NAMES],
    }
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def bids(root: Path) -> Path:
    for case in NAMES:
        put(root / f"sub-{case}" / "anat" / f"sub-{case}_acq-tra_T2w.nii.gz", image(case, 0))
        put(root / f"sub-{case}" / "dwi" / f"sub-{case}_ADC.nii.gz", image(case, 1))
        put(root / f"sub-{case}" / "anat" / f"sub-{case}_T2w_dseg.nii.gz", phantom(SHAPE)[1])
    (root / "dseg.tsv").write_text("index\tname\n" + "".join(f"{v}\t{n}\n" for n, v in MAP.items() if v))
    return root


def table(root: Path) -> Path:
    nnunet(root)
    (root / "dataset.json").rename(root / "labels.json")
    (root / "labels.json").write_text(json.dumps(MAP))
    rows = [f"{n},imagesTr/{n}_0000.nii.gz,imagesTr/{n}_0001.nii.gz,labelsTr/{n}.nii.gz" for n in NAMES]
    (root / "cases.csv").write_text("\n".join(["Case,image_T2,Image_ADC,label", *rows]) + "\n")
    return root / "cases.csv"


@pytest.mark.parametrize("layout", [nnunet, decathlon, bids, table])
def test_every_layout_has_all_channels_in_order(layout, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    source = layout(tmp_path / "data")
    first = "acq-tra_T2w" if layout is bids else "T2"
    data = open_dataset(source)
    assert data.channels == (first, "ADC")
    assert data.notes == ()
    for case, name in zip(data.cases, NAMES, strict=True):
        volume = read_volume(case.image)
        assert case.label is not None
        for number, array in enumerate(volume.channels.values()):
            np.testing.assert_array_equal(array, image(name, number))
    # One of them, and in another order under another name.
    (case, _) = open_dataset(source, channels=("adc",)).cases
    assert case.image.channel_names == ("ADC",)
    np.testing.assert_array_equal(read_volume(case.image).array, image("p1", 1))
    turned = open_dataset(source, channels=("1", "anatomy=0"))
    assert turned.channels == ("ADC", "anatomy")
    np.testing.assert_array_equal(read_volume(turned.cases[0].image).array, image("p1", 1))
    for wrong, message in (
        (("FLAIR",), "has no channel 'FLAIR'"),
        (("ADC", "1"), "names the channel 1 twice"),
        (("ADC", "ADC"), "expected distinct names"),
    ):
        with pytest.raises(UserError, match=message):
            open_dataset(source, channels=wrong)


def folders(root: Path, *, endings: tuple[str, str], nested: bool = False) -> Path:
    for case in NAMES:
        for channel, ending in enumerate(endings):
            put(
                root / "images" / (f"{case}/{ending}.nii.gz" if nested else f"{case}_{ending}.nii.gz"),
                image(case, channel),
            )
        put(root / "labels" / f"{case}_seg.nii.gz", phantom(SHAPE)[1])
    (root / "labels.json").write_text(json.dumps(MAP))
    return root


@pytest.mark.parametrize(
    ("endings", "nested", "channels"),
    [
        (("T2", "ADC"), False, ("T2", "ADC")),
        (("t2", "adc"), True, ("T2", "ADC")),
        (("ep2d diff", "t2_tse"), False, ("T2=ep2d diff", "ADC=T2_tse")),
        (("0000", "0001"), False, ("T2", "ADC")),
    ],
)
def test_folders_may_have_a_file_per_channel(
    endings: tuple[str, str], nested: bool, channels: tuple[str, ...], tmp_path: Path
) -> None:
    data = folders(tmp_path, endings=endings, nested=nested)
    put(data / "unlabelled" / (f"p1/{endings[0]}.nii.gz" if nested else f"u1_{endings[0]}.nii.gz"), image("p1", 0))
    first = ("T2=0",) if endings[0] == "0000" else channels[:1]
    with pytest.raises(UserError, match=r"1 case without a channel that others have \(T2, ADC\).*\n +[pu]1: lacks ADC"):
        open_dataset(data, channels=channels)
    shutil.rmtree(data / "unlabelled")
    found = open_dataset(data, channels=channels)
    assert (found.names, found.channels) == (NAMES, ("T2", "ADC"))
    for case in found.cases:
        assert case.label == data / "labels" / f"{case.name}_seg.nii.gz"
        for number, array in enumerate(read_volume(case.image).channels.values()):
            np.testing.assert_array_equal(array, image(case.name, number))
    single = open_dataset(data, channels=first)
    assert (single.names, single.channels, single.notes) == (NAMES, ("T2",), ())
    np.testing.assert_array_equal(read_volume(single.cases[0].image).array, image("p1", 0))


def test_numbered_files_in_folders_are_channels_if_the_labels_have_no_number(tmp_path: Path) -> None:
    data = folders(tmp_path, endings=("0000", "0001"))
    assert (open_dataset(data).names, open_dataset(data).channels) == (NAMES, ("0", "1"))
    for case in NAMES:
        (data / "labels" / f"{case}_seg.nii.gz").rename(data / "labels" / f"{case}_0000.nii.gz")
        (data / "images" / f"{case}_0001.nii.gz").unlink()
    assert open_dataset(data).names == ("p1_0000", "p2_0000")


def test_a_label_may_be_named_after_the_first_channel(tmp_path: Path) -> None:
    data = folders(tmp_path, endings=("T2", "ADC"))
    for case in NAMES:
        (data / "labels" / f"{case}_seg.nii.gz").rename(data / "labels" / f"{case}_T2_seg.nii.gz")
    found = open_dataset(data, channels=("T2", "ADC"))
    assert [case.label for case in found.cases] == [data / "labels" / f"{case}_T2_seg.nii.gz" for case in NAMES]
    with pytest.raises(UserError, match="label file"):
        open_dataset(data, channels=("ADC", "T2"))  # ADC would define the grid


def test_files_that_may_be_channels_are_suggested_and_doubled_ones_refused(tmp_path: Path) -> None:
    data = folders(tmp_path / "ends", endings=("T2", "ADC"))
    with pytest.raises(UserError, match=r"if p1_ADC and p1_T2 are the channels of its image: --channels ADC,T2"):
        open_dataset(data)
    with pytest.raises(UserError, match=r"if p1/ADC and p1/T2 are the channels of its image: --channels ADC,T2"):
        open_dataset(folders(tmp_path / "nested", endings=("T2", "ADC"), nested=True))
    put(data / "images" / "p1_t2.nii.gz", image("p1", 0))
    with pytest.raises(UserError, match=r"several files for the same channel.*\n +p1_T2.nii.gz, p1_t2.nii.gz"):
        open_dataset(data, channels=("T2", "ADC"))
    (data / "images" / "p1_t2.nii.gz").unlink()
    put(data / "images" / "p3.nii.gz", image("p1", 0))  # an image of its own, without channels
    with pytest.raises(UserError, match=r"\n +p3: lacks T2; ADC"):
        open_dataset(data, channels=("T2", "ADC"), allow_unlabelled=True)


def test_a_case_that_lacks_a_channel_is_refused_by_name(tmp_path: Path) -> None:
    words = r"1 case without a channel that others have.*\n +p2: lacks ADC"
    for name, source in (("nn", nnunet(tmp_path / "nn")), ("csv", table(tmp_path / "csv"))):
        (tmp_path / name / "imagesTr" / "p2_0001.nii.gz").unlink()
        if name == "csv":
            text = source.read_text().replace("imagesTr/p2_0001.nii.gz", "")
            source.write_text(text)
        with pytest.raises(UserError, match=words):
            open_dataset(source)
        assert "missing_channel" in {found.kind for found in examine(source).findings}
        assert (
            open_dataset(source, channels=("T2",)).names == (("p1", "p2") if name == "nn" else ("p1_0000", "p2_0000"))
            or name == "csv"
        )
    four = decathlon(tmp_path / "four")
    put(four / "imagesTr" / "p2.nii.gz", image("p2", 0))
    with pytest.raises(UserError, match=words):
        open_dataset(four)
    assert read_volume(open_dataset(four, channels=("T2",)).cases[1].image).array.shape == SHAPE
    brains = bids(tmp_path / "bids")
    (brains / "sub-p2" / "dwi" / "sub-p2_ADC.nii.gz").unlink()
    with pytest.raises(UserError, match=r"\n +sub-p2: lacks ADC"):
        open_dataset(brains)


def test_a_list_that_disagrees_with_the_files_is_warned_of(tmp_path: Path) -> None:
    data = open_dataset(nnunet(tmp_path / "nn", stated=("T2", "ADC", "DWI")))
    assert data.channels == ("T2", "ADC")
    assert "names 3 channels (T2, ADC, DWI), but the files have _0000, _0001" in data.notes[0]
    four = decathlon(tmp_path / "four")
    for name in NAMES:
        put(four / "imagesTr" / f"{name}.nii.gz", image(name, 0))
    data = open_dataset(four)
    assert data.channels == ("T2",)
    assert "names 2 channels (T2, ADC), but the files contain at most 1 volume; using the first, T2" in data.notes[0]
    assert read_volume(data.cases[0].image).array.shape == SHAPE


def test_unnamed_channels_take_the_names_that_are_given(tmp_path: Path) -> None:
    root = nnunet(tmp_path / "data")
    content = json.loads((root / "dataset.json").read_text())
    (root / "dataset.json").write_text(json.dumps({"labels": content["labels"], "channel_names": {}}))
    assert open_dataset(root).channels == ("0", "1")
    assert open_dataset(root, channels=("T2", "ADC")).channels == ("T2", "ADC")
    with pytest.raises(UserError, match=r"has 3 names \(T2, ADC, DWI\) for 2 unnamed channels"):
        open_dataset(root, channels=("T2", "ADC", "DWI"))


def test_lists_of_files_as_monai_has_them(tmp_path: Path) -> None:
    root = nnunet(tmp_path)
    images = [[f"imagesTr/{n}_0000.nii.gz", f"imagesTr/{n}_0001.nii.gz"] for n in NAMES]
    content = {
        "modality": {"0": "T2", "1": "ADC"},
        "labels": {str(value): name for name, value in MAP.items()},
        "training": [{"image": i, "label": f"labelsTr/{n}.nii.gz"} for n, i in zip(NAMES, images, strict=True)],
    }
    (root / "dataset.json").write_text(json.dumps(content))
    data = open_dataset(root, layout="decathlon")
    assert data.channels == ("T2", "ADC")
    np.testing.assert_array_equal(read_volume(data.cases[1].image).channels["ADC"], image("p2", 1))


def test_series_of_a_study_are_chosen_by_description(tmp_path: Path) -> None:
    for case in NAMES:
        for number, description in enumerate(("t2_tse_tra", "ep2d_diff_ADC", "ep2d_diff_b1000")):
            folder = tmp_path / "images" / case / (description if case == "p1" else "")
            write_series(
                folder, image(case, number % 2), MATRIX, study=f"1.2.{ord(case[1])}", description=description,
                prefix=description,
            )  # fmt: skip
        put(tmp_path / "labels" / f"{case}.nii.gz", phantom(SHAPE)[1])
    (tmp_path / "labels.json").write_text(json.dumps(MAP))
    data = open_dataset(tmp_path, channels=("T2", "ADC"))
    assert (data.names, data.channels) == (NAMES, ("T2", "ADC"))
    for case in data.cases:
        # DICOM stores slices against their normal.
        np.testing.assert_array_equal(
            np.sort(read_volume(case.image).channels["ADC"], axis=None), np.sort(image(case.name, 1), axis=None)
        )
    with pytest.raises(UserError, match=r"p1: lacks diff: 2 series match 'diff' \(ep2d_diff_ADC, ep2d_diff_b1000\)"):
        open_dataset(tmp_path, channels=("T2", "diff"))
    assert open_dataset(tmp_path, channels=("T2", "DWI=b1000")).channels == ("T2", "DWI")


def test_channels_are_those_of_the_model() -> None:
    t2, adc = ImageFile(Path("a"), name="t2"), ImageFile(Path("b"), name="ADC")
    assert fit_channels(join_channels([adc, t2]), ("T2", "ADC")).channel_names == ("t2", "ADC")
    assert fit_channels(join_channels([adc, t2]), ("ADC",)) == adc
    assert fit_channels(ImageFile(Path("a"), name="T2w"), ("MRI",)) == ImageFile(Path("a"), name="T2w")
    with pytest.raises(UserError, match=r"has the channel t2; the model was trained with T2, ADC\. Add ADC"):
        fit_channels(t2, ("T2", "ADC"))
    numbered = join_channels([ImageFile(Path("a"), name="0"), ImageFile(Path("b"), name="1")])
    with pytest.raises(UserError, match=r"2 unnamed channels.*State their order, for example --channels T2,ADC"):
        fit_channels(numbered, ("T2", "ADC"))


def test_channels_without_names_are_those_with_the_numbers_of_training() -> None:
    a, b, c = (ImageFile(Path(name), name=str(i), number=i) for i, name in enumerate("abc"))
    fitted = fit_channels(join_channels([a, b, c]), ("ADC", "T2"), (2, 0))
    assert [(channel.path.name, channel.name) for channel in fitted.channels] == [("c", "ADC"), ("a", "T2")]
    volumes = [ImageFile(Path("a"), channel=i, name=str(i), number=i) for i in range(3)]
    fitted = fit_channels(join_channels(volumes[:2]), ("ADC", "T2"), (1, 0))
    assert [channel.channel for channel in fitted.channels] == [1, 0]
    for image, numbers in (
        (join_channels(volumes), (1, 0)),  # three volumes may be time points
        (join_channels([a, b]), (2, 0)),  # a number that is not there
        (join_channels([a, b]), ()),  # training had names alone
        (join_channels([replace(a, name="PD"), replace(b, name="DWI")]), (0, 1)),  # names that say otherwise
    ):
        with pytest.raises(UserError, match="was trained with ADC, T2"):
            fit_channels(image, ("ADC", "T2"), numbers)


def test_numbers_of_channels_are_kept_in_the_order_that_was_chosen(tmp_path: Path) -> None:
    root = nnunet(tmp_path)
    assert open_dataset(root).channel_numbers == (0, 1)
    assert open_dataset(root, channels=("ADC", "T2")).channel_numbers == (1, 0)


def test_check_says_how_channels_lie(tmp_path: Path) -> None:
    root = nnunet(tmp_path)
    coarse = affine((2.4, 2.4, 5.0), letters="LPS")
    coarse[:3, 3] = (MATRIX @ [0.5, 0.5, 0, 1])[:3]
    write_nifti(root / "imagesTr" / "p1_0001.nii.gz", image("p1", 1)[:-12:2, ::2], coarse)
    put(root / "imagesTr" / "p2_0001.nii.gz", image("p2", 0))
    report = examine(root)
    found = {finding.kind: finding for finding in report.findings}
    assert found["resampled"].items[0].detail == "ADC: 12 x 16 x 4 voxels against 36 x 32 x 4"
    assert found["covered"].items[0].files == ["p1"]
    assert (found["same_channel"].items[0].files, found["same_channel"].items[0].detail) == (["p2"], "T2 and ADC")
    assert "channels   T2, ADC, resampled to the grid of T2" in report.text()
    # A label that was drawn on another channel.
    write_nifti(root / "labelsTr" / "p1.nii.gz", phantom(SHAPE)[1][:-12:2, ::2], coarse)
    found = {finding.kind: finding for finding in examine(root).findings}
    (wrong,) = [f for f in found.values() if any("it lies on the grid of ADC" in item.detail for item in f.items)]
    assert wrong.level == "error"


def test_two_images_of_one_kind_in_a_bids_session_are_said(tmp_path: Path) -> None:
    root = bids(tmp_path)
    put(root / "sub-p1" / "other" / "sub-p1_ADC.nii.gz", image("p1", 0))
    data = open_dataset(root)
    assert "1 image of a kind that their session already has, left out" in data.notes[0]
    np.testing.assert_array_equal(read_volume(data.cases[0].image).channels["ADC"], image("p1", 1))
