"""Reports of fine-tuned and distilled classifiers: the numbers on the page are those of the predictions."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from contrastive_core.app.report.figures import confusion_figure, to_inline_svg
from contrastive_core.errors import UserError
from contrastive_core.metrics import Calibration
from contrastive_core.training import InferenceOptions, RunOptions
from ssl_vision.commands.distill import distill
from ssl_vision.commands.evaluate import evaluate
from ssl_vision.commands.knn import knn
from ssl_vision.commands.make_splits import LabelDrawOptions, make_splits
from ssl_vision.commands.report import report
from ssl_vision.data import open_images
from ssl_vision.evaluation.predictions import Predictions, make_predictions, read_predictions, write_predictions
from ssl_vision.evaluation.scores import ProbeOptions, score_classifier
from ssl_vision.models import EncoderOptions
from ssl_vision.reports.classifier_sections import most_confident
from ssl_vision.reports.comparison import collect, compare_predictions, comparison_figure, group_of
from ssl_vision.reports.run_folder import count_labels, open_run, read_evaluations
from ssl_vision.training.finetuning import finetune
from ssl_vision.training.options import DistillationOptions, FinetuningOptions, OptimizerOptions
from tests.pages import Page, assert_fits_a_phone, assert_stands_alone, read

FAST = OptimizerOptions(name="sgd", lr=0.8, warmup_epochs=0.0, weight_decay=0.0)
RUN = RunOptions(device="cpu", threads=1, progress=False, log_every=2)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher from 20 labels a class, one from all, and the first one's student; evaluated on the test digits."""
    folder = tmp_path_factory.mktemp("classifiers")
    make_splits("digits", folder / "labels", draw=LabelDrawOptions(fractions=(), per_class=(20,), draws=1))
    encoder = EncoderOptions(width_multiplier=0.125)
    for name, labels, epochs in (("few", folder / "labels" / "20-per-class-draw0.json", 12), ("all", None, 2)):
        finetune(
            "none",
            "digits",
            folder / "runs" / name,
            labels=labels,
            encoder=encoder,
            training=FinetuningOptions(image_size=8, epochs=epochs, batch_size=50),
            optimizer=FAST,
            run=RUN,
        )
    distill(
        str(folder / "runs" / "few"),
        "digits",
        folder / "runs" / "student",
        encoder=encoder,
        training=DistillationOptions(epochs=2, batch_size=100),
        optimizer=FAST,
        run=RUN,
    )
    for name in ("few", "all", "student"):
        evaluate(str(folder / "runs" / name), "digits", inference=InferenceOptions(device="cpu"))
    return folder / "runs"


@pytest.fixture(scope="module")
def page(runs: Path) -> Page:
    return read(report(runs / "few", device="cpu"))


@pytest.fixture
def copy(runs: Path, tmp_path: Path) -> Path:
    """A copy of the fine-tuned run in its own folder, to damage."""
    return shutil.copytree(runs / "few", tmp_path / "alone" / "few")


def predictions(run: Path) -> Predictions:
    return read_predictions(run / "evaluation" / "digits-test-predictions.npz")


def test_page_stands_alone(runs: Path, page: Page) -> None:
    source = (runs / "few" / "report.html").read_text(encoding="utf-8")
    assert len(source) < 1_000_000
    assert_stands_alone(page, source)
    assert_fits_a_phone(page)
    assert page.tags.count("h1") == 1
    assert page.tags.count("svg") == 6  # three curves, confusion, reliability, accuracy by number of labels


def test_batches_are_not_larger_than_the_set(copy: Path) -> None:
    config = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(config.replace("batch_size: 50", "batch_size: 256"))
    text = read(report(copy, device="cpu", overwrite=True)).text
    assert "12 epochs in batches of 200, seed" in text


def test_page_says_what_was_trained(page: Page) -> None:
    assert "Training of resnet18 on digits from scratch" in page.text
    assert "trained from scratch on 200 images with the labels in 20-per-class-draw0.json. 12 epochs" in page.text
    headings = ["Training", "Evaluation", "Accuracy by number of labels", "Settings", "Environment"]
    positions = [page.text.index(f" {heading} ") for heading in headings]
    assert positions == sorted(positions)
    assert "ssl-vision finetune --config" in page.text
    assert " label_smoothing 0 " in page.text


def test_numbers_are_those_of_the_predictions(runs: Path, page: Page) -> None:
    found = predictions(runs / "few")
    right = found.predicted == found.labels
    assert f"accuracy, digits, split test {100 * right.mean():.1f} %" in page.text
    shares = [100 * right[found.labels == c].mean() for c in range(10)]
    assert f"364 {100 * right.mean():.1f} %" in page.text
    assert f"{np.mean(shares):.1f} %" in page.text
    nll = -np.log(found.probabilities[np.arange(364), found.labels]).mean()
    assert f" {nll:.3f} {100 * found.confidences.mean():.1f} %" in page.text
    worst = int(np.argmin(shares))
    table = page.text[page.text.index("Classes, the weakest first") :]
    taken = np.bincount(found.predicted[(found.labels == worst) & ~right], minlength=10)
    assert f"most often predicted as {worst} " in table
    assert f"{worst} {np.sum(found.labels == worst)} {shares[worst]:.1f} % " in table
    assert f"({taken.max()})" in table


def test_confusion_writes_its_counts(runs: Path, page: Page) -> None:
    found = predictions(runs / "few")
    counts = np.zeros((10, 10), dtype=int)
    np.add.at(counts, (found.labels, found.predicted), 1)
    svg = to_inline_svg(confusion_figure(counts.tolist(), [str(c) for c in range(10)]), name="x", label="y")
    written = sorted(int(n) for n in re.findall(r">(\d+)</text>", svg))
    assert written == sorted([*counts[counts > 0].tolist(), *range(10), *range(10)])


def test_mistakes_are_the_surest_wrong_images(runs: Path, page: Page) -> None:
    found = predictions(runs / "few")
    wrong = [i for i in range(364) if found.predicted[i] != found.labels[i]]
    ranked = sorted(wrong, key=lambda i: -found.confidences[i])[:18]
    chosen = most_confident(found, 18)
    assert [m.index for m in chosen] == ranked
    assert f"The most confident of {len(wrong)} mistakes" in page.text
    images = open_images("digits", split="test")
    shown = page.images["Evaluation"]
    assert len(shown) == len(ranked)
    for picture, mistake in zip(shown, chosen, strict=True):
        np.testing.assert_array_equal(np.asarray(picture), images.read(mistake.index).permute(1, 2, 0).numpy())
        true, taken = images.classes[int(images.labels()[mistake.index])], str(found.predicted[mistake.index])
        assert (mistake.true, mistake.predicted) == (true, taken)
        assert f"{true} {100 * mistake.true_probability:.1f} % {taken} {100 * mistake.confidence:.1f} %" in page.text


def test_runs_beside_it_are_compared_by_labels(runs: Path, page: Page) -> None:
    run = open_run(runs / "few")
    points = collect(run, read_evaluations(runs / "few")[0], None)
    assert {(p.run.name, p.labels) for p in points} == {("few", 200), ("all", 1433), ("student", 200)}
    for p in points:
        content = json.loads((runs / p.run.name / "evaluation" / "digits-test.json").read_text())
        assert p.top1 == content["top1"]
        assert f"{p.run.name} {p.group} {p.labels:,} {p.top1:.1f} %" in page.text
    assert {p.group for p in points} == {"resnet18 0.125x, from scratch", "resnet18 0.125x, distilled"}
    axes = comparison_figure(points, runs / "few").axes[0]
    scratch = next(line for line in axes.lines if len(line.get_xdata()) == 2)
    top1 = {p.run.name: p.top1 for p in points}
    assert list(scratch.get_xdata()) == [200, 1433]
    assert list(scratch.get_ydata()) == [top1["few"], top1["all"]]


def test_runs_given_are_compared_and_no_others(runs: Path, copy: Path) -> None:
    run, evaluated = open_run(copy), read_evaluations(copy)[0]
    assert [p.run.name for p in collect(run, evaluated, None)] == ["few"]
    assert {p.run.name for p in collect(run, evaluated, [runs / "all"])} == {"few", "all"}
    assert {p.run.name for p in collect(run, evaluated, [runs])} == {"few", "all", "student"}
    assert "Accuracy by number of labels" not in read(report(copy, device="cpu")).text
    with pytest.raises(UserError, match="found no run and no folder of runs"):
        report(copy, compare=(copy / "evaluation",), device="cpu")


def test_runs_of_as_many_labels_are_a_table(runs: Path, copy: Path) -> None:
    page = read(report(copy, compare=(runs / "student",), device="cpu"))
    found = {name: predictions(runs / name) for name in ("few", "student")}
    top1 = {name: 100 * np.mean(p.predicted == p.labels) for name, p in found.items()}
    best, other = sorted(top1, key=lambda name: -top1[name])
    assert " Other runs on the same images Top-1 accuracy of 2 runs on digits, split test. " in page.text
    table = page.text[page.text.index("run trained labels top-1") :]
    assert table.index(f"200 {top1[best]:.1f} %") < table.index(f"200 {top1[other]:.1f} %")
    assert page.tags.count("svg") == 5


def test_teacher_and_student_agree_as_their_predictions_do(runs: Path) -> None:
    page = read(report(runs / "student", device="cpu"))
    assert_stands_alone(page, (runs / "student" / "report.html").read_text(encoding="utf-8"))
    assert "Distillation into resnet18 on digits" in page.text
    assert "Agreement with the teacher" in page.text
    student, teacher = predictions(runs / "student"), predictions(runs / "few")
    s, t, y = student.predicted, teacher.predicted, student.labels
    assert f"the same answer {100 * np.mean(s == t):.1f} %" in page.text
    assert f"teacher's accuracy {100 * np.mean(t == y):.1f} %" in page.text
    assert f"student's accuracy {100 * np.mean(s == y):.1f} %" in page.text
    for words, which in (
        ("both correct", (s == y) & (t == y)),
        ("only the teacher correct", (s != y) & (t == y)),
        ("only the student correct", (s == y) & (t != y)),
        ("both wrong, the same class", (s != y) & (s == t)),
        ("both wrong, different classes", (s != y) & (t != y) & (s != t)),
    ):
        assert f"{words} {which.sum()} {100 * which.mean():.1f} %" in page.text
    assert f"Of the teacher's {np.sum(t != y)} mistakes the student repeats {np.sum((s == t) & (s != y))}" in page.text


def test_teacher_that_was_not_evaluated_is_said(runs: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(runs, tmp_path / "runs")
    config = (folder / "student" / "config.yaml").read_text()
    (folder / "student" / "config.yaml").write_text(config.replace(str(runs), str(folder)))
    shutil.rmtree(folder / "few" / "evaluation")
    text = read(report(folder / "student", device="cpu")).text
    assert f"ssl-vision evaluate {folder / 'few'} digits --part test" in text


def test_labels_of_a_student_are_its_teacher_s(runs: Path, tmp_path: Path) -> None:
    assert count_labels(open_run(runs / "few").settings) == 200
    assert count_labels(open_run(runs / "all").settings) == 1433
    assert count_labels(open_run(runs / "student").settings) == 200
    gone = shutil.copytree(runs / "student", tmp_path / "student")
    config = (gone / "config.yaml").read_text()
    (gone / "config.yaml").write_text(config.replace(str(runs / "few"), str(tmp_path / "nothing")))
    assert count_labels(open_run(gone).settings) is None


def test_groups_name_what_differs(runs: Path) -> None:
    settings = open_run(runs / "few").settings

    def group(**changed: object) -> str:
        config = {**settings.config, **changed}
        return group_of(type(settings)(**{**vars(settings), "config": config}))

    assert group(init="runs/simclr-seed3") == group(init="runs/simclr-seed4/model")
    assert group(init="runs/simclr-s3") == group(init="runs/simclr-seed3")
    assert group(init="runs/a", from_layer=1).endswith("fine-tuned from a, head layer 1")
    assert group(init="runs/a/models/epoch-0100").endswith("fine-tuned from a, epoch 100")
    assert group(init="runs/a") != group(init="runs/b")


def test_classifier_that_was_not_evaluated(copy: Path) -> None:
    shutil.rmtree(copy / "evaluation")
    text = read(report(copy, device="cpu")).text
    assert f"ssl-vision evaluate {copy} DATA" in text
    assert "Most confident mistakes" not in text


def test_run_that_has_not_ended(copy: Path) -> None:
    shutil.rmtree(copy / "model")
    shutil.rmtree(copy / "evaluation")
    assert "Training has not ended" in read(report(copy, device="cpu")).text


def test_evaluation_of_another_model_is_marked(copy: Path) -> None:
    file = copy / "evaluation" / "digits-test.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "model_hash": "0" * 64}))
    assert (
        "Computed with another model than the one in the folder: digits, split test."
        in read(report(copy, device="cpu")).text
    )


def test_predictions_or_images_that_are_gone_are_said(copy: Path) -> None:
    file = copy / "evaluation" / "digits-test-predictions.npz"
    found = read_predictions(file)
    others = make_predictions(
        found.probabilities, found.labels, paths=[f"{i}.png" for i in range(364)], classes=found.classes.tolist()
    )
    write_predictions(file, others)
    assert "its images are not those that were evaluated" in read(report(copy, device="cpu")).text
    np.savez_compressed(
        file, **{name: np.zeros((300, 300)) for name in ("probabilities", "labels", "paths", "classes")}
    )
    with pytest.raises(UserError, match="compressed, and may unpack to any size"):
        read_predictions(file)
    file.unlink()
    assert "The predictions were removed" in read(report(copy, device="cpu")).text


def test_scores_of_features_have_a_section_of_their_own(copy: Path) -> None:
    knn(str(copy), "digits", k=5, probe=ProbeOptions(device="cpu"))
    page = read(report(copy, device="cpu"))
    assert " Features " in page.text
    assert "nearest neighbours" in page.text


def test_names_from_outside_are_text(copy: Path) -> None:
    file = copy / "evaluation" / "digits-test.json"
    content = json.loads(file.read_text())
    for c in content["per_class"]:
        c["name"] = f'<b>"{c["name"]}" & co'
    file.write_text(json.dumps(content))
    page = read(report(copy, device="cpu"))
    assert '<b>"7" & co' in page.text
    assert "b" not in page.tags


def test_perfect_classifier_has_no_mistakes(copy: Path) -> None:
    file = copy / "evaluation" / "digits-test-predictions.npz"
    found = read_predictions(file)
    write_predictions(
        file, Predictions(np.eye(10, dtype=np.float32)[found.labels], found.labels, found.paths, found.classes)
    )
    assert "all images are classified correctly" in read(report(copy, device="cpu")).text


def test_many_classes_are_a_picture_that_stays_small() -> None:
    import torch

    labels = torch.arange(300).repeat(4)
    logits = torch.nn.functional.one_hot(labels, 300) * 5.0 + torch.randn(1200, 300)
    score = score_classifier(
        logits, labels, classes=[f"class {i}" for i in range(300)], model="m", model_hash="h", data="d", split="s",
        bins=15,
    )  # fmt: skip
    svg = to_inline_svg(confusion_figure(score.confusion, score.classes), name="x", label="y")
    assert len(svg) < 400_000
    assert "class 7" not in svg
    assert isinstance(score.calibration, Calibration)


def test_agreement_counts_every_image_once() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 500)
    student, teacher = (
        make_predictions(
            rng.dirichlet(np.ones(4), 500).astype(np.float32), labels, paths=["x"] * 500, classes=list("abcd")
        )
        for _ in range(2)
    )
    found = compare_predictions(student, teacher)
    parts = (found.both_right, found.student_only, found.teacher_only, found.same_mistake, found.other_mistake)
    assert sum(parts) == found.images == 500
    assert found.same == found.both_right + found.same_mistake


def test_a_constant_classifier_is_warned_of() -> None:
    labels = torch.arange(100) % 4
    logits = torch.nn.functional.one_hot(labels, 4).float() * 5

    def warning(scores: torch.Tensor, truth: torch.Tensor = labels) -> str:
        score = score_classifier(
            scores, truth, classes=list("abcd"), model="", model_hash="", data="", split="test", bins=5
        )  # fmt: skip
        assert ("warning: " in str(score)) == bool(score.warning)
        return score.warning

    assert warning(logits) == ""
    assert "100 % of the images are predicted as class c; the classifier has collapsed" in warning(
        torch.eye(4)[2].repeat(100, 1)
    )
    assert "no better than chance" in warning(logits.roll(1, dims=1))
    assert "All images are of one class" in warning(torch.eye(4)[2].repeat(100, 1), torch.full((100,), 2))
    rare = torch.zeros(100, dtype=torch.int64)
    rare[:4] = 1
    assert (
        warning(torch.nn.functional.one_hot(rare, 4).float(), rare) == ""
    )  # nearly all are of one class, and rightly so
