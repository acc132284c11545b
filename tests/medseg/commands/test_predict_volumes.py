"""Masks of any image, on its own grid."""

from __future__ import annotations

import errno
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from contrastive_core.errors import UserError
from ssl_medseg.cli import main
from ssl_medseg.commands.predict import predict
from ssl_medseg.datasets import DataOptions, open_dataset, open_with
from ssl_medseg.datasets.splits import Split, write_split
from ssl_medseg.io import Grid, read_label, read_volume
from ssl_medseg.io.mask import masks_of_predict
from ssl_medseg.io.volume import ImageFile
from ssl_medseg.prediction import InferenceOptions, find_images, largest_parts, segment
from ssl_medseg.preprocessing import Preprocessing
from ssl_medseg.reports.evaluation import evaluate
from tests.medseg.small_models import LABELS, Thresholds, random_segmenter
from tests.medseg.small_sets import decathlon, save_case
from tests.medseg.volumes_on_disk import affine, dice, phantom, write_nifti

CPU = InferenceOptions(device="cpu")

P = Preprocessing(size=(128, 128), spacing=(1.1, 1.1), orientation="LPS", percentiles=(0, 100))
GEOMETRIES = {
    "oblique": ((90, 101, 7), affine((1.25, 1.25, 8.0), angles=(15, -10, 20), letters="LPS")),
    "anisotropic": ((110, 83, 5), affine((1.15, 1.6, 10.0))),
    "flipped": ((97, 80, 6), affine((1.2, 1.3, 6.0), letters="RPI")),
    "slices first": ((6, 97, 80), affine((7.0, 1.2, 1.3), letters="SRA")),
    "very oblique": ((90, 101, 7), affine((1.25, 1.25, 8.0), angles=(40, 35, 10))),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_segmenter(tmp_path_factory.mktemp("model") / "model", P)


def bright(shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A phantom whose classes are levels of brightness, dark elsewhere."""
    _, classes = phantom(shape)
    return classes.astype(np.float32), classes


@pytest.mark.parametrize("name", GEOMETRIES)
def test_the_mask_of_a_volume_lies_on_it(name: str) -> None:
    shape, matrix = GEOMETRIES[name]
    image, classes = bright(shape)
    volume = _volume(image, matrix)
    found = segment(volume, Thresholds(1 / 6, 1 / 2, 5 / 6), P, batch_size=2, probabilities=True)
    assert found.classes.shape == shape
    # Blurred edges between black and white are grey: the outer structure gets a seam there.
    assert min(dice(found.classes, classes)) > 0.93
    assert found.probabilities is not None
    np.testing.assert_array_equal(found.probabilities.argmax(axis=0), found.classes)
    np.testing.assert_allclose(found.probabilities.sum(axis=0), 1, atol=1e-5)
    assert found.notes == ()


def test_a_model_of_images_as_stored_says_so_where_the_orientation_is_known() -> None:
    shape, matrix = GEOMETRIES["flipped"]
    volume = _volume(bright(shape)[0], matrix)
    stored = replace(P, orientation="", frame=None)
    (note,) = segment(volume, Thresholds(1 / 6, 1 / 2, 5 / 6), stored).notes
    assert "this one is stored as RPI" in note
    unknown = replace(volume, grid=replace(volume.grid, place_known=False))
    assert segment(unknown, Thresholds(1 / 6, 1 / 2, 5 / 6), stored).notes == ()


@pytest.mark.parametrize("uncertainty", [False, True])
def test_scores_that_are_not_finite_give_no_mask(uncertainty: bool) -> None:
    """The most probable class of NaN is the first one, so that the mask would be empty."""
    shape, matrix = GEOMETRIES["flipped"]
    volume, network = _volume(bright(shape)[0], matrix), Thresholds(1 / 6, 1 / 2, 5 / 6)
    network.register_forward_hook(lambda *found: found[-1] * math.nan)
    with pytest.raises(UserError, match="the network returned values that are not finite"):
        segment(volume, network, P, uncertainty=uncertainty)


def test_how_slices_are_batched_changes_nothing() -> None:
    shape, matrix = GEOMETRIES["oblique"]
    volume, network = _volume(phantom(shape)[0], matrix), Thresholds(0.3, 0.5, 0.7)
    whole = segment(volume, network, P, batch_size=100, probabilities=True)
    for size in (1, 3):
        part = segment(volume, network, P, batch_size=size, probabilities=True)
        np.testing.assert_array_equal(part.classes, whole.classes)
        np.testing.assert_array_equal(part.probabilities, whole.probabilities)


def test_bfloat16_changes_probabilities_only_by_rounding(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "images").mkdir()
    write_nifti(tmp_path / "images" / "a.nii.gz", phantom((90, 101, 5))[0], affine((1.2, 1.2, 8)))
    found = {}
    for name, precision, machine in (
        ("float32", "32-true", {"avx512_bf16": True}),
        ("bfloat16", "bf16-mixed", {}),
        ("new machine", "auto", {"avx512_bf16": True}),
        ("old machine", "auto", {}),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda machine=machine: machine, raising=False)
        inference = InferenceOptions(device="cpu", precision=precision)
        predict(str(model), tmp_path / "images", tmp_path / name, probabilities=True, inference=inference)
        maps = sorted((tmp_path / name).glob("*prob*"))
        assert maps
        found[name] = np.stack([np.asarray(nibabel.load(path).dataobj) for path in maps])
    np.testing.assert_array_equal(found["new machine"], found["bfloat16"])
    np.testing.assert_array_equal(found["old machine"], found["float32"])
    difference = np.abs(found["bfloat16"] - found["float32"])
    assert 0 < difference.max() < 0.05


def test_slices_are_restored_a_batch_at_a_time() -> None:
    sizes = []

    class Watched(Thresholds):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            sizes.append(len(x))
            return super().forward(x)

    image, _ = phantom((64, 64, 9))
    volume, small = _volume(image, affine((1, 1, 5))), Preprocessing(size=(64, 64))
    segment(volume, Watched(0.3, 0.5, 0.7), small, batch_size=4)
    assert sizes == [4, 4, 1]
    sizes.clear()
    segment(volume, Watched(0.3, 0.5, 0.7), Preprocessing(size=(192, 160)), batch_size=4)
    assert sizes == [1] * 9  # what the caches of a CPU hold


def test_every_image_of_a_folder_is_tried(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "images"
    (data / "deep").mkdir(parents=True)
    paths = {}
    for number, (name, (shape, matrix)) in enumerate(GEOMETRIES.items()):
        folder = data / "deep" if number % 2 else data
        paths[name] = write_nifti(folder / f"{name}.nii.gz", phantom(shape, seed=number)[0], matrix, sform=2, qform=1)
    (data / "broken.nii.gz").write_bytes(b"\x1f\x8b no image")
    write_nifti(data / "constant.nii", np.full((20, 20, 4), 3, np.int16), affine((1, 1, 5)))
    (data / "notes.txt").write_text("not an image")
    out = tmp_path / "masks"

    assert main(["predict", str(model), str(data), str(out), "--device", "cpu"]) == 1
    error = capsys.readouterr().err
    assert "2 of 7 images could not be segmented" in error
    assert "broken: " in error
    assert "constant: " in error
    summary = json.loads((out / "predictions.json").read_text())
    assert summary["labels"] == LABELS.to_json()
    cases = {case["image"]: case for case in summary["cases"]}
    assert {name for name, case in cases.items() if case["error"]} == {"broken", "constant"}
    for path in paths.values():
        mask = out / path.relative_to(data)
        listed = cases[path.relative_to(data).as_posix().removesuffix(".nii.gz")]
        assert listed["mask"] == mask.relative_to(out).as_posix()
        image, written = nibabel.load(path), nibabel.load(mask)
        assert written.shape == image.shape
        np.testing.assert_allclose(written.affine, image.affine, atol=1e-5)
        for field in ("sform_code", "qform_code", "xyzt_units", "pixdim"):
            np.testing.assert_array_equal(written.header[field], image.header[field])
        classes, _ = read_label(mask, LABELS)  # values of the user's labels, and no others
        assert len(np.unique(classes)) > 1
        voxel = abs(np.linalg.det(image.affine[:3, :3])) / 1000
        assert listed["millilitres"]["inner"] == pytest.approx((classes == 3).sum() * voxel, abs=1e-3)
    expected = sorted([*(path.name for path in paths.values()), ".outputs.json", "predictions.json"])
    assert sorted(path.name for path in out.rglob("*") if path.is_file()) == expected


def test_probabilities_and_file_names_on_request(tmp_path: Path, model: Path) -> None:
    shape, matrix = GEOMETRIES["flipped"]
    image = write_nifti(tmp_path / "image.nii.gz", phantom(shape)[0], matrix)
    result = predict(str(model), str(image), tmp_path / "a" / "mask.nii.gz", probabilities=True, inference=CPU)
    assert "1 mask," in str(result)
    assert sorted(p.name for p in (tmp_path / "a").glob("[!.]*")) == ["mask.nii.gz", "mask_probabilities.nii.gz"]
    probabilities = nibabel.load(tmp_path / "a" / "mask_probabilities.nii.gz")
    assert probabilities.shape == (*shape, 4)
    np.testing.assert_allclose(probabilities.affine, nibabel.load(image).affine, atol=1e-5)
    classes, _ = read_label(tmp_path / "a" / "mask.nii.gz", LABELS)
    np.testing.assert_array_equal(np.asarray(probabilities.dataobj).argmax(-1), classes)
    predict(str(model), str(image), tmp_path / "b", inference=CPU)
    assert sorted(p.name for p in (tmp_path / "b").glob("[!.]*")) == ["image.nii.gz", "predictions.json"]
    assert (tmp_path / "a" / "mask.nii.gz").read_bytes()[10:] == (tmp_path / "b" / "image.nii.gz").read_bytes()[10:]


def test_labels_and_images_are_never_replaced(tmp_path: Path, model: Path) -> None:
    """Masks once replaced the labels of a data set, or the image of another case, silently."""
    root = tmp_path / "data"
    decathlon(root, ["case0", "case1"])
    before = {path: path.read_bytes() for path in root.rglob("*.nii.gz")}
    for flags in ({}, {"overwrite": True}):
        with pytest.raises(UserError, match=r"labelsTr/case0\.nii\.gz"):
            predict(str(model), str(root), root / "labelsTr", inference=CPU, **flags)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="did not write them to this folder"):
        predict(str(model), str(root / "imagesTr"), root / "labelsTr", inference=CPU)
    (root / "list.csv").write_text("case,image\ncase1,imagesTr/case0.nii.gz\ncase0,imagesTr/case1.nii.gz\n")
    with pytest.raises(UserError, match="is an input of"):
        predict(
            str(model), str(root / "list.csv"), root / "imagesTr", inference=CPU, overwrite=True,
            opening=DataOptions(allow_unlabelled=True),
        )  # fmt: skip
    assert {path: path.read_bytes() for path in root.rglob("*.nii.gz")} == before
    predict(str(model), str(root / "imagesTr"), tmp_path / "out", inference=CPU)
    predict(str(model), str(root / "imagesTr"), tmp_path / "out", inference=CPU)


@pytest.mark.parametrize("name", ["../../x", "/tmp/x", "a/b", "..", "nul"])
def test_names_of_cases_stay_in_the_folder(tmp_path: Path, model: Path, name: str) -> None:
    save_case(tmp_path, "case0")
    (tmp_path / "list.csv").write_text(f"case,image\n{name},imagesTr/case0.nii.gz\n")
    with pytest.raises(UserError, match="cannot be used as file names"):
        predict(
            str(model), str(tmp_path / "list.csv"), tmp_path / "deep" / "out", inference=CPU,
            opening=DataOptions(allow_unlabelled=True),
        )  # fmt: skip
    assert not (tmp_path / "deep").exists()
    assert not (tmp_path / "x.nii.gz").exists()


def test_a_dicom_series_gets_a_dicom_segmentation(tmp_path: Path, model: Path) -> None:
    highdicom = pytest.importorskip("highdicom")
    from tests.medseg.dicom_series import write_series

    shape, matrix = GEOMETRIES["oblique"]
    series = write_series(tmp_path / "study" / "T2", phantom(shape)[0].round(), matrix)
    write_nifti(tmp_path / "study" / "other.nii.gz", phantom(shape)[0], matrix)
    predict(str(model), str(tmp_path / "study"), tmp_path / "out", inference=CPU)
    assert sorted(p.name for p in (tmp_path / "out").glob("[!.]*")) == ["T2.dcm", "other.nii.gz", "predictions.json"]
    predict(str(model), str(series), tmp_path / "nifti", mask_format="nifti", inference=CPU)
    expected, grid_of_mask = read_label(tmp_path / "nifti" / "T2.nii.gz", LABELS)
    np.testing.assert_allclose(grid_of_mask.affine, read_volume(ImageFile(series)).affine, atol=1e-5)
    seg = highdicom.seg.segread(tmp_path / "out" / "T2.dcm")
    found = seg.get_volume(combine_segments=True).match_geometry(_geometry(highdicom, series)).array
    np.testing.assert_array_equal(found.transpose(2, 1, 0), expected)


def test_the_largest_part_of_each_structure_is_kept() -> None:
    mask = np.zeros((12, 8, 3), np.uint8)
    mask[1:4, 1:4], mask[8:10, 2] = 2, 2
    mask[5, 5, 1], mask[7:9, 6] = 1, 1
    mask[0, 0, 0], mask[1, 1, 1] = 3, 3  # touch nothing of their kind
    kept = largest_parts(mask)
    assert np.bincount(kept.ravel(), minlength=4)[1:].tolist() == [6, 26, 1]
    assert (kept[(kept > 0)] == mask[kept > 0]).all()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nowhere", "out"), "no such file or folder"),
        (("empty", "out"), "contains no images"),
        (("images", "mask.nii.gz"), "is a single file, but there are 2 images"),
        (("images", "images"), "is an input of"),
        (("images/a.nii.gz", "mask.dcm"), "not a DICOM series"),
        (("twice", "out"), "would both have a mask named a"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is(
    tmp_path: Path, model: Path, arguments: tuple[str, str], said: str
) -> None:
    for name in ("images/a.nii.gz", "images/b.nii.gz", "twice/a.nii.gz", "twice/a.nii", "empty/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match=said):
        predict(str(model), str(tmp_path / arguments[0]), tmp_path / arguments[1], inference=CPU)
    assert not (tmp_path / "out").exists()


def test_cases_of_a_split_are_segmented_by_name(tmp_path: Path, model: Path) -> None:
    root = decathlon(tmp_path / "data", ["a", "b"], unlabelled=["c"])
    write_split(tmp_path / "split.json", Split(("a",), ("b",), unlabelled=("c",)), open_dataset(root))
    predict(str(model), str(root), tmp_path / "out", split=tmp_path / "split.json", part="validation", inference=CPU)
    assert [p.name for p in (tmp_path / "out").glob("*.nii.gz")] == ["b.nii.gz"]
    predict(str(model), str(root), tmp_path / "all", inference=CPU)  # images of the data set, none of its labels
    assert sorted(p.name for p in (tmp_path / "all").glob("*.nii.gz")) == ["a.nii.gz", "b.nii.gz", "c.nii.gz"]
    with pytest.raises(UserError, match="part test"):
        predict(str(model), str(root), tmp_path / "none", split=tmp_path / "split.json", inference=CPU)


def test_a_data_set_that_says_less_is_opened_as_for_training(tmp_path: Path, model: Path) -> None:
    data, meaning, split = tmp_path / "data", tmp_path / "labels.json", tmp_path / "split.json"
    for name in ("a", "b"):
        save_case(data, name)
    (data / "imagesTr").rename(data / "images")
    (data / "labelsTr").rename(data / "labels")
    meaning.write_text(json.dumps({"labels": {"0": "background", "1": "ball"}}))
    opening = DataOptions(label_map=meaning)
    write_split(split, Split(("a",), ("b",)), open_with(data, opening))
    assert main(["predict", str(model), str(data), str(tmp_path / "none"), "--split", str(split)]) == 1
    words = ("--split", str(split), "--part", "validation", "--label-map", str(meaning), "--device", "cpu")
    assert main(["predict", str(model), str(data), str(tmp_path / "out"), *words]) == 0
    assert [path.name for path in (tmp_path / "out").glob("*.nii.gz")] == ["b.nii.gz"]


def _volume(image: np.ndarray, matrix: np.ndarray):
    from ssl_medseg.io import Volume

    x, y, z = image.shape
    return Volume(np.asarray(image, np.float32), Grid((x, y, z), matrix), ImageFile(Path("image.nii.gz")))


def _geometry(highdicom, series: Path):
    import pydicom

    return highdicom.get_volume_from_series([pydicom.dcmread(f) for f in sorted(series.iterdir())]).get_geometry()


def test_masks_of_an_earlier_run_are_said_and_not_scored(tmp_path: Path, model: Path) -> None:
    shape, matrix = GEOMETRIES["oblique"]
    data = tmp_path / "data"
    for folder in ("images", "labels", "again"):
        (data / folder).mkdir(parents=True)
    values = dict(zip(LABELS.names, LABELS.values, strict=True))
    (data / "labels.json").write_text(json.dumps(values))
    for number in range(3):
        image, classes = phantom(shape, seed=number)
        write_nifti(data / "images" / f"p{number}.nii.gz", image, matrix)
        write_nifti(data / "labels" / f"p{number}.nii.gz", LABELS.lookup[classes], matrix)
    first = predict(str(model), str(data / "images"), tmp_path / "out", inference=CPU)
    assert (first.replaced, first.stale) == (0, ())
    shutil.copy(data / "images" / "p0.nii.gz", data / "again")
    (data / "again" / "p1.nii.gz").write_bytes((data / "images" / "p1.nii.gz").read_bytes()[:3000])
    (data / "again" / "scan.npz").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"p1: .*damaged") as caught:
        predict(str(model), str(data / "again"), tmp_path / "out", inference=CPU)
    said = str(caught.value)
    assert "replaced 1 mask from an earlier prediction" in said
    assert "kept 2 masks that this run did not write, which evaluate will not score: p1.nii.gz, p2.nii.gz" in said
    assert "scan.npz: .npz files are not read" in said
    done = evaluate(tmp_path / "out", str(data), pictures=False)
    assert [case.case for case in done.evaluation.cases] == ["p0"]
    assert done.evaluation.missing == ("p1", "p2")
    assert "the last run of predict, which failed for this case" in done.failed["p1"]
    assert "the last run of predict, which did not include" in done.failed["p2"]
    assert masks_of_predict(tmp_path / "out").keys() == {"p0.nii.gz", "p1.nii.gz", "p2.nii.gz"}
    (tmp_path / "out" / "p0.nii.gz").unlink()
    with pytest.raises(UserError, match="the last run of predict wrote no mask"):
        evaluate(tmp_path / "out", str(data), pictures=False)


def test_series_of_one_folder_are_segmented_apart_and_a_bad_one_stops_no_other(tmp_path: Path, model: Path) -> None:
    pydicom = pytest.importorskip("pydicom")
    pytest.importorskip("highdicom")
    from tests.medseg.dicom_series import write_series

    shape, matrix = GEOMETRIES["oblique"]
    for number, name in enumerate(("t2", "adc", "bad")):
        write_series(tmp_path / name, phantom(shape, seed=number)[0].round(), matrix)
        for file in sorted((tmp_path / name).iterdir()):
            dataset = pydicom.dcmread(file)
            dataset.SeriesDescription, dataset.SeriesNumber = f"{name} tra", number + 3
            if name == "t2":
                del dataset.FrameOfReferenceUID
            if name == "bad" and file.name == "IM0002":
                del dataset.ImagePositionPatient
            dataset.save_as(file)
            (tmp_path / "study").mkdir(exist_ok=True)
            shutil.move(file, tmp_path / "study" / f"{name}{file.name}")
    with pytest.raises(UserError, match=r"1 of 3 .*\n.*study/5_bad-tra: badIM0002 lacks ImagePositionPatient"):
        predict(str(model), str(tmp_path / "study"), tmp_path / "out", inference=CPU)
    written = {path.name for path in (tmp_path / "out" / "study").iterdir()}
    assert written == {"3_t2-tra.nii.gz", "4_adc-tra.dcm"}
    summary = json.loads((tmp_path / "out" / "predictions.json").read_text())
    notes = {case["image"]: case["notes"] for case in summary["cases"]}
    assert "t2IM0000 lacks FrameOfReferenceUID" in notes["study/3_t2-tra"][0]


def test_volumes_are_in_ml_where_the_size_is_known_alone(tmp_path: Path, model: Path) -> None:
    matrix = np.diag([1.0, 1.0, 1.0, 1.0])
    for name, codes in {"known": 1, "unknown": 0}.items():
        (tmp_path / "images").mkdir(exist_ok=True)
        write_nifti(tmp_path / "images" / f"{name}.nii.gz", phantom((40, 36, 20))[0], matrix, sform=codes, qform=codes)
    with pytest.raises(UserError, match=r"unknown: the header does not state the voxel size"):
        predict(str(model), str(tmp_path / "images"), tmp_path / "out", inference=CPU)
    stated = DataOptions(voxel_size=(1.0, 1.0, 1.0))
    done = predict(str(model), str(tmp_path / "images"), tmp_path / "stated", inference=CPU, opening=stated)
    assert [case.millilitres is not None for case in done.cases] == [True, True]


def test_a_full_disk_ends_predict_and_keeps_finished_masks(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, _ = bright((40, 40, 4))
    (tmp_path / "in").mkdir()
    for name in "abc":
        write_nifti(tmp_path / "in" / f"{name}.nii.gz", image, affine((2.0, 2.0, 8.0)))
    save = nibabel.save

    def full(image: nibabel.Nifti1Image, path: Path) -> None:
        save(image, path)
        if ".b.nii" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(nibabel, "save", full)
    found = r"b\.nii\.gz: No space left on device \(.* free\); 1 of 3 masks are complete in .*out\. Free some space"
    with pytest.raises(UserError, match=found):
        predict(str(model), str(tmp_path / "in"), tmp_path / "out", inference=CPU)
    assert [file.name for file in (tmp_path / "out").glob("*.nii.gz")] == ["a.nii.gz"]
    monkeypatch.undo()
    assert predict(str(model), str(tmp_path / "in"), tmp_path / "out", inference=CPU).replaced == 1
    assert not list((tmp_path / "out").glob(".*.tmp*"))


def test_names_of_images_that_are_no_text_are_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("good", "caf\udce9"):  # as Python reads the name of a file in Latin-1
        try:
            (tmp_path / "in" / f"{name}.nii.gz").touch()
        except OSError:
            pytest.skip("the file system accepts names in UTF-8 only")
    with pytest.raises(UserError, match=r"in: the image 'caf\\udce9' is not text in UTF-8; rename it there"):
        find_images(tmp_path / "in")


def test_labels_of_bids_are_not_segmented(tmp_path: Path) -> None:
    for name in ("sub-01/anat/sub-01_T2w", "derivatives/manual/sub-01/anat/sub-01_dseg"):
        (tmp_path / name).parent.mkdir(parents=True)
        write_nifti(tmp_path / f"{name}.nii.gz", np.ones((4, 4, 2)), affine((1.0, 1.0, 4.0)))
    assert [wanted.name for wanted in find_images(tmp_path)] == ["sub-01/anat/sub-01_T2w"]


def test_masks_written_beside_labels_hide_none_of_them(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels drawn by hand stay labels, and masks do not become labels, even if `predict` is interrupted."""
    shape, matrix = GEOMETRIES["oblique"]
    data = tmp_path / "data"
    for number in range(3):
        image, classes = phantom(shape, seed=number)
        for folder in ("images", *(["again"] if number == 1 else []), *(["new"] if number else [])):
            (data / folder if folder == "images" else tmp_path / folder).mkdir(parents=True, exist_ok=True)
            write_nifti((data if folder == "images" else tmp_path) / folder / f"p{number}.nii.gz", image, matrix)
        if number == 0:
            (data / "labels").mkdir()
            write_nifti(data / "labels" / "p0.nii.gz", LABELS.lookup[classes], matrix)
    (data / "labels.json").write_text(json.dumps(dict(zip(LABELS.names, LABELS.values, strict=True))))
    predict(str(model), str(tmp_path / "new"), data / "labels", inference=CPU)
    assert open_dataset(data, allow_unlabelled=True).labelled == ("p0",)

    def interrupt(_prediction: object, _volume: object, target: Path, _labels: object) -> None:
        target.write_bytes((data / "labels" / "p2.nii.gz").read_bytes())
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("ssl_medseg.commands.predict._write", interrupt)
        with pytest.raises(KeyboardInterrupt):
            predict(str(model), str(tmp_path / "again"), data / "labels", inference=CPU)
    assert open_dataset(data, allow_unlabelled=True).labelled == ("p0",)
    predict(str(model), str(tmp_path / "again"), data / "labels", inference=CPU)
    assert open_dataset(data, allow_unlabelled=True).labelled == ("p0",)
