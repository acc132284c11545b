"""The supervised baseline through the real command: labels it must not open, kills, processes, options, bad input."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from contrastive_core.errors import UserError
from contrastive_core.training import RunOptions, config, load_model
from ssl_medseg import predict, report, selftrain, train
from ssl_medseg.datasets import DataOptions, Split, open_dataset, read_split, write_split
from ssl_medseg.models import NetworkOptions
from ssl_medseg.models.model_folder import load_segmenter
from ssl_medseg.phantom import write_phantom
from ssl_medseg.prediction import InferenceOptions
from ssl_medseg.preprocessing import PreprocessingOptions
from ssl_medseg.reports.evaluation import evaluate
from ssl_medseg.selftraining.options import PseudoLabelOptions
from ssl_medseg.training.optim import DurationEstimate
from ssl_medseg.training.recipe import RecipeName
from ssl_medseg.training.slices import AugmentOptions
from tests.medseg.grouped import grouped
from tests.medseg.small_sets import ball
from tests.medseg.volumes_on_disk import write_nifti
from tests.vision.killed_runs import kill_after, outcome

QUIET = RunOptions(device="cpu", threads=1, progress=False, log_every=3, checkpoint_every=4, seed=3)
SMALL = {
    "network": NetworkOptions("plain-unet", 2),
    "preprocessing": PreprocessingOptions(image_size=32),
    "batch_size": 4,
    "validate_every": 5,
    "opening": DataOptions(allow_unlabelled=True),
}
FLAGS = [
    *("--network.width", "2", "--image-size", "32", "--batch_size", "4", "--validate_every", "5", "--allow-unlabelled"),
    *("--device", "cpu", "--threads", "1", "--log_every", "3", "--checkpoint_every", "4", "--seed", "3"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantom") / "data"
    write_phantom(folder, patients=4, frames=1, size=48)
    return folder


def write_parts(data: Path, path: Path, *, validation: bool = True) -> Path:
    """Patient 0 is labelled, 1 for validation, 2 without labels, 3 for testing."""
    found = open_dataset(data)
    parts = [found.patients[patient] for patient in sorted(found.patients)]
    held = parts[1] if validation else ()
    write_split(path, Split(labelled=parts[0], validation=held, unlabelled=parts[2], test=parts[3]), found)
    return path


@pytest.fixture(scope="module")
def split(data: Path) -> Path:
    return write_parts(data, data.parent / "split.json")


@pytest.fixture(scope="module")
def untouched(data: Path, split: Path) -> Path:
    out = data.parent / "untouched"
    train(str(data), out, split=split, **grouped(steps=12, run=QUIET, **SMALL))
    return out


def test_labels_it_may_not_see_are_never_opened(data: Path, split: Path, untouched: Path, tmp_path: Path) -> None:
    """Without labels of unlabelled and test cases, and with unreadable test images, every byte stays the same."""
    copy = tmp_path / "data"
    shutil.copytree(data, copy)
    parts = json.loads(split.read_text())
    names = [[name for name, _ in parts[part]] for part in ("unlabelled", "test")]
    for name in [*names[0], *names[1]]:
        (label,) = (copy / "labelsTr").glob(f"{name}.*")
        label.unlink()
    for name in names[1]:
        (image,) = (copy / "imagesTr").glob(f"{name}*")
        image.write_bytes(b"this is no image")
    train(str(copy), tmp_path / "run", split=split, **grouped(steps=12, run=QUIET, **SMALL))
    assert len([*names[0], *names[1]]) == 2
    assert outcome(tmp_path / "run") == outcome(untouched)


@pytest.mark.parametrize(("change", "words"), [("shape", "voxels against"), ("place", "voxels up to 20 mm apart")])
def test_a_validation_label_on_another_grid_is_refused(
    data: Path, split: Path, tmp_path: Path, change: str, words: str
) -> None:
    copy = tmp_path / "data"
    shutil.copytree(data, copy)
    [[name, _]] = json.loads(split.read_text())["validation"]
    (label,) = (copy / "labelsTr").glob(f"{name}.*")
    opened = nibabel.load(label)
    array, matrix = np.asarray(opened.dataobj), opened.affine.copy()
    if change == "shape":
        array = array[:-2]
    else:
        matrix[0, 3] += 20
    nibabel.save(nibabel.Nifti1Image(array, matrix), label)
    with pytest.raises(UserError, match=rf"{name}\.nii\.gz: the label does not lie on the grid of its image .*{words}"):
        train(str(copy), tmp_path / "run", split=split, **grouped(steps=2, run=QUIET, **SMALL))


@pytest.mark.slow
def test_a_killed_run_ends_in_the_same_bytes(data: Path, split: Path, untouched: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ["train", str(data), str(run), "--split", str(split), "--steps", "12", *FLAGS]
    command = [sys.executable, "-m", "ssl_medseg", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    assert kill_after(process, run, 5, signal.SIGKILL)
    done = subprocess.run([*command, "--resume"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert outcome(run) == outcome(untouched)


@pytest.mark.slow
def test_two_processes_train_as_one(data: Path, split: Path, untouched: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", "ssl_medseg", "train", str(data), str(run), "--split", str(split), "--steps=12", *FLAGS]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    alone, together = (
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (untouched, run)
    )
    assert [list(record) for record in together] == [list(record) for record in alone]
    # The gradient is the mean over both halves and batch norm is over the whole batch; Adam magnifies rounding.
    for one, two in zip(alone, together, strict=True):
        assert two == pytest.approx(one, rel=0.02, abs=0.02)
    assert together[0]["loss"] == pytest.approx(alone[0]["loss"], rel=1e-5)


@pytest.mark.parametrize(("recipe", "network", "steps"), [("strong", "plain-unet", 160), ("paper", "unet", 80)])
def test_it_learns_and_keeps_the_best_if_asked_to(
    data: Path, split: Path, tmp_path: Path, recipe: RecipeName, network: str, steps: int
) -> None:
    options = SMALL | {"network": NetworkOptions(network, 8), "batch_size": 8, "validate_every": 20}
    folder = train(
        str(data),
        tmp_path / "run",
        split=split,
        **grouped(recipe=recipe, lr=1e-2, steps=steps, keep="best", run=QUIET, **options),
    )
    records = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    scores = {r["step"] + 1: r["validation_dice"] for r in records if "validation_dice" in r}
    assert list(scores) == list(range(20, steps + 1, 20))
    assert max(scores.values()) > 0.5
    losses = [r["loss"] for r in records if "loss" in r]
    assert losses[-1] < 0.6 * losses[0]
    best = max(scores, key=lambda step: scores[step])
    found = load_segmenter(folder, device="cpu")
    assert found.details["weights"].startswith(f"best step ({best}), validation Dice {scores[best]:.3f}")
    assert found.labels.structures
    assert found.preprocessing.size == (32, 32)


def test_the_strong_recipe_keeps_the_last_weights_and_the_papers_the_best(
    data: Path, split: Path, tmp_path: Path
) -> None:
    for recipe, words in (("strong", "last step (3)"), ("paper", "best step (")):
        folder = train(str(data), tmp_path / recipe, split=split, **grouped(recipe=recipe, steps=3, run=QUIET, **SMALL))
        assert load_segmenter(folder, device="cpu").details["weights"].startswith(words)


@pytest.mark.parametrize(("names", "share"), [("RV myocardium LV", 0.25), ("kidney_right spleen kidney_left", 0.0)])
def test_slices_are_not_mirrored_if_structures_lie_on_a_side(
    data: Path, split: Path, tmp_path: Path, names: str, share: float
) -> None:
    """The labels of a structure and of its mirror image would contradict each other."""
    listed = {name: number for number, name in enumerate(["background", *names.split()])}
    (tmp_path / "map.json").write_text(json.dumps(listed))
    opening = DataOptions(allow_unlabelled=True, label_map=tmp_path / "map.json")
    settings = {**SMALL, "opening": opening, "steps": 2, "run": QUIET}
    folder = train(str(data), tmp_path / "run", split=split, **grouped(**settings))
    assert config.read(tmp_path / "run" / "config.yaml")["augment"]["mirror"] == share
    selftrain(str(folder), str(data), tmp_path / "self", split=split, opening=opening, **grouped(steps=2, run=QUIET))
    written = config.read(tmp_path / "self" / "config.yaml")
    assert written["augment"]["mirror"] == written["selftraining"]["unlabelled_augment"]["mirror"] == share
    if not share:
        with pytest.raises(UserError, match=r"predictions is 3, but mirror images exchange the sides of kidney_right"):
            selftrain(
                str(folder), str(data), tmp_path / "three", split=split, opening=opening,
                **grouped(steps=2, run=QUIET, pseudo=PseudoLabelOptions(predictions=3)),
            )  # fmt: skip
    settings["augment"] = AugmentOptions(mirror=0.5)
    train(str(data), tmp_path / "given", split=split, **grouped(**settings))
    assert config.read(tmp_path / "given" / "config.yaml")["augment"]["mirror"] == 0.5


def test_without_validation_the_last_weights_or_their_average_are_kept(data: Path, tmp_path: Path) -> None:
    split = write_parts(data, tmp_path / "split.json", validation=False)
    folder = train(str(data), tmp_path / "run", split=split, **grouped(steps=3, ema=0.5, run=QUIET, **SMALL))
    assert load_segmenter(folder, device="cpu").details["weights"] == "last step (3), averaged with decay 0.5"
    averaged, _ = load_model(folder)
    plain, _ = load_model(train(str(data), tmp_path / "plain", split=split, **grouped(steps=3, run=QUIET, **SMALL)))
    assert averaged.keys() == plain.keys()
    assert any(not torch.equal(averaged[name], plain[name]) for name in plain)
    with pytest.raises(UserError, match=r"has no validation cases.*--keep last"):
        train(str(data), tmp_path / "best", split=split, **grouped(steps=3, keep="best", run=QUIET, **SMALL))


def test_half_precision_trains(data: Path, split: Path, tmp_path: Path) -> None:
    run = RunOptions(device="cpu", threads=1, progress=False, precision="bf16-mixed", log_every=1)
    train(str(data), tmp_path / "run", split=split, **grouped(steps=2, run=run, **(SMALL | {"validate_every": 2})))
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert all(0 < loss < 4 for loss in losses)
    weights, _ = load_model(tmp_path / "run")
    assert all(w.dtype == torch.float32 for w in weights.values() if w.is_floating_point())


def test_the_expected_time_is_said(data: Path, split: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(str(data), tmp_path / "run", split=split, **grouped(steps=6, run=QUIET, **SMALL))
    said = capsys.readouterr().err
    assert "a step takes" in said
    assert "(4 slices of 32 x 32 pixels): about" in said
    assert "for 2 steps and validation" in said
    assert "4 cases" not in said
    assert "1 labelled, 1 validation, 1 test, 1 unlabelled volumes" in said


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"steps": 0}, "steps and validate_every of at least 1"),
        ({"ema": 1.0}, "an ema from 0 to below 1"),
        ({"lr": float("nan")}, "lr above 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"least_classes": 9}, "slices contains 9 classes or more"),
    ],
)
def test_bad_settings_are_one_clear_error(
    data: Path, split: Path, tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        train(str(data), tmp_path / "run", split=split, **grouped(**(SMALL | {"steps": 2, "run": QUIET} | changes)))


def test_a_structure_that_is_never_labelled_is_an_error_before_training(
    data: Path, split: Path, tmp_path: Path
) -> None:
    meaning = tmp_path / "labels.json"
    labels = open_dataset(data).labels
    names = [*labels.names, "aorta"]
    meaning.write_text(json.dumps(dict(zip(names, [*labels.values, 77], strict=True))))
    opening = DataOptions(label_map=meaning)
    with pytest.raises(UserError, match=r"labelled slices .* contains aorta \(value 77\).*with a label map without it"):
        train(str(data), tmp_path / "run", split=split, **grouped(steps=2, run=QUIET, **(SMALL | {"opening": opening})))
    [[name, _]] = json.loads(split.read_text())["validation"]
    shutil.copytree(data, tmp_path / "copy")
    (label,) = (tmp_path / "copy" / "labelsTr").glob(f"{name}.*")
    opened = nibabel.load(label)
    nibabel.save(nibabel.Nifti1Image(np.where(opened.dataobj, 77, 0).astype(np.uint8), opened.affine), label)
    changed = write_parts(tmp_path / "copy", tmp_path / "split.json")
    with pytest.raises(UserError, match=rf"make labelled cases of those for validation that do \({name}\)"):
        train(
            str(tmp_path / "copy"),
            tmp_path / "run",
            split=changed,
            **grouped(steps=2, run=QUIET, **(SMALL | {"opening": opening})),
        )


def test_a_run_goes_on_where_its_data_lie_now(
    data: Path, split: Path, untouched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tmp_path / "data"
    shutil.copytree(data, first)
    run = {"steps": 12, **SMALL}

    def stop(self: DurationEstimate, step: int) -> None:
        if step == 6:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(DurationEstimate, "after", stop)
        with pytest.raises(KeyboardInterrupt):
            train(str(first), tmp_path / "run", split=split, **grouped(run=QUIET, **run))
    moved = tmp_path / "elsewhere" / "the same data"
    moved.parent.mkdir()
    first.rename(moved)
    shutil.copy(split, moved.parent / "split.json")
    resumed = RunOptions(**{**vars(QUIET), "resume": True})
    changed = moved.parent / "changed"
    shutil.copytree(moved, changed)
    [[name, _], *_] = json.loads(split.read_text())["labelled"]
    image = next((changed / "imagesTr").glob(f"{name}*"))
    opened = nibabel.load(image)
    nibabel.save(nibabel.Nifti1Image(np.asarray(opened.dataobj) + 1, opened.affine, opened.header), image)
    with pytest.raises(UserError, match=rf"started with other data.* of 1 cases differ \({name}\)"):
        train(str(changed), tmp_path / "run", split=moved.parent / "split.json", **grouped(run=resumed, **run))
    train(str(moved), tmp_path / "run", split=moved.parent / "split.json", **grouped(run=resumed, **run))
    assert outcome(tmp_path / "run") == outcome(untouched)
    # The command that a stopped run prints reads this file, which therefore says where the data lie now.
    assert config.read(tmp_path / "run" / "config.yaml")["data"] == str(moved)


def test_how_volumes_are_stored_changes_no_byte_of_the_model_and_no_voxel_of_the_masks(tmp_path: Path) -> None:
    """Isotropic volumes: one set stored LPS, the other in a different orientation per patient."""
    matrix = np.diag([-1.0, -1.0, 1.0, 1.0])
    outcomes = {}
    for kind, storages in {"one": ("LPS",) * 3, "mixed": ("RAS", "SRA", "PIL")}.items():
        root = tmp_path / kind
        for number, letters in enumerate(storages):
            turn = nibabel.orientations.ornt_transform(
                nibabel.io_orientation(matrix), nibabel.orientations.axcodes2ornt(letters)
            )
            for folder, array in zip(("imagesTr", "labelsTr"), ball(number, (40, 36, 30)), strict=True):
                turned = nibabel.orientations.apply_orientation(array, turn)
                moved = matrix @ nibabel.orientations.inv_ornt_aff(turn, array.shape)
                (root / folder).mkdir(parents=True, exist_ok=True)
                write_nifti(root / folder / f"p{number}.nii.gz", np.ascontiguousarray(turned), moved)
        entries = [{"image": f"imagesTr/p{n}.nii.gz", "label": f"labelsTr/p{n}.nii.gz"} for n in range(3)]
        content = {"name": "balls", "labels": {"0": "background", "1": "shell", "2": "core"}, "training": entries}
        (root / "dataset.json").write_text(json.dumps(content))
        split = tmp_path / f"{kind}.json"
        write_split(split, Split(labelled=("p0",), validation=("p1",), unlabelled=("p2",)), open_dataset(root))
        train(str(root), tmp_path / f"run-{kind}", split=split, **grouped(steps=6, run=QUIET, **SMALL))
        predict(
            str(tmp_path / f"run-{kind}"),
            str(root / "imagesTr"),
            tmp_path / f"masks-{kind}",
            inference=InferenceOptions(device="cpu"),
        )
        masks = []
        for number in range(3):
            image, mask = (
                nibabel.load(folder / f"p{number}.nii.gz") for folder in (root / "imagesTr", tmp_path / f"masks-{kind}")
            )
            np.testing.assert_array_equal(mask.affine, image.affine)
            masks.append(np.asarray(nibabel.as_closest_canonical(mask).dataobj))
        outcomes[kind] = (tmp_path / f"run-{kind}" / "model" / "model.safetensors").read_bytes(), masks
    assert outcomes["one"][0] == outcomes["mixed"][0]
    np.testing.assert_array_equal(outcomes["one"][1], outcomes["mixed"][1])


def test_another_data_set_is_evaluated_whole_and_known_cases_are_recognised(
    data: Path, split: Path, tmp_path: Path
) -> None:
    train(str(data), tmp_path / "run", split=split, **grouped(steps=2, run=QUIET, **SMALL))
    first = open_dataset(data).select(read_split(split, open_dataset(data)).labelled)[0]
    write_phantom(tmp_path / "other", patients=2, frames=1, size=64, seed=7)  # the same names, other hearts
    found = evaluate(tmp_path / "run", str(tmp_path / "other"), pictures=False).evaluation
    assert found.part == "all"
    assert [case.part for case in found.cases] == ["test", "test"]
    known = next(case for case in open_dataset(tmp_path / "other").cases)
    shutil.copy(first.image.path, known.image.path)
    assert first.label is not None
    assert known.label is not None
    shutil.copy(first.label, known.label)
    again = evaluate(tmp_path / "run", str(tmp_path / "other"), name="again", pictures=False)
    assert {case.case: case.part for case in again.evaluation.cases}[known.name] == "labelled"
    assert f"left out of the summary, because its label was used for training ({known.name})" in str(again)
    own = evaluate(tmp_path / "run", str(data), pictures=False).evaluation
    assert own.part == "test"
    page = report(tmp_path / "run", out=tmp_path / "report.html").read_text()
    assert "Evaluation: again" in page
    assert f"Evaluation: {found.name}" in page


def test_a_run_is_evaluated_where_labels_of_other_cases_are_missing(data: Path, split: Path, tmp_path: Path) -> None:
    train(str(data), tmp_path / "run", split=split, **grouped(steps=2, run=QUIET, **SMALL))
    copy = shutil.copytree(data, tmp_path / "copy")
    dataset = open_dataset(copy)
    found = read_split(split, dataset)
    for case in dataset.select(found.unlabelled):
        assert case.label is not None
        case.label.unlink()
    done = evaluate(tmp_path / "run", str(copy), pictures=False)
    assert [case.case for case in done.evaluation.cases] == list(found.test)
    (copy / "labelsTr" / f"{found.test[0]}.nii.gz").unlink()
    with pytest.raises(UserError, match="no case of part test of the split has a label"):
        evaluate(tmp_path / "run", str(copy), name="again", pictures=False)


@pytest.mark.parametrize("stages", [1, 2])
def test_labels_of_an_initial_segmenter_do_not_count_as_test_cases(
    data: Path, split: Path, tmp_path: Path, stages: int
) -> None:
    found = open_dataset(data)
    zero, one, two, three = (found.patients[patient] for patient in sorted(found.patients))
    later = tmp_path / "later.json"
    write_split(later, Split(labelled=three, validation=(), unlabelled=two, test=(*zero, *one)), found)
    train(str(data), tmp_path / "first", split=split, **grouped(steps=1, run=QUIET, **SMALL))
    short = grouped(steps=1, batch_size=2, run=QUIET)
    train(str(data), tmp_path / "begun", split=later, init=str(tmp_path / "first"), **short)
    run = tmp_path / "begun"
    if stages == 2:  # the chain goes on
        run = tmp_path / "self"
        selftrain(str(tmp_path / "begun"), str(data), run, split=later, **short)
    done = evaluate(run, str(data), pictures=False, inference=InferenceOptions(device="cpu"))
    assert {case.case: case.part for case in done.evaluation.cases} == {
        **dict.fromkeys(zero, "labelled"), **dict.fromkeys(one, "validation"),
    }  # fmt: skip
    assert "the model that this run started from was trained with it" in str(done)
    predict(str(run), str(data), tmp_path / "masks", inference=InferenceOptions(device="cpu"))
    masks = evaluate(tmp_path / "masks", str(data), pictures=False, opening=DataOptions(allow_unlabelled=True))
    assert {case.case: case.part for case in masks.evaluation.cases}.items() >= dict.fromkeys(zero, "labelled").items()
