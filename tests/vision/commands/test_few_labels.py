"""`few-labels` chooses on the given labels, and its recommendation can be used."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from contrastive_core.errors import UserError
from contrastive_core.training import InferenceOptions, RunOptions
from ssl_vision.cli import main
from ssl_vision.commands.evaluate import evaluate
from ssl_vision.commands.few_labels import Candidate, _recommend, _Trial, few_labels
from ssl_vision.commands.knn import knn
from ssl_vision.commands.make_splits import LabelDrawOptions, make_splits
from ssl_vision.commands.pretrain import pretrain
from ssl_vision.data import open_images
from ssl_vision.evaluation.scores import ProbeOptions
from ssl_vision.labels.choose import choose_per_class
from ssl_vision.models import EncoderOptions
from ssl_vision.training.options import AugmentOptions, OptimizerOptions, PretrainingOptions

CPU = InferenceOptions(device="cpu")

QUIET = RunOptions(threads=1, log_every=10, device="cpu", progress=False)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("few") / "run"
    pretrain(
        "digits", run, training=PretrainingOptions(epochs=3, batch_size=128, image_size=8), temperature=0.2,
        encoder=EncoderOptions(width_multiplier=0.125),
        augment=AugmentOptions(flip=False, gray=0.0), optimizer=OptimizerOptions(name="sgd", lr=0.3), run=QUIET,
    )  # fmt: skip
    return run


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labels")
    make_splits("digits", folder, draw=LabelDrawOptions(fractions=(), per_class=(1, 5), draws=1))
    return folder


def test_the_recommended_classifier_scores_what_the_table_says(pretrained: Path, labels: Path, tmp_path: Path) -> None:
    result = few_labels(
        str(pretrained), "digits", tmp_path, labels=labels / "5-per-class-draw0.json", methods=("linear", "finetune"),
        epochs=2, folds=2, inference=CPU,
    )  # fmt: skip
    assert (result.labels, result.classes, result.test_images, result.test_part) == (50, 10, 364, "test")
    for candidate in result.candidates:
        assert evaluate(str(tmp_path / candidate.method), "digits", inference=CPU).score.top1 == pytest.approx(
            candidate.test
        )
        assert candidate.held_out == 50
    assert result.model == tmp_path / result.recommended
    assert json.loads((tmp_path / "few-labels.json").read_text())["recommended"] == result.recommended
    text = str(result)
    assert "Top-1 accuracy in percent from 50 labels of 10 classes" in text
    assert f"classifier: {result.model}" in text
    assert f"* recommended: {'fine-tuning' if result.recommended == 'finetune' else 'linear classifier'}. " in text
    assert "On 50 held-out images" in text or "of the 50 held-out images" in text


def test_neighbours_score_what_knn_says(labels: Path, tmp_path: Path) -> None:
    file = labels / "5-per-class-draw0.json"
    result = few_labels("pixels", "digits", tmp_path, labels=file, methods=("knn", "linear"), inference=CPU)
    found = next(c for c in result.candidates if c.method == "knn")
    k = int(found.setting.removeprefix("k "))
    assert knn(
        "pixels", "digits", k=k, probe=ProbeOptions(labels=file, device="cpu", out=tmp_path / "knn.json")
    ).top1 == pytest.approx(found.test)
    assert min(c.test for c in result.candidates) > 50  # raw pixels of digits are told apart
    assert result.model is None
    assert "no classifier was written" in str(
        few_labels("pixels", "digits", tmp_path, labels=file, methods=("linear",), inference=CPU)
    )


def test_results_of_other_labels_and_settings_stay(pretrained: Path, labels: Path, tmp_path: Path) -> None:
    """A folder never holds the classifier of one call beside the table of another."""
    first, second = labels / "1-per-class-draw0.json", labels / "5-per-class-draw0.json"

    def compare(file: Path, epochs: int) -> None:
        few_labels(
            str(pretrained), "digits", tmp_path, labels=file, methods=("linear", "finetune"), epochs=epochs,
            inference=CPU,
        )  # fmt: skip

    compare(first, epochs=1)
    kept = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"all\.json already exists .* choose another folder or move"):
        compare(second, epochs=1)
    with pytest.raises(UserError, match="epochs"):
        compare(first, epochs=2)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == kept


def test_test_images_choose_nothing(pretrained: Path, labels: Path, tmp_path: Path) -> None:
    file = labels / "5-per-class-draw0.json"
    methods = ("linear", "knn")
    without = few_labels(str(pretrained), "digits", tmp_path / "a", labels=file, test_part="train", methods=methods)
    within = few_labels(str(pretrained), "digits", tmp_path / "b", labels=file, methods=methods)
    assert (without.test_images, {c.test for c in without.candidates}) == (0, {None})
    assert [(c.setting, c.validated) for c in without.candidates] == [
        (c.setting, c.validated) for c in within.candidates
    ]


def test_with_one_label_per_class_nothing_is_validated(labels: Path, tmp_path: Path) -> None:
    file = labels / "1-per-class-draw0.json"
    result = few_labels("pixels", "digits", tmp_path, labels=file, methods=("linear", "knn"), inference=CPU)
    assert [(c.validated, c.log_likelihood, c.held_out) for c in result.candidates] == [
        (None, None, 0),
        (None, None, 0),
    ]
    assert result.recommended == "linear"


def tried(method: str, right: int, held_out: int = 100, *, first: int = 0, likely: float = -1.0) -> _Trial:
    """A method that is right on images `first` to ``first + right - 1`` of 100; the first ones are held out.

    The log-likelihood of an image is `likely`, one less or one more.
    """
    number = torch.arange(100)
    likelihood = likely + torch.where(number % 2 == 0, -1.0, 1.0) * (0.0 if method == "linear" else 1.0)
    return _Trial(
        method, "", (number >= first) & (number < first + right), likelihood.double(), number < held_out, None  # type: ignore[arg-type]
    )  # fmt: skip


def test_a_cheaper_method_is_recommended_where_it_does_not_differ() -> None:
    linear, tuned = tried("linear", 80), tried("finetune", 84, likely=-0.95)
    unlikely = tried("knn", 90, likely=-1.15)
    cases = {  # on the same images, and on four more: (84 - 80) > sqrt(4)
        "its accuracy is 4.0 ± 2.0 points above that of the linear classifier (± standard error), and its mean "
        "log-likelihood 0.05 ± 0.10.": ([linear, tuned], tuned),
        "its accuracy is 1.0 ± 1.0 points above that of the linear classifier (± standard error), and its mean "
        "log-likelihood 0.20 ± 0.10.": ([linear, tried("finetune", 81, likely=-0.8)], tried("finetune", 81)),
        "No other method classifies more of the 100": ([linear, tried("finetune", 80, first=1)], linear),
        "fine-tuning is 1.0 ± 1.0 points more accurate, which is within the standard error, like": (
            [linear, tried("finetune", 81, likely=-0.95)], linear,
        ),
        "is 4.0 ± 6.0 points more accurate, which": ([linear, tried("finetune", 84, first=16, likely=-0.95)], linear),
        "nearest neighbours is 2.0 ± 1.4 points more accurate, which is within 1.64 standard errors": (
            [linear, tried("knn", 82, likely=-0.95), tried("finetune", 80, first=1)], linear,
        ),
        "nearest neighbours is 10.0 ± 3.2 points more accurate, but its mean log-likelihood is 0.15 ± 0.10 lower": (
            [linear, unlikely, tried("finetune", 80, likely=-0.5)], linear,
        ),
        "its accuracy is 3.0 ± 1.7 points above that of the linear": (
            [linear, unlikely, tried("finetune", 83, likely=-0.9)], tried("finetune", 83),
        ),
        "its accuracy is 6.0 ± 2.4 points above that of the nearest neighbours": (
            [linear, tried("knn", 90, likely=-0.9), tried("finetune", 96, likely=-0.8)], tried("finetune", 96),
        ),
        "its accuracy is 10.0 ± 3.2 points above that of the linear": (
            [linear, tried("knn", 90, likely=-0.9), tried("finetune", 90, first=1, likely=-0.5)], tried("knn", 90),
        ),
        "On 20 held-out images, fine-tuning": (  # the images that both have held out
            [tried("linear", 19), tried("finetune", 20, held_out=20, likely=-0.95)], linear,
        ),
        "no image can be held out": ([tried("linear", 80, held_out=0), tuned], linear),
        "No other method was compared": ([tuned], tuned),
    }  # fmt: skip
    for reason, (methods, expected) in cases.items():
        chosen, found = _recommend(methods)
        assert reason in found
        assert chosen.method == expected.method
    error = pytest.approx(math.sqrt(84 * 16 / 100))
    assert tuned.candidate() == Candidate("finetune", "", 84.0, 100, None, error, pytest.approx(-0.95))


def test_a_class_without_a_second_image_does_not_count(tmp_path: Path) -> None:
    """No method can predict it when it is held out, and neither its probability nor its absence tells them apart."""
    images = open_images("digits")
    chosen = choose_per_class(images.labels(), images.classes, 4, seed=0).sort().values.tolist()
    lonely = images.labels()[chosen[0]]
    file = tmp_path / "labels.txt"
    kept = [i for i in chosen if images.labels()[i] != lonely or i == chosen[0]]
    file.write_text("".join(f"{images.key(i)}\n" for i in kept))
    result = few_labels("pixels", "digits", tmp_path / "out", labels=file, methods=("linear", "knn"), inference=CPU)
    for candidate in result.candidates:
        assert candidate.held_out == 37
        assert candidate.log_likelihood is not None
        assert -1 < candidate.log_likelihood < 0  # a logit of -30 for an unknown class would subtract 0.8


def test_what_cannot_be_compared_is_refused(labels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="fine-tuning needs a network"):
        few_labels("pixels", "digits", tmp_path, labels=labels / "5-per-class-draw0.json", methods=("finetune",))
    assert main(["few-labels", "pixels", "digits", str(tmp_path / "c"), "--labels", str(labels / "no.json")]) == 1
    assert "cannot be read" in capsys.readouterr().err
