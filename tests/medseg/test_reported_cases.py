"""Situations from public bug reports, made by generators beside the real data: each has its right outcome."""

from __future__ import annotations

import json
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

from contrastive_core.errors import UserError
from contrastive_core.training import RunOptions, config
from ssl_medseg import predict, train
from ssl_medseg.checks import examine
from ssl_medseg.checks.repair import repair
from ssl_medseg.commands.make_splits import make_splits
from ssl_medseg.datasets import DataOptions, Split, open_dataset, write_split
from ssl_medseg.io import read_volume
from ssl_medseg.io.label_map import LabelMap
from ssl_medseg.io.volume import ImageFile
from ssl_medseg.models import NetworkOptions
from ssl_medseg.prediction import InferenceOptions
from ssl_medseg.preprocessing import Preprocessing, PreprocessingOptions, prepare
from ssl_medseg.preprocessing.plan import choose_preprocessing
from ssl_medseg.reports.evaluation import evaluate
from tests.conftest import SHARED
from tests.medseg.grouped import grouped
from tests.medseg.small_models import random_segmenter

QUIET = RunOptions(device="cpu", threads=1, progress=False, checkpoint_every=2)
SMALL = {
    "network": NetworkOptions("plain-unet", 2), "preprocessing": PreprocessingOptions(image_size=32), "batch_size": 4,
    "validate_every": 5, "opening": DataOptions(allow_unlabelled=True),
}  # fmt: skip
ZONES = LabelMap(("background", "peripheral zone", "transition zone"), (0, 1, 2))
AXIAL = Preprocessing(size=(64, 64), spacing=(2.5, 2.5), slice_axis=2, orientation="LPS")


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """`made("15")` writes the files of a case to a new folder, or skips the test where there are no generators."""

    def write(number: str) -> Path:
        found = sorted((SHARED / "cases" / "medseg").glob(f"case_{number}_*.py"))
        if not found:
            pytest.skip(f"generator {number} not found in {SHARED / 'cases' / 'medseg'} (set SSL_SHARED)")
        monkeypatch.setenv("SSL_SHARED", str(SHARED))
        monkeypatch.setattr(sys, "argv", [str(found[0]), str(tmp_path / "data")])
        runpy.run_path(str(found[0]))
        return tmp_path / "data"

    return write


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_segmenter(tmp_path_factory.mktemp("model") / "model", AXIAL, labels=ZONES)


def kinds(data: Path, level: str, **options: object) -> set[str]:
    return {each.kind for each in examine(data, **options).findings if each.level == level}  # type: ignore[arg-type]


def details(data: Path, kind: str) -> dict[str, str]:
    """Return file or case -> details of a finding."""
    found = [each for each in examine(data).findings if each.kind == kind]
    return {name: item.detail for each in found for item in each.items for name in item.files}


def segmented(model: Path, data: Path, out: Path, **options: object) -> tuple[set[str], str]:
    """Return the masks that `predict` writes, and the message if images fail."""
    message = ""
    try:
        predict(str(model), str(data), out, inference=InferenceOptions(device="cpu"), **options)  # type: ignore[arg-type]
    except UserError as error:
        message = str(error)
    masks = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.name.endswith((".nii.gz", ".dcm"))}
    return masks, message


def test_02_isotropic_volumes_stored_in_two_ways_have_the_slices_of_anisotropic_ones(made) -> None:
    for sub in ("one", "other"):
        data = open_dataset(made("02") / sub)
        p, _ = choose_preprocessing(data, data.names)
        assert (p.orientation, p.plane) == ("LPS", "axial")
        stored = read_volume(data.case("p1").image)
        turned = nibabel.as_closest_canonical(nibabel.load(data.case("p1").image.path))
        nibabel.save(turned, data.case("p1").image.path)
        again = prepare(read_volume(data.case("p1").image), p)
        np.testing.assert_array_equal(prepare(stored, p).slices, again.slices)


def test_04_rounding_of_grids_is_a_note_and_a_shift_an_error(made) -> None:
    data = made("04")
    assert kinds(data, "error") == set()
    assert all("% of a voxel" in words and "0, 0, 0" not in words for words in details(data, "grid_rounding").values())
    label = data / "labelsTr" / "same.nii.gz"
    opened = nibabel.load(label)
    opened.affine[:3, 3] += opened.affine[:3, 0]
    nibabel.save(nibabel.Nifti1Image(np.asarray(opened.dataobj), opened.affine, opened.header), label)
    assert set(details(data, "grid")) == {"same"}


def test_05_a_mask_has_a_sheared_sform_bit_for_bit(made, model: Path, tmp_path: Path) -> None:
    data = made("05")
    assert set(details(data, "grid")) == {"b"}
    masks, _ = segmented(model, data / "imagesTr", tmp_path / "out")
    assert masks == {"a.nii.gz", "b.nii.gz"}
    image, mask = (nibabel.load(folder / "a.nii.gz").header for folder in (data / "imagesTr", tmp_path / "out"))
    for name in ("srow_x", "srow_y", "srow_z", "sform_code", "qform_code", "quatern_b", "qoffset_x", "pixdim"):
        np.testing.assert_array_equal(mask[name], image[name])
    assert not repair(str(data), tmp_path / "copy", ["grid"]).changes[0].left


def test_06_scaled_labels_are_rounded_or_refused_and_repaired_to_the_true_values(made, tmp_path: Path) -> None:
    data = made("06")
    assert set(details(data, "rounded")) == {"int16"}
    assert "1.002" in details(data, "fraction")["uint8"]
    repair(str(data), tmp_path / "copy", ["fractions"])
    true = np.asarray(nibabel.load(SHARED / "data/prostate/labelsTr/Case03.nii.gz").dataobj)[::4, ::4]
    for name, wrong in (("int16", 0), ("uint8", 1)):  # one voxel was set to another value
        found = np.asarray(nibabel.load(tmp_path / f"copy/labelsTr/{name}.nii.gz").dataobj)
        assert np.count_nonzero(found != true) == wrong


def test_07_label_values_are_the_user_s(made, tmp_path: Path) -> None:
    data = made("07")
    assert "255" in details(data / "a", "unknown_value")["p0"]
    assert kinds(data / "a", "error", opening=DataOptions(label_map=data / "map.json")) == set()
    labels = LabelMap(("background", "pz", "tz"), (0, 1, 4))
    assert open_dataset(data / "b").labels == labels
    write_split(tmp_path / "s.json", Split(labelled=("p0", "p1"), unlabelled=("p2",)), open_dataset(data / "b"))
    train(str(data / "b"), tmp_path / "run", split=tmp_path / "s.json", **grouped(steps=8, run=QUIET, **SMALL))
    segmented(tmp_path / "run", data / "b" / "imagesTr", tmp_path / "out")
    values = {v for p in (tmp_path / "out").glob("*.gz") for v in np.unique(np.asarray(nibabel.load(p).dataobj))}
    assert values <= {0, 1, 4}
    assert values != {0}


def test_08_wide_types_are_read_as_the_numbers_they_are(made, model: Path, tmp_path: Path) -> None:
    data = made("08")
    assert kinds(data, "error") == set()
    for number, name in enumerate(("int64", "uint64", "float64", "uint32", "int8")):
        source = SHARED / f"data/prostate/imagesTr/Case{number:02}.nii.gz"
        expected = np.asarray(nibabel.load(source).dataobj)[::4, ::4] * (20 if name in ("uint32", "int8") else 1)
        np.testing.assert_array_equal(read_volume(ImageFile(data / f"imagesTr/{name}.nii.gz")).array, expected)
    assert len(segmented(model, data / "imagesTr", tmp_path / "out")[0]) == 5


def test_09_colours_and_several_volumes_are_refused_by_name(made, model: Path, tmp_path: Path) -> None:
    data = made("09")
    assert set(details(data, "several_volumes")) == {"vector", "channel_first"}
    assert set(details(data, "unreadable")) == {"rgb"}
    assert set(details(data, "unreadable_label")) == {"onehot", "rgblabel"}
    masks, message = segmented(model, data / "imagesTr", tmp_path / "out")
    assert {"single4.nii.gz", "single5.nii.gz"} < masks
    assert all(name in message for name in ("rgb", "vector", "channel_first"))


def test_11_a_label_without_a_position_can_be_given_its_image_s_header(made, tmp_path: Path) -> None:
    data = made("11")
    assert all("--repair header" in words for words in details(data, "grid").values())
    done = repair(str(data), tmp_path / "copy", ["header"])
    assert len(done.changes) == 3
    assert kinds(tmp_path / "copy", "error") == set()


def test_12_pairs_of_img_and_hdr_are_read(made, model: Path, tmp_path: Path) -> None:
    data = made("12") / "mixed"
    report = examine(data)
    assert (len(report.facts), report.unused, report.errors) == (4, 0, [])
    assert len(segmented(model, data / "images", tmp_path / "out")[0]) == 4
    assert segmented(model, data / "images" / "p1.img", tmp_path / "one")[0] == {"p1.nii.gz"}


def test_13_masks_of_nifti_2_and_of_big_endian_files_lie_on_their_images(made, model: Path, tmp_path: Path) -> None:
    data = made("13")
    assert kinds(data, "error") == set()
    masks, _ = segmented(model, data / "imagesTr", tmp_path / "out")
    assert masks == {"n2.nii.gz", "be.nii.gz"}
    sitk = pytest.importorskip("SimpleITK")
    for name in masks:
        mask, image = (nibabel.load(folder / name) for folder in (tmp_path / "out", data / "imagesTr"))
        np.testing.assert_allclose(mask.affine, image.affine, atol=1e-6)
        read = sitk.ReadImage(str(tmp_path / "out" / name))  # also where it cannot read the image, NIfTI-2
        np.testing.assert_array_equal(sitk.GetArrayFromImage(read).T, np.asarray(mask.dataobj))
        lps = np.diag([-1, -1, 1]) @ image.affine[:3]
        np.testing.assert_allclose(read.GetOrigin(), lps[:, 3], atol=1e-3)
        np.testing.assert_allclose(read.GetSpacing(), np.linalg.norm(lps[:, :3], axis=0), rtol=1e-5)
        directions = np.reshape(read.GetDirection(), (3, 3)) * read.GetSpacing()
        np.testing.assert_allclose(directions, lps[:, :3], atol=1e-4)


def test_14_files_are_read_or_named_with_what_they_are(made) -> None:
    found = details(made("14"), "unreadable")
    assert set(found) == {"plain_as_gz", "trailing", "gz_as_nii"}
    assert "rename it to plain_as_gz.nii" in found["plain_as_gz"]
    assert "7 bytes that are not gzip-compressed" in found["trailing"]
    assert "rename it to gz_as_nii.nii.gz" in found["gz_as_nii"]


def test_15_odd_names_links_and_hidden_files(made, model: Path, tmp_path: Path) -> None:
    data = made("15")
    names = {"Müller Jörg 01", "1.2.840.113", "A#b&c'd", "UPPER", "link", "脑_001"}
    report = examine(data)
    assert {one.case.name for one in report.facts} == names
    assert all(one.label is not None for one in report.facts)
    assert (report.unused, report.errors, report.warnings) == (0, [], [])  # where the link leads is used
    made_splits = make_splits(str(data), tmp_path / "splits", n_labelled=(2,), draws=1, n_validation=1, n_test=1)
    assert not made_splits.remarks
    masks, message = segmented(model, data / "images", tmp_path / "out")
    assert (masks, message) == ({f"{name}.nii.gz" for name in names}, "")
    assert {each.case for each in evaluate(tmp_path / "out", str(data), pictures=False).evaluation.cases} == names


def test_16_equal_names_of_two_sites_are_told_apart(made, model: Path, tmp_path: Path) -> None:
    data = made("16")
    for table in ("all.csv", "semicolon.csv"):
        with pytest.raises(UserError, match=r"siteA/images/000\.nii\.gz, siteB/images/000\.nii\.gz"):
            open_dataset(data / table)
    named = open_dataset(data / "named.csv")
    assert [case.patient for case in named.cases] == ["siteA-0", "siteA-1", "siteB-0", "siteB-1"]
    masks, _ = segmented(model, data, tmp_path / "out")
    assert {f"site{s}/images/00{n}.nii.gz" for s in "AB" for n in (0, 1)} <= masks


def test_18_nearly_isotropic_volumes_have_one_plane(made, model: Path, tmp_path: Path) -> None:
    data = made("18")
    assert "slice_plane" in kinds(data, "note")
    dataset = open_dataset(data)
    p, reasons = choose_preprocessing(dataset, dataset.names)
    assert (p.plane, p.slice_axis) == ("axial", 2)
    assert "--slice-axis" in reasons[0]
    assert len(segmented(model, data / "imagesTr", tmp_path / "out")[0]) == 4


def test_19_structures_that_resampling_erases_are_named(made) -> None:
    data = made("19")
    report = examine(data, preprocessing=PreprocessingOptions(image_size=32))
    (finding,) = [each for each in report.findings if each.kind == "erased"]
    assert "label" not in finding.title  # it is not they that are to blame
    assert {item.files[0]: item.detail for item in finding.items} == {
        f"p{n}": f"seed: 2 voxels of {0.62 if n else 0.6} mm before, 0 pixels of 3.8 mm after" for n in range(4)
    }


def test_20_nearly_empty_volumes_name_the_option_that_helps(made, model: Path, tmp_path: Path) -> None:
    data = made("20")
    assert all("--high 99.9" in words for words in details(data, "constant").values())
    masks, message = segmented(model, data / "imagesTr", tmp_path / "out")
    assert not masks
    assert "99.2 % of the voxels are 0" in message


def test_22_millimetres_and_millilitres_are_known_for_all(made) -> None:
    data = made("22")
    found = evaluate(data / "masks", str(data), pictures=False)
    assert "voxels apart" not in str(found)
    for case, side in zip(found.evaluation.cases, (1.0, 1.25, 1.25), strict=True):
        truth = np.asarray(nibabel.load(data / f"labelsTr/{case.case}.nii.gz").dataobj)
        each = case.structures[1]
        assert each.truth_ml == pytest.approx(np.count_nonzero(truth == 2) * side**3 / 1000)
        assert each.hd95 is not None


def test_23_masks_of_an_earlier_run_are_not_scored(made, model: Path, tmp_path: Path) -> None:
    data = made("23")
    segmented(model, data / "images", tmp_path / "out")
    _, message = segmented(model, data / "images2", tmp_path / "out")
    assert "p1.nii.gz, p2.nii.gz" in message
    found = evaluate(tmp_path / "out", str(data), pictures=False).evaluation
    assert [case.case for case in found.cases] == ["p0"]


def test_24_training_goes_on_where_the_data_lie_now(made, tmp_path: Path) -> None:
    data = made("24") / "data"
    names = {"0": "background", "1": "pz", "2": "tz"}
    (data / "map.json").write_text(json.dumps(names))
    parts = Split(labelled=("p0",), validation=("p1",), unlabelled=("p2",))
    write_split(tmp_path / "s.json", parts, open_dataset(data))

    def trained(place: Path, run: RunOptions) -> None:
        options = {**SMALL, "opening": DataOptions(allow_unlabelled=True, label_map=place / "map.json")}
        train(str(place), tmp_path / "run", split=tmp_path / "s.json", **grouped(steps=4, run=run, **options))

    trained(data, QUIET)
    shutil.rmtree(tmp_path / "run" / "model")
    moved = data.parent / "moved"
    data.rename(moved)
    resumed = RunOptions(**{**vars(QUIET), "resume": True})
    trained(moved, resumed)
    stored = config.read(tmp_path / "run" / "config.yaml")
    assert (stored["data"], stored["opening"]["label_map"]) == (str(moved), str(moved / "map.json"))
    (moved / "map.json").write_text(json.dumps({**names, "2": "other"}))
    with pytest.raises(UserError, match="started with another label map"):
        trained(moved, resumed)
    (moved / "map.json").write_text(json.dumps(names))
    shutil.copy(moved / "imagesTr" / "p1.nii.gz", moved / "imagesTr" / "p2.nii.gz")
    with pytest.raises(UserError, match=r"started with other data.* of 1 cases differ \(p2\)"):
        trained(moved, resumed)


def test_25_cases_folded_into_one_patient_are_warned_of(made) -> None:
    data = made("25")
    (finding,) = [each for each in examine(data).warnings if each.kind == "one_patient"]
    assert "--patient-pattern" in finding.title
    assert len(open_dataset(data, patient_pattern=r"\d+$").patients) == 5


@pytest.mark.slow
def test_26_memory_is_a_few_times_the_volume(made, model: Path, tmp_path: Path) -> None:
    data = made("26")
    code = "import resource, sys; from ssl_medseg.cli import main; main(sys.argv[1:]); " \
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"  # fmt: skip

    def peak(*words: str) -> int:
        line = [sys.executable, "-c", code, "predict", str(model), *words, "--device", "cpu"]
        done = subprocess.run(line, capture_output=True, text=True, check=True)
        return int(done.stdout.split()[-1]) * (1 if sys.platform == "linux" else 1 / 1024)

    small = nibabel.load(SHARED / "data/prostate/imagesTr/Case00.nii.gz")
    nibabel.save(small.slicer[::4, ::4], tmp_path / "small.nii.gz")
    least = peak(str(tmp_path / "small.nii.gz"), str(tmp_path / "s"))
    assert peak(str(data / "images"), str(tmp_path / "o"), "--voxel-size", "0.6,0.6,2") - least < 7 * 205_000  # kB
    frame = peak(str(data / "cine.nii.gz"), str(tmp_path / "c"), "--frame", "3", "--voxel-size", "1.2,1.2,4")
    assert frame - least < 75_000  # of 150 MB


def test_30_compressed_series_are_read_or_name_the_decoder(made, model: Path, tmp_path: Path) -> None:
    pytest.importorskip("highdicom")
    masks, message = segmented(model, made("30"), tmp_path / "out")
    assert {"rle.dcm", "bigendian.dcm"} <= masks
    assert "jpeglossless" not in masks
    assert "jpeglossless" in message
    assert "pip install pylibjpeg" in message or "cannot be read" in message  # where the decoder is installed


def test_31_every_slice_has_its_own_slope(made) -> None:
    pydicom = pytest.importorskip("pydicom")
    folder = made("31") / "slope"
    volume = read_volume(ImageFile(folder))
    places = [(volume.affine @ [0, 0, z, 1])[2] for z in range(volume.array.shape[2])]
    for file in folder.iterdir():
        one = pydicom.dcmread(file)
        z = int(np.argmin(np.abs(np.array(places) - float(one.ImagePositionPatient[2]))))
        expected = one.pixel_array.T * float(one.RescaleSlope) + float(one.RescaleIntercept)
        np.testing.assert_allclose(volume.array[:, :, z], expected, rtol=1e-5)


def test_32_missing_tags_are_named_and_stop_no_other_series(made, model: Path, tmp_path: Path) -> None:
    pytest.importorskip("highdicom")
    masks, message = segmented(model, made("32"), tmp_path / "out")
    assert masks == {
        "frame.nii.gz", "series_uid.nii.gz",
        *(f"{name}.dcm" for name in ("number", "patient", "rescale", "study", "thickness")),
    }  # fmt: skip
    assert "spacing_last: IM0005 lacks ImagePositionPatient" in message
    assert "FrameOfReferenceUID" in message


def test_33_odd_stacks_are_refused_with_their_files(made, model: Path, tmp_path: Path) -> None:
    pytest.importorskip("highdicom")
    masks, message = segmented(model, made("33"), tmp_path / "out")
    assert masks == {"jitter.dcm"}
    assert "4 of 5 images could not be segmented" in message
    stored = json.loads((tmp_path / "out" / "predictions.json").read_text())["cases"]
    errors = {case["image"]: case["error"] for case in stored}
    assert "IM0100" in errors["localizer"]
    assert "IM0004" in errors["pixels"]
    assert "IM0004" in errors["rows"]
    assert "tilt of 9°" in errors["tilt"]


def test_35_a_multi_frame_image_has_the_mask_of_its_series_and_is_referred_to(
    made, model: Path, tmp_path: Path
) -> None:
    highdicom, pydicom = pytest.importorskip("highdicom"), pytest.importorskip("pydicom")
    data = made("35")
    classic, enhanced = (read_volume(ImageFile(data / name)) for name in ("classic", "enhanced"))
    np.testing.assert_array_equal(enhanced.array, classic.array)
    np.testing.assert_allclose(enhanced.affine, classic.affine, atol=1e-5)
    segmented(model, data, tmp_path / "out")
    found = {name: highdicom.seg.segread(tmp_path / "out" / f"{name}.dcm") for name in ("classic", "enhanced")}
    volumes = {name: each.get_volume(combine_segments=True) for name, each in found.items()}
    np.testing.assert_array_equal(volumes["enhanced"].array, volumes["classic"].array)
    np.testing.assert_allclose(volumes["enhanced"].affine, volumes["classic"].affine, atol=1e-5)
    source = pydicom.dcmread(data / "enhanced" / "multi.dcm")
    (series,) = found["enhanced"].ReferencedSeriesSequence
    assert series.SeriesInstanceUID == source.SeriesInstanceUID
    assert [one.ReferencedSOPInstanceUID for one in series.ReferencedInstanceSequence] == [source.SOPInstanceUID]
