"""`evaluate` on the command line: files, grids, splits, unknown spacing, orientation of pictures."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import nibabel as nib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from contrastive_core.errors import UserError
from ssl_medseg.cli import main
from ssl_medseg.commands import predict as commands_predict
from ssl_medseg.commands.predict import predict
from ssl_medseg.datasets import DataOptions
from ssl_medseg.datasets.open import open_dataset
from ssl_medseg.datasets.splits import Split, fingerprint, identify, split_content, write_split
from ssl_medseg.evaluation import read_evaluation
from ssl_medseg.phantom import write_phantom
from ssl_medseg.prediction import InferenceOptions
from ssl_medseg.preprocessing import Preprocessing
from ssl_medseg.reports.evaluation import evaluate
from ssl_medseg.reports.overlay import Sheet, choose, choose_slices, sheet_figure, view
from ssl_medseg.training.data import keep_identity, open_training_data
from tests.medseg.small_models import random_segmenter
from tests.medseg.small_sets import ball, decathlon, save


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantom")
    write_phantom(folder, patients=3, frames=2, size=48)
    return folder


@pytest.fixture
def masks(phantom: Path, tmp_path: Path) -> Path:
    """Predictions: the truth, moved by as many voxels as the patient's number."""
    folder = tmp_path / "masks"
    folder.mkdir()
    for file in sorted((phantom / "labelsTr").iterdir()):
        truth = nib.load(file)
        moved = np.roll(np.asarray(truth.dataobj), int(file.name[7:10]) - 1, axis=0)
        nib.save(nib.Nifti1Image(moved, truth.affine, truth.header), folder / file.name)
    return folder


def test_volumes_in_a_sheared_grid_are_those_of_its_voxels(tmp_path: Path) -> None:
    # A CT with a tilted gantry: the slices are 5 mm apart along their normal, and their origins farther.
    sheared = np.diag([1.0, 1.0, 5.0, 1.0])
    sheared[1, 2] = 5 * np.tan(np.radians(25))
    root = decathlon(tmp_path / "data", ["p0"])
    for part in ("imagesTr", "labelsTr"):
        file = root / part / "p0.nii.gz"
        image = nib.Nifti1Image(np.asarray(nib.load(file).dataobj), None)
        image.set_sform(sheared, code=1)
        image.header.set_xyzt_units("mm")
        nib.save(image, file)
    result = evaluate(str(root / "labelsTr"), str(root), part="all", out=tmp_path / "out", pictures=False)
    [case] = result.evaluation.cases
    for number, score in enumerate(case.structures, 1):
        assert score.truth_ml == pytest.approx((ball()[1] == number).sum() * 5 / 1000)


def test_command_line(phantom: Path, masks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = open_dataset(phantom)
    patients = {name: dataset.patients[name] for name in ("patient001", "patient002", "patient003")}
    split = Split(labelled=patients["patient001"], test=(*patients["patient002"], *patients["patient003"]))
    write_split(tmp_path / "split.json", split, dataset)
    (masks / "patient003_frame02.nii.gz").unlink()
    words = [
        "evaluate",
        str(masks),
        str(phantom),
        "--split",
        str(tmp_path / "split.json"),
        "--out",
        str(tmp_path / "e"),
    ]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "3 cases of 2 patients" in said
    assert "1 case with a reference label but without a predicted mask is not included in any number" in said
    assert "patient003_frame02" in said
    found = read_evaluation(tmp_path / "e" / "Phantom-test.json")
    assert [(c.case, c.part) for c in found.cases] == [(n, "test") for n in split.test[:3]]
    assert found.unit == "mm"
    # Moved by one voxel and by two: farther is worse, and as far as it was moved.
    near, far = found.cases[0].structures[2], found.cases[2].structures[2]
    assert near.hd95 is not None
    assert far.hd95 is not None
    assert near.dice is not None
    assert far.dice is not None
    assert near.dice > far.dice
    assert found.cases[0].spacing is not None
    assert near.hd95 == pytest.approx(found.cases[0].spacing[0])
    assert found.cases[0].spacing[0] > 1.2, "in mm, and not in voxels"
    assert near.error_ml == pytest.approx(0)
    rows = list(csv.DictReader((tmp_path / "e" / "Phantom-test.csv").open()))
    assert len(rows) == 9
    summary = json.loads((tmp_path / "e" / "Phantom-test.json").read_text())["summary"]
    assert summary["structures"][0]["measures"]["dice"]["n"] == 3
    for name in ("volumes", "best", "median", "worst"):
        with Image.open(tmp_path / "e" / f"Phantom-test-{name}.png") as picture:
            assert min(picture.size) > 200
    chosen = choose(found)
    assert chosen["worst"].case == "patient003_frame01"
    assert len({case.case for case in chosen.values()}) == 3
    assert (tmp_path / "e" / found.cases[0].mask).resolve() == (masks / "patient002_frame01.nii.gz").resolve()


def test_cases_that_training_has_seen_are_kept_apart(phantom: Path, masks: Path, tmp_path: Path) -> None:
    dataset = open_dataset(phantom)
    split = Split(labelled=dataset.patients["patient001"], test=dataset.patients["patient002"])
    write_split(tmp_path / "split.json", split, dataset)
    done = evaluate(masks, str(phantom), split=tmp_path / "split.json", part="all", pictures=False)
    assert len(done.evaluation.cases) == 6
    assert (done.summary.cases, done.summary.left_out) == (4, 2)  # patient003 is in no part
    assert "2 cases are left out of the summary, because their labels were used for training (" in str(done)
    seen = evaluate(masks, str(phantom), split=tmp_path / "split.json", part="labelled", pictures=False)
    assert "Training used the labels of these cases" in str(seen)
    held = Split(labelled=dataset.patients["patient003"], validation=dataset.patients["patient001"])
    write_split(tmp_path / "held.json", held, dataset)
    chosen = evaluate(masks, str(phantom), split=tmp_path / "held.json", part="validation", pictures=False)
    assert "These are validation cases: training did not learn from their labels" in str(chosen)
    assert "Training used the labels" not in str(chosen)
    assert seen.summary.mean_dice.mean == 1.0


def test_images_of_the_training_are_recognised_after_files_were_exchanged(tmp_path: Path) -> None:
    data = decathlon(tmp_path / "data", ["a", "b", "c", "d"])
    dataset = open_dataset(data)
    parts = Split(labelled=("a",), validation=("b",), test=("c", "d"))
    (tmp_path / "plain.json").write_bytes(split_content(parts, dataset))
    prints = {case.name: fingerprint(case, label=True) for case in dataset.cases}
    (tmp_path / "split.json").write_bytes(split_content(parts, dataset, prints))
    run = tmp_path / "run"
    random_segmenter(run / "model", Preprocessing((32, 32)), labels=dataset.labels)
    (run / "config.yaml").write_text(f"split: {tmp_path / 'plain.json'}\n")
    (run / "data.json").write_text(json.dumps({"cases": identify(dataset, parts)}))
    shutil.copytree(data / "labelsTr", tmp_path / "masks")
    for folder in ("imagesTr", "labelsTr"):
        first, second = (data / folder / f"{name}.nii.gz" for name in "ac")
        first.rename(data / "moved")
        second.rename(first)
        (data / "moved").rename(second)
    given = {"pictures": False, "inference": InferenceOptions(device="cpu")}
    for predicted, split in ((run, tmp_path / "plain.json"), (tmp_path / "masks", tmp_path / "split.json")):
        done = evaluate(predicted, str(data), split=split, **given)
        assert [(case.case, case.part) for case in done.evaluation.cases] == [("c", "labelled"), ("d", "test")]
        assert done.summary.left_out == 1
        assert "By its name, c belongs to the part test, but its image was in the part labelled in training" in (
            str(done)
        )
    whole = evaluate(run, str(data), **given)
    assert {case.case: case.part for case in whole.evaluation.cases} == {
        "a": "test", "b": "validation", "c": "labelled", "d": "test",
    }  # fmt: skip
    assert "1 case of Small had another image in training (a)" in str(whole)
    # The image of a training case, copied over that of a test case.
    shutil.copy(data / "imagesTr" / "c.nii.gz", data / "imagesTr" / "a.nii.gz")
    copied = evaluate(run, str(data), **given)
    assert {case.case: case.part for case in copied.evaluation.cases}["c"] == "labelled"


def test_further_scans_of_the_patients_of_the_training_are_no_test_cases(tmp_path: Path) -> None:
    data = decathlon(tmp_path / "data", ["a_scan1", "b_scan1", "c_scan1"])
    dataset = open_dataset(data)
    parts = Split(labelled=("a_scan1",), validation=("b_scan1",), test=("c_scan1",))
    write_split(tmp_path / "split.json", parts, dataset)
    run = tmp_path / "run"
    random_segmenter(run / "model", Preprocessing((32, 32)), labels=dataset.labels)
    (run / "config.yaml").write_text(f"split: {tmp_path / 'split.json'}\n")
    (run / "data.json").write_text(json.dumps({"cases": identify(dataset, parts)}))
    # Follow-up scans are added, to the data set of the run and to another one without the cases of the test.
    names = [f"{patient}_scan{number}" for number in (1, 2) for patient in "abc"]
    expected = {"a": "labelled", "b": "validation", "c": "test"}
    given: dict[str, Any] = {"pictures": False, "inference": InferenceOptions(device="cpu")}
    write_split(tmp_path / "later.json", Split(test=tuple(names), labelled=()), open_dataset(decathlon(data, names)))
    for split, part in ((None, "all"), (tmp_path / "later.json", "test")):
        done = evaluate(run, str(data), split=split, part=part, **given)
        found = {case.case: case.part or "test" for case in done.evaluation.cases}
        assert found == {name: expected[name[0]] for name in names}
        assert done.summary.cases == 2
        assert "a_scan2 counts as part labelled, because training used another image of its patient a (a_scan1)" in (
            str(done)
        )
    predict(str(run), str(data), tmp_path / "masks", inference=given["inference"])
    of_masks = evaluate(tmp_path / "masks", str(data), pictures=False)
    assert {case.case: case.part for case in of_masks.evaluation.cases} == {n: expected[n[0]] for n in names}


def test_images_of_the_training_are_recognised_in_another_format_and_orientation(tmp_path: Path) -> None:
    data = decathlon(tmp_path / "data", ["a", "b", "c", "d"])
    dataset = open_dataset(data)
    split = tmp_path / "split.json"
    split.write_bytes(split_content(Split(labelled=("a",), validation=("b",), test=("c", "d")), dataset))
    run = tmp_path / "run"
    random_segmenter(run / "model", Preprocessing((32, 32)), labels=dataset.labels)
    (run / "config.yaml").write_text(f"split: {split}\n")
    how: dict[str, Any] = {
        "opening": DataOptions(),
        "preprocessing": Preprocessing((32, 32)),
        "unlabelled": False,
        "cache": None,
    }
    seen = open_training_data(str(data), split, **how)
    keep_identity(cast("Any", SimpleNamespace(is_main=True, out=run)), seen)

    def stored_again(target: Path, letters: str, names: dict[str, str]) -> Path:
        for folder in ("imagesTr", "labelsTr"):
            (target / folder).mkdir(parents=True)
            for old, new in names.items():
                image = nib.load(data / folder / f"{old}.nii.gz")
                to = nib.orientations.axcodes2ornt(letters)
                turned = image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(image.affine), to))
                nib.save(turned, target / folder / f"{new}.nii.gz")
        listed = [{"image": f"imagesTr/{new}.nii.gz", "label": f"labelsTr/{new}.nii.gz"} for new in names.values()]
        card = json.loads((data / "dataset.json").read_text())
        (target / "dataset.json").write_text(json.dumps(card | {"training": listed}))
        return target

    given: dict[str, Any] = {"pictures": False, "inference": InferenceOptions(device="cpu")}
    # All files of the training, stored again: the data set is still that of the run, which tests on c and d.
    same = evaluate(run, str(stored_again(tmp_path / "same", "PIL", {name: name for name in "abcd"})), **given)
    assert {case.case: case.part for case in same.evaluation.cases} == {"c": "test", "d": "test"}
    # Two of them under other names, and a further one.
    other = evaluate(run, str(stored_again(tmp_path / "other", "RAS", {"a": "x", "b": "y", "c": "z"})), **given)
    assert {case.case: case.part for case in other.evaluation.cases} == {
        "x": "labelled", "y": "validation", "z": "test",
    }  # fmt: skip
    assert other.summary.left_out == 2
    # The masks of `predict` carry the hashes, without the names of the training cases.
    predict(str(run), str(tmp_path / "other"), tmp_path / "masks", inference=given["inference"])
    stored = json.loads((tmp_path / "masks" / "predictions.json").read_text())["training"]
    assert sorted(found["part"] for found in stored) == ["labelled", "validation"]
    assert set(stored[0]) == {"part", "image", "voxels"}
    of_masks = evaluate(tmp_path / "masks", str(tmp_path / "other"), pictures=False)
    assert {case.case: case.part for case in of_masks.evaluation.cases} == {
        "x": "labelled", "y": "validation", "z": "test",
    }  # fmt: skip


def test_unknown_spacing_gives_voxels(phantom: Path, masks: Path, tmp_path: Path) -> None:
    for name in ("imagesTr", "labelsTr"):
        (tmp_path / "plain" / name).mkdir(parents=True)
        for file in (phantom / name).iterdir():
            nib.save(
                nib.Nifti1Image(np.asarray(nib.load(file).dataobj), np.eye(4)), tmp_path / "plain" / name / file.name
            )
    (tmp_path / "plain" / "dataset.json").write_text((phantom / "dataset.json").read_text())
    for file in masks.iterdir():
        nib.save(nib.Nifti1Image(np.asarray(nib.load(file).dataobj), np.eye(4)), file)
    done = evaluate(masks, str(tmp_path / "plain"), pictures=False)
    assert done.evaluation.unit == "voxel"
    score = done.evaluation.cases[2].structures[2]
    assert (score.hd95, score.truth_ml) == (1.0, None)
    assert "distances are in voxels" in str(done)
    assert "hd95_voxel" in (masks / "evaluation" / "Phantom-all.csv").read_text()


def test_wrong_input_is_named(phantom: Path, masks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = masks / "patient002_frame01.nii.gz"
    right = nib.load(file)
    moved = right.affine.copy()
    moved[0, 3] += 0.5
    nib.save(nib.Nifti1Image(np.asarray(right.dataobj), moved), file)
    assert main(["evaluate", str(masks), str(phantom)]) == 1
    said = capsys.readouterr().err
    assert file.name in said
    assert "0.5 mm apart" in said
    (tmp_path / "none").mkdir()
    assert main(["evaluate", str(tmp_path / "none"), str(phantom)]) == 1
    assert "is empty; expected a mask for each case to evaluate, such as patient001" in capsys.readouterr().err
    assert main(["evaluate", str(masks), str(phantom), "--tolerance", "0"]) == 1
    assert "expected a tolerance above 0" in capsys.readouterr().err


@pytest.mark.parametrize("codes", [("R", "A", "S"), ("L", "P", "S"), ("A", "S", "L"), ("S", "L", "P"), ("I", "R", "A")])
@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_slices_are_shown_as_radiologists_expect(codes: tuple[str, str, str], plane: str) -> None:
    """A mark near the patient's right, front and head appears in the same corner for every storage order."""
    world = np.zeros((8, 9, 10))
    world[6:, 6:, 7:] = 1  # right, anterior, superior in RAS+
    turned = nib.Nifti1Image(world, np.diag([1.0, 1.1, 1.2, 1])).as_reoriented(
        nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(codes))
    )
    across = {"axial": 2, "coronal": 1, "sagittal": 0}[plane]
    axis = next(a for a, code in enumerate(codes) if code in ("RL", "AP", "SI")[across])
    shown = view(turned.affine, axis)
    assert shown.plane == plane
    index = int(np.argwhere(turned.get_fdata().any(axis=tuple(a for a in range(3) if a != axis)))[0, 0])
    picture = shown.slice(turned.get_fdata(), index)
    rows, columns = np.argwhere(picture).mean(axis=0) / picture.shape
    assert rows < 0.5  # anterior or superior is up
    assert columns < 0.5  # the patient's right, or the front, is on the left
    assert (
        shown.edges
        == {"axial": ("R", "L", "A", "P"), "coronal": ("R", "L", "S", "I"), "sagittal": ("A", "P", "S", "I")}[plane]
    )
    sizes = {"axial": (1.1, 1.0), "coronal": (1.2, 1.0), "sagittal": (1.2, 1.1)}[plane]
    assert shown.spacing == pytest.approx(sizes)


def test_masks_with_the_values_of_other_structures_are_refused(
    phantom: Path, masks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = open_dataset(phantom).labels
    first, second, *others = labels.structures
    words = ["evaluate", str(masks), str(phantom), "--out", str(tmp_path / "e"), "--no-pictures"]
    ours = {"format": "ssl-medseg predictions 1", "cases": []}
    for names, status in (((second, first), 1), ((first.upper(), "another name"), 0)):
        stated = {"names": ["background", *names, *others], "values": list(labels.values)}
        (masks / "predictions.json").write_text(json.dumps(ours | {"labels": stated}))
        assert main(words) == status
        assert ("expected the same value for a structure" in capsys.readouterr().err) is bool(status)


@pytest.mark.parametrize("content", ["[1, 2]", '{"cases": {"a": 1}}', "{", "\x00\xff", '{"labels": ["LV"]}'])
def test_a_predictions_json_of_another_program_is_not_used(phantom: Path, masks: Path, content: str) -> None:
    (masks / "predictions.json").write_bytes(content.encode("latin-1"))
    done = evaluate(masks, str(phantom), pictures=False)
    assert len(done.evaluation.cases) == 6
    assert "predictions.json in the folder of the masks was not written by `predict`" in done.notes[0]
    # What is damaged could have listed masks of an earlier run, or the images of the training.
    (masks / "predictions.json").write_text('{"format": "ssl-medseg predictions 1", "cases": [')
    with pytest.raises(UserError, match=r"predictions\.json: is not readable as JSON"):
        evaluate(masks, str(phantom), pictures=False)


def test_masks_of_predict_in_a_subfolder_are_found(tmp_path: Path) -> None:
    data, names = tmp_path / "data", ["a", "b (1)"]
    for number, name in enumerate(names):
        image, classes = ball(number)
        save(data / "images" / f"{name}.nii.gz", image)
        save(data / "labels" / f"{name}.nii.gz", classes)
    (data / "labels.json").write_text(json.dumps({"background": 0, "shell": 1, "core": 2}))
    model = random_segmenter(tmp_path / "model", Preprocessing((32, 32)), labels=open_dataset(data).labels)
    cpu = InferenceOptions(device="cpu")
    predict(str(model), str(data), tmp_path / "masks", inference=cpu)
    assert (tmp_path / "masks" / "images" / "a.nii.gz").is_file()
    done = evaluate(tmp_path / "masks", str(data), pictures=False)
    assert [case.case for case in done.evaluation.cases] == names
    # The last run failed for one image, whose mask is that of the first run.
    (data / "images" / "a.nii.gz").write_bytes(b"damaged")
    with pytest.raises(UserError, match="1 of 2 images could not be segmented"):
        predict(str(model), str(data), tmp_path / "masks", inference=cpu)
    save(data / "images" / "a.nii.gz", ball(0)[0])
    done = evaluate(tmp_path / "masks", str(data), pictures=False)
    assert [case.case for case in done.evaluation.cases] == names[1:]
    assert "the last run of predict, which failed for this case" in done.failed["a"]


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("segments", [3, 7, 60])
def test_many_long_names_are_not_cut_off_in_pictures(segments: int, rows: int) -> None:
    names = [f"left ventricular myocardium, segment {n}" for n in range(segments)]
    names.insert(0, "<b>RV</b><script>alert(1)</script>")
    classes = np.zeros((24, 24, 6), np.uint8)
    classes[8:16, 8:16, 1:5] = 1
    sheet = Sheet(
        title="Best case: " + "patient-" * 20,
        subtitle="; ".join(f"{name}: Dice 0.912, HD95 4.2 mm" for name in names),
        images={"image": np.random.default_rng(0).random((24, 24, 6))},
        masks=dict(list({"truth": classes, "predicted": classes}.items())[:rows]),
        structures=names,
        view=view(np.diag([-2.0, -2.0, 6.0, 1.0]), 2, known=True),
    )
    figure = sheet_figure(sheet)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    whole = figure.bbox
    legend = next(legend for axes in figure.axes if (legend := axes.get_legend()) is not None)
    panels = [axes for axes in figure.axes if axes.get_images()]
    around = [*panels, *figure.texts]  # the overview and the slices, title and subtitle
    boxes = [artist.get_window_extent(canvas.get_renderer()) for artist in (legend, *around)]
    assert not any(boxes[0].overlaps(box) for box in boxes[1:])
    for artist in (*figure.texts, legend):
        box = artist.get_window_extent(canvas.get_renderer())
        assert whole.x0 <= box.x0
        assert box.x1 <= whole.x1
        assert whole.y0 <= box.y0
        assert box.y1 <= whole.y1
    assert panels[1].bbox.width > whole.width / 12  # the names leave room for the slices
    assert boxes[0].height <= max(box.y1 for box in boxes[1:-2]) - min(box.y0 for box in boxes[1:-2])


def test_structures_of_a_picture_can_be_told_apart() -> None:
    names = [f"vertebra {n}" for n in range(1, 41)]
    classes = np.zeros((40, 24, 6), np.uint8)
    classes[:, 8:16, 1:5] = np.arange(1, 41)[:, None, None]
    figure = sheet_figure(
        Sheet(
            title="spine",
            subtitle="",
            images={"image": np.zeros((40, 24, 6))},
            masks={"predicted": classes},
            structures=names,
            view=view(np.diag([-2.0, -2.0, 6.0, 1.0]), 2, known=True),
        )
    )
    outlines = [outline for axes in figure.axes for outline in axes.collections]
    styles = {(*outline.get_edgecolor()[0].tolist(), str(outline.get_linestyle()[0])) for outline in outlines}
    assert len(styles) == len(names)


def test_the_padding_of_ct_does_not_darken_pictures() -> None:
    image = np.random.default_rng(0).uniform(-1000, 1000, (24, 24, 6))
    windows = []
    for padding in (-1024.0, -3024.0):
        image[:5] = padding
        sheet = Sheet(
            title="CT", subtitle="", images={"image": image}, masks={"truth": np.zeros(image.shape, np.uint8)},
            structures=["liver"], view=view(np.diag([-2.0, -2.0, 6.0, 1.0]), 2, known=True),
        )  # fmt: skip
        windows.append({pictures[0].get_clim() for axes in sheet_figure(sheet).axes if (pictures := axes.get_images())})
    assert windows[0] == windows[1]


def test_slices_of_a_sheet_hold_structures() -> None:
    inside = np.zeros((5, 5, 20), dtype=bool)
    inside[2, 2, 4:15] = True
    assert choose_slices(inside, 2, 4) == [4, 7, 11, 14]
    assert choose_slices(inside[..., :6], 2, 4) == [4, 5]
    assert choose_slices(np.zeros((5, 5, 9), dtype=bool), 2, 3) == [0, 4, 8]


def test_structures_that_the_model_was_not_trained_for_are_scored_as_missed_and_named(tmp_path: Path) -> None:
    data = decathlon(tmp_path / "data", ["a", "b"])
    (tmp_path / "shell.json").write_text('{"background": 0, "shell": 1}')
    own = open_dataset(data, label_map=tmp_path / "shell.json").labels
    model = random_segmenter(tmp_path / "model", Preprocessing((32, 32)), labels=own)
    cpu = InferenceOptions(device="cpu")
    predict(str(model), str(data), tmp_path / "masks", inference=cpu)
    for predicted in (model, tmp_path / "masks"):
        done = evaluate(predicted, str(data), out=tmp_path / "out", pictures=False, inference=cpu)
        assert [note for note in done.notes if note.startswith("core: the model was not trained for this structure")]
        assert [[score.found for score in case.structures][1] for case in done.evaluation.cases] == ["truth only"] * 2
        assert [case.structures[1].dice for case in done.evaluation.cases] == [0, 0]
        assert max(case.structures[0].truth_ml for case in done.evaluation.cases) == pytest.approx(
            (ball()[1] == 1).sum() * 18 / 1000
        )
    # The other way round, a structure of the model would have no label.
    (tmp_path / "core.json").write_text('{"background": 0, "core": 2}')
    with pytest.raises(UserError, match="was trained for 0 background, 1 shell"):
        evaluate(model, str(data), pictures=False, opening=DataOptions(label_map=tmp_path / "core.json"), inference=cpu)


def test_masks_of_two_models_are_not_scored_together_after_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = decathlon(tmp_path / "data", ["a", "b", "c"])
    labels = open_dataset(data).labels
    models = [
        random_segmenter(tmp_path / f"model{size}", Preprocessing((size, size)), labels=labels) for size in (32, 64)
    ]
    cpu, write, left = InferenceOptions(device="cpu"), commands_predict._write, [0]

    def write_some(*arguments: Any) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        write(*arguments)

    def interrupted(model: Path, out: Path, *, count: int) -> None:
        left[0] = count
        with monkeypatch.context() as patched:
            patched.setattr(commands_predict, "_write", write_some)
            with pytest.raises(KeyboardInterrupt):
                predict(str(model), str(data), out, inference=cpu)

    predict(str(models[0]), str(data), tmp_path / "masks", inference=cpu)
    interrupted(models[1], tmp_path / "masks", count=1)
    with pytest.raises(UserError, match=r"predict was interrupted, or has not ended yet.*predict again"):
        evaluate(tmp_path / "masks", str(data), pictures=False)
    predict(str(models[1]), str(data), tmp_path / "masks", inference=cpu)
    assert len(evaluate(tmp_path / "masks", str(data), pictures=False).evaluation.cases) == 3
    interrupted(models[0], tmp_path / "new", count=2)  # nothing to mix with
    done = evaluate(tmp_path / "new", str(data), pictures=False)
    assert ([case.case for case in done.evaluation.cases], done.evaluation.missing) == (["a", "b"], ("c",))
