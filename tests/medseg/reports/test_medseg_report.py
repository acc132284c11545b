"""The report of a real run: it needs no other file, contains what it must, and shows what `evaluate` found."""

from __future__ import annotations

import inspect
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

import ssl_medseg
from contrastive_core.app.report.run_record import RunRecord
from contrastive_core.errors import UserError
from contrastive_core.text import several
from contrastive_core.training import RunOptions
from ssl_medseg.cli import main
from ssl_medseg.commands.predict import predict
from ssl_medseg.commands.pretrain import pretrain
from ssl_medseg.commands.report import report
from ssl_medseg.datasets import Split, open_dataset, write_split
from ssl_medseg.evaluation import read_evaluation
from ssl_medseg.evaluation.results import scores_csv, write_evaluation
from ssl_medseg.models import NetworkOptions
from ssl_medseg.phantom import write_phantom
from ssl_medseg.preprocessing import PreprocessingOptions
from ssl_medseg.pretraining.stages import PretrainingOptions
from ssl_medseg.reports.evaluation import evaluate
from ssl_medseg.reports.evaluation_section import evaluation_section, stages_table
from ssl_medseg.reports.rounds import rounds_figure
from ssl_medseg.reports.run_folder import Stage, open_run
from ssl_medseg.reports.sections import panels
from ssl_medseg.training.recipe import TrainingOptions
from ssl_medseg.training.supervised import train
from tests.pages import assert_fits_a_phone, assert_stands_alone, read

ROUND = {
    "format": "ssl-medseg round 1", "step": 0, "made_by": "the segmenter", "cases": 2, "used": 2, "slices": 20,
    "coverage": 0.975, "covered": {}, "area": {"RV": 0.03, "myocardium": 0.05, "LV": 0.04},
    "labelled_area": {"RV": 0.035, "myocardium": 0.05, "LV": 0.05}, "missing": {}, "change": None,
    "dice_to_last": None, "view_dice": None, "crf": {"setting": "off", "refused_slices": 0},
    "validation": {"before": 0.7, "after": 0.75}, "warnings": [], "withheld": None,
}  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A baseline of a few steps, with an evaluation of masks of the test patients in its folder."""
    folder = tmp_path_factory.mktemp("report")
    data = folder / "secret-place" / "data"
    write_phantom(data, patients=4, frames=1, size=48)
    dataset = open_dataset(data)
    one, two, three, four = dataset.patients.values()
    write_split(folder / "split.json", Split(labelled=one, validation=two, unlabelled=three, test=four), dataset)
    train(
        str(data), folder / "run", split=folder / "split.json",
        training=TrainingOptions(steps=4, batch_size=2, validate_every=2), network=NetworkOptions("unet", 4),
        preprocessing=PreprocessingOptions(image_size=32),
        run=RunOptions(progress=False, log_every=1, checkpoint_every=4),
    )  # fmt: skip
    (folder / "masks").mkdir()
    truth = nib.load(data / "labelsTr" / "patient004_frame01.nii.gz")
    moved = np.roll(np.asarray(truth.dataobj), 2, axis=0)
    moved[moved == 1] = 0
    nib.save(nib.Nifti1Image(moved, truth.affine), folder / "masks" / "patient004_frame01.nii.gz")
    evaluate(folder / "masks", str(data), split=folder / "split.json", out=folder / "run" / "evaluation")
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished / "run", tmp_path / "run")
    shutil.copy(finished / "split.json", tmp_path / "split.json")
    shutil.copy(finished / "secret-place/data/imagesTr/patient001_frame01.nii.gz", tmp_path / "image.nii.gz")
    return tmp_path / "run"


def test_report_of_a_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out.strip() == str(run / "report.html")
    page = read(run / "report.html")
    assert_stands_alone(page, (run / "report.html").read_text())
    assert_fits_a_phone(page)
    text = page.text
    assert "Segmentation of RV, myocardium, LV in Phantom" in text
    assert "Trained on 1 volume of 1 patient with labels, by supervised training" in text
    assert "not used by this method" in text
    assert "One labelled patient" in text
    assert "What to do next" in text
    assert "ssl-medseg next RUN DATA OUT" in text
    assert "ssl-medseg evaluate RUN DATA" not in text, "it has been evaluated on test patients"
    assert "RV is missed completely in 1 of 1 case." in text
    assert "only 1 patient:" in text
    found = open_run(run)
    dice = found.evaluations[0][0].cases[0].structures[2].dice
    assert dice is not None
    assert f"{dice:.3f}" in text
    assert "No validation volumes" not in text
    # One case is the best, the median and the worst; its sheet is in the page.
    # Training was validated twice, and drew both.
    assert {title: len(pictures) for title, pictures in page.images.items()} == {
        "Evaluation: Phantom-test": 1, "Training": 2,
    }  # fmt: skip
    assert sorted(path.name for path in (run / "validation").iterdir()) == ["step-000002.png", "step-000004.png"]
    # Each volume with its storage, voxels and slices; what the labels say of cropping stands beside the labelled one.
    stored = nib.load(run.parent / "image.nii.gz")
    facts = json.loads((run / "data.json").read_text())["preparation"]["patient001_frame01"]
    assert facts["stored"] == "".join(nib.aff2axcodes(stored.affine))
    assert facts["shape"] == list(stored.shape)
    np.testing.assert_allclose(facts["spacing_mm"], stored.header.get_zooms()[:3], atol=1e-4)
    assert " × ".join(map(str, stored.shape)) in text
    content = json.loads((run / "data.json").read_text())
    content["preparation"]["patient001_frame01"]["outside_slices"] = {"RV": 0.0213}
    (run / "data.json").write_text(json.dumps(content))
    assert "2.1% of RV lies outside the slices" in read(report(run)).text
    assert "predicted minus true volume, mL" not in text, "one case has no spread of volumes"
    assert min(page.images["Evaluation: Phantom-test"][0].size) > 300
    assert "secret-place" not in text
    assert "ssl-medseg train --config RUN/config.yaml --out runs/again" in text


def test_cases_are_named_with_the_phase_of_the_heart(run: Path) -> None:
    found = read_evaluation(run / "evaluation" / "Phantom-test.json")
    [case] = found.cases
    both = replace(found, cases=(replace(case, phase="ED"), replace(case, case="patient004_frame02", phase="ES")))
    section = evaluation_section(both, run / "evaluation")
    assert "patient004_frame02 (ES)" in section
    assert re.search(r"By phase of the heart: ED 0\.\d{3} \(1 case\); ES 0\.\d{3} \(1 case\)\.", section)
    assert "predicted minus true volume, mL" in section
    assert "By phase" not in evaluation_section(found, run / "evaluation")
    assert "What the numbers mean" in section
    assert "What the numbers mean" not in evaluation_section(both, run / "evaluation", place=1), "once on a page"
    assert scores_csv(both).splitlines()[0].startswith("case,patient,part,phase,structure")
    write_evaluation(both, run / "both.json")
    assert read_evaluation(run / "both.json") == both


def test_implausible_pseudo_labels_are_in_the_first_box(run: Path) -> None:
    file = run / "model" / "model.json"
    content = json.loads(file.read_text())
    content["metadata"]["details"]["implausible"] = ["RV: 3 % of its area in the labelled cases"]
    file.write_text(json.dumps(content))
    text = read(report(run)).text
    first = text[: text.index("What to do next")]
    assert "are implausible: RV: 3 % of its area in the labelled cases." in first


def test_rounds_are_shown_with_their_warnings(run: Path) -> None:
    second = {
        **ROUND, "round": 2, "change": 0.0123, "dice_to_last": {"RV": 0.81, "myocardium": 0.92, "LV": None},
        "area": {"RV": 0.001, "myocardium": 0.05, "LV": 0.04}, "warnings": ["RV is nearly missing (0.10%)"],
        "withheld": {"mean": 0.777},
    }  # fmt: skip
    (run / "rounds").mkdir()
    for number, content in ((1, {**ROUND, "round": 1}), (2, second)):
        (run / "rounds" / f"round-{number:02d}.json").write_text(json.dumps(content))
    page = read(report(run))
    assert_stands_alone(page, (run / "report.html").read_text())
    assert_fits_a_phone(page)
    for words in (
        "Pseudo-labels",
        "97.5 %",
        "1.2 %",
        "0.810",
        "0.777",
        "Round 2: RV is nearly missing (0.10%).",
    ):
        assert words in page.text
    figure = rounds_figure([{**ROUND, "round": 1}, second])
    drawn = [line.get_ydata() for line in figure.axes[0].lines]
    assert [float(y) for y in drawn[0]] == [0.03, 0.001]
    assert float(drawn[1][0]) == 0.035
    # A first round without validation cases has neither a change nor a Dice: no panel is drawn for them.
    bare = {**ROUND, "round": 1, "change": None, "validation": {}, "withheld": None}
    assert [axes.get_title(loc="left") or axes.get_title() for axes in rounds_figure([bare]).axes] == [
        "Share of the pixels"
    ]
    assert len(figure.axes) == 3


def test_stages_are_compared_on_the_same_cases_and_a_loss_is_said(run: Path) -> None:
    found = read_evaluation(run / "evaluation" / "Phantom-test.json")
    worse = replace(
        found,
        cases=tuple(
            replace(case, structures=tuple(replace(s, dice=(s.dice or 0) / 2) for s in case.structures))
            for case in found.cases
        ),
    )
    gained, lost = (stages_table(pair) for pair in ({"a": worse, "b": found}, {"a": found, "b": worse}))
    assert "scores lower than" not in gained
    assert "All stages are scored on 1 test case." in gained
    assert "1 validation case" in stages_table(
        {"a": replace(worse, part="validation"), "b": replace(found, part="validation")}
    )
    assert "The last stage, b, scores lower than a" in lost
    assert stages_table({"a": found}) == stages_table({"a": found, "b": replace(found, cases=())}) == ""


def test_an_evaluation_of_other_data_joins_the_report_under_its_name(run: Path) -> None:
    found = read_evaluation(run / "evaluation" / "Phantom-test.json")
    cases = tuple(replace(case, part="") for case in found.cases)
    write_evaluation(replace(found, name="hospital-all", data="hospital", part="all", cases=cases),
                     run / "evaluation" / "hospital-all.json")  # fmt: skip
    page = read(report(run))
    assert f"mean Dice, {several(len(cases), 'case')} of hospital" in page.text
    assert "Evaluation: hospital-all" in page.text
    assert "Evaluation: Phantom-test" in page.text


def test_a_run_without_validation_says_that_its_length_was_fixed(run: Path, finished: Path) -> None:
    own, settings = run.parent / "split.json", run / "config.yaml"
    settings.write_text(settings.read_text().replace(str(finished / "split.json"), str(own)))
    own.write_text(json.dumps(json.loads(own.read_text()) | {"validation": []}))
    words = "No validation volumes: the best step could not be determined, so training had a fixed length and its last"
    assert words in read(report(run)).text


@pytest.mark.parametrize(("recipe", "mean"), [("strong", "validation_dice_present"), ("paper", "validation_dice")])
def test_the_curve_of_the_validation_is_the_score_that_selects(run: Path, recipe: str, mean: str) -> None:
    stage = open_run(run).last
    stage = replace(stage, card={**stage.card, "details": {**stage.card["details"], "recipe": recipe}})
    [dice] = [panel for panel in panels(stage, ("RV",)) if panel.title == "Validation Dice"]
    assert dice.lines == {mean: "mean", "validation_dice_RV": "RV"}


def test_a_run_that_has_only_begun(run: Path) -> None:
    shutil.rmtree(run / "model")
    shutil.rmtree(run / "evaluation")
    (run.parent / "split.json").unlink()
    page = read(report(run, out=run / "deep" / "page.html"))
    assert "Training is not finished" in page.text
    assert "Not evaluated yet" in page.text


def test_a_model_is_evaluated_on_the_test_patients_of_its_run(finished: Path, tmp_path: Path) -> None:
    """As predict and evaluate do in turn; without the split the model still knows its training patients."""
    data = finished / "secret-place" / "data"
    done = evaluate(finished / "run", str(data), out=tmp_path / "out", name="mine", pictures=False)
    assert [(case.case, case.part) for case in done.evaluation.cases] == [("patient004_frame01", "test")]
    predict(str(finished / "run"), str(data), tmp_path / "masks", split=finished / "split.json", pictures=True)
    again = evaluate(tmp_path / "masks", str(data), split=finished / "split.json", name="mine", pictures=False)
    assert again.evaluation.cases[0].structures == done.evaluation.cases[0].structures
    assert (tmp_path / "out" / done.evaluation.cases[0].mask).read_bytes()[:2] == b"\x1f\x8b"
    with Image.open(tmp_path / "masks" / "patient004_frame01.png") as picture:
        assert min(picture.size) > 200
    alone = tmp_path / "alone"
    shutil.copytree(finished / "run" / "model", alone / "model")
    unsure = evaluate(alone, str(data), out=tmp_path / "all", pictures=False)
    assert [case.part for case in unsure.evaluation.cases] == ["labelled", "", "", ""]
    assert "left out of the summary, because its label was used for training" in str(unsure)
    (data / "dataset.json").write_text((data / "dataset.json").read_text().replace('"RV"', '"right"'))
    try:
        with pytest.raises(UserError, match="expected the same names and values"):
            evaluate(alone, str(data), out=tmp_path / "all", pictures=False)
    finally:
        (data / "dataset.json").write_text((data / "dataset.json").read_text().replace('"right"', '"RV"'))


def test_pre_training_is_no_segmenter(finished: Path, tmp_path: Path) -> None:
    pretrain(
        str(finished / "secret-place" / "data"),
        tmp_path / "pre",
        split=finished / "split.json",
        pretraining=PretrainingOptions(global_steps=1, local_steps=1, global_volumes=2, local_volumes=2),
        network=NetworkOptions("unet", 4),
        preprocessing=PreprocessingOptions(image_size=64),
        run=RunOptions(progress=False, log_every=1),
    )
    page = read(report(tmp_path / "pre"))
    for words in ("Pre-training without labels in Phantom", "Not a segmenter yet", "global", "local"):
        assert words in page.text
    assert "Training is not finished" not in page.text


@pytest.mark.parametrize(
    ("command", "settings"),
    [
        ("train", {"training": {}}),
        ("selftrain", {"training": {}, "selftraining": {}}),
        ("pretrain", {"pretraining": {}}),
        ("run", {"training": {}, "selftraining": {}, "baseline_floor": 0.1}),
    ],
)
def test_a_stage_without_a_model_is_named_by_the_settings_of_its_command(
    command: str, settings: dict[str, object]
) -> None:
    declared = set(inspect.signature(getattr(ssl_medseg, command)).parameters)
    assert set(settings) <= declared
    stage = Stage("", Path("run"), RunRecord(dict.fromkeys(declared) | settings, [], [], None), {}, (), {})
    assert stage.method == command


def test_what_is_no_run_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected the output folder of `ssl-medseg train`"):
        report(tmp_path / "nowhere")
    (run / "evaluation" / "other.json").write_text('{"a": 1}')
    with pytest.raises(UserError, match="is not an evaluation"):
        report(run)
