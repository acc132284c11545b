"""Evaluation of a classifier against scikit-learn's on its own predictions."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn import metrics as reference
from torch import Tensor

from contrastive_core.app.report.page import to_image
from contrastive_core.errors import UserError
from contrastive_core.training import InferenceOptions
from ssl_vision.cli import VERBS, main
from ssl_vision.commands.embed import embed
from ssl_vision.commands.evaluate import Evaluation, evaluate
from ssl_vision.commands.knn import knn
from ssl_vision.commands.linear import linear
from ssl_vision.commands.transfer import transfer
from ssl_vision.data import in_memory, open_images
from ssl_vision.evaluation import features
from ssl_vision.evaluation.predictions import read_predictions
from ssl_vision.evaluation.scores import ClassifierScore, ProbeOptions, read_classifier_score, score_classifier, to_json
from ssl_vision.models.model_folder import load_classifier

CPU = InferenceOptions(device="cpu")


@pytest.fixture(scope="module")
def result(digit_classifier: Path) -> Evaluation:
    return evaluate(str(digit_classifier), "digits", inference=InferenceOptions(batch_size=100, device="cpu"))


def test_probabilities_are_those_of_the_classifier(result: Evaluation, digit_classifier: Path) -> None:
    images = open_images("digits", split="test")
    loaded = load_classifier(str(digit_classifier), device="cpu")
    with torch.no_grad():
        expected = loaded.model(in_memory(images).float() / 255).softmax(dim=1)
    found = read_predictions(result.written[1])
    np.testing.assert_allclose(found.probabilities, expected, atol=1e-5)
    np.testing.assert_array_equal(found.labels, images.labels())
    assert found.paths.tolist() == [images.path(i) for i in range(len(images))]
    assert found.classes.tolist() == images.classes


def test_numbers_are_scikit_learn_s(result: Evaluation) -> None:
    found, score = read_predictions(result.written[1]), result.score
    y, p, predicted = found.labels, found.probabilities.astype(np.float64), found.predicted
    p /= p.sum(axis=1, keepdims=True)
    assert score.images == len(y) == 364
    assert score.top1 == pytest.approx(100 * reference.accuracy_score(y, predicted))
    assert score.top5 == pytest.approx(100 * reference.top_k_accuracy_score(y, p, k=5, labels=range(10)))
    assert score.mean_per_class == pytest.approx(100 * reference.balanced_accuracy_score(y, predicted))
    assert score.nll == pytest.approx(reference.log_loss(y, p), rel=1e-4)
    np.testing.assert_array_equal(score.confusion, reference.confusion_matrix(y, predicted))
    recalls = reference.recall_score(y, predicted, average=None)
    assert [c.accuracy for c in score.per_class] == pytest.approx(list(100 * recalls))
    assert [c.images for c in score.per_class] == np.bincount(y).tolist()
    assert 60 < score.top1 < 100  # not so good that nothing is tested


def test_files_hold_what_was_found(result: Evaluation, digit_classifier: Path) -> None:
    folder = digit_classifier / "evaluation"
    names = [
        "digits-test.json",
        "digits-test-predictions.npz",
        "digits-test-confusion.png",
        "digits-test-reliability.png",
    ]
    assert result.written == [folder / name for name in names]
    assert read_classifier_score(result.written[0]) == result.score
    content = json.loads(result.written[0].read_text())
    assert content["format"] == "ssl-vision evaluation 1"
    assert content["calibration"]["bins"][14]["upper"] == 1
    for file in result.written[2:]:
        with Image.open(file) as picture:
            assert min(picture.size) > 300
    before = [file.read_bytes() for file in result.written]
    evaluate(str(digit_classifier), "digits", inference=InferenceOptions(batch_size=100, device="cpu"))
    assert [file.read_bytes() for file in result.written] == before


def test_values_that_are_not_finite_have_no_accuracy(
    digit_classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finite = features.outputs

    def outputs(*given: Any, **options: Any) -> Iterator[Tensor]:
        for batch in finite(*given, **options):
            yield batch.index_fill(0, torch.tensor([1, 3]), torch.nan)

    monkeypatch.setattr(features, "outputs", outputs)
    probe = ProbeOptions(device="cpu", out=tmp_path / "score.json")
    for command in (
        lambda: evaluate(str(digit_classifier), "digits", inference=CPU, out=tmp_path),
        lambda: knn("pixels", "digits", probe=probe),
        lambda: linear("pixels", "digits", augment="none", epochs=1, probe=probe),
        lambda: transfer("pixels", "digits", probe=probe),
        lambda: embed("pixels", "digits", tmp_path / "features.npz", inference=CPU),
    ):
        with pytest.raises(UserError, match="the model returns values that are not finite, for "):
            command()
    assert list(tmp_path.iterdir()) == []


def test_summary_says_the_worst(result: Evaluation) -> None:
    text, score = str(result), result.score
    assert f"top-1 {score.top1:.2f} %" in text
    worst = min((c for c in score.per_class if c.images), key=lambda c: (c.right / c.images, c.name))
    assert f"weakest classes: {worst.name} {worst.accuracy:.1f} % of {worst.images}" in text
    mistakes = np.array(score.confusion) * (1 - np.eye(10, dtype=int))
    true, taken, count = score.mistakes()[0]
    assert count == mistakes.max() == mistakes[int(true), int(taken)]
    assert f"most frequent mistakes: {true} predicted as {taken} ({count})" in text
    assert sum(count for *_, count in score.mistakes()) == mistakes.sum()


def digits_as_files(folder: Path, names: dict[int, str], *, count: int = 5) -> str:
    images = open_images("digits", split="test")
    for digit, name in names.items():
        (folder / "test" / name).mkdir(parents=True)
        for i in (images.labels() == digit).nonzero()[:count, 0].tolist():
            to_image(images.read(i)).save(folder / "test" / name / f"{i}.png")
    return str(folder)


def test_classes_are_matched_by_name(digit_classifier: Path, tmp_path: Path) -> None:
    # Three of the classes, whose numbers within the data are not those of the classifier.
    data = digits_as_files(tmp_path / "data", {7: "7", 2: "2", 9: "9"})
    score = evaluate(str(digit_classifier), data, inference=CPU, out=tmp_path / "out", name="few").score
    assert [c.images for c in score.per_class] == [0, 0, 5, 0, 0, 0, 0, 5, 0, 5]
    assert score.per_class[0].accuracy is None
    assert score.top1 > 60
    present = [c.accuracy for c in score.per_class if c.images]
    assert score.mean_per_class == pytest.approx(np.mean(present))
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        ".outputs.json", "few-confusion.png", "few-predictions.npz", "few-reliability.png", "few.json"
    ]  # fmt: skip
    assert "on 15 images of 3 classes" in str(score)


def test_unknown_classes_are_one_clear_error(digit_classifier: Path, tmp_path: Path) -> None:
    data = digits_as_files(tmp_path / "data", {7: "seven", 2: "2"}, count=1)
    with pytest.raises(
        UserError, match=r"1 classes that the classifier was not trained on \(seven\); its classes are 0, 1"
    ):
        evaluate(str(digit_classifier), data, inference=CPU)


def test_images_without_labels_are_refused(digit_classifier: Path, tmp_path: Path) -> None:
    for i in range(2):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{i}.png")
    with pytest.raises(UserError, match="expected labels"):
        evaluate(str(digit_classifier), str(tmp_path), part="train", inference=CPU)


def test_impossible_settings_are_refused(digit_classifier: Path) -> None:
    with pytest.raises(UserError, match="got bins=0"):
        evaluate(str(digit_classifier), "digits", bins=0)
    with pytest.raises(UserError, match="batch_size is 0; expected a whole number of at least 1"):
        evaluate(str(digit_classifier), "digits", inference=InferenceOptions(batch_size=0))


def test_a_model_folder_is_evaluated_into_its_run(digit_classifier: Path, result: Evaluation) -> None:
    again = evaluate(str(digit_classifier / "model"), "digits", inference=CPU)
    assert again.written[0] == digit_classifier / "evaluation" / "digits-test.json"
    assert again.score.confusion == result.score.confusion


def test_command_line(digit_classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(digit_classifier), "digits", "--out", str(tmp_path), "--bins", "5"]) == 0
    printed = capsys.readouterr().out
    assert "(5 bins of equal width)" in printed
    assert f"written: {tmp_path / 'digits-test.json'}" in printed


def test_certain_and_wrong_is_expensive_and_not_infinite() -> None:
    logits = torch.tensor([[200.0, 0.0], [0.0, 200.0]])
    score = score_classifier(
        logits, torch.tensor([0, 0]), classes=["a", "b"], model="m", model_hash="h", data="d", split="s", bins=10
    )
    assert score.nll == pytest.approx(100)
    assert score.top5 is None
    assert score.calibration.ece == pytest.approx(0.5)


@pytest.mark.parametrize(
    "content",
    ["{broken", '{"format": "ssl-vision evaluation 1"}', '{"format": "ssl-vision evaluation 1", "per_class": 3}'],
)
def test_a_damaged_file_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UserError, match=r"a\.json: (found no evaluation|is not readable as JSON)"):
        read_classifier_score(tmp_path / "a.json")


def test_files_of_another_kind_are_none(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"protocol": "knn"}')
    assert read_classifier_score(tmp_path / "a.json") is None
    with pytest.raises(UserError, match=r"b\.npz: found no predictions"):
        read_predictions(tmp_path / "b.npz")
    (tmp_path / "b.npz").write_bytes(b"zero")
    with pytest.raises(UserError, match=r"b\.npz: found no predictions"):
        read_predictions(tmp_path / "b.npz")


def test_json_of_a_thousand_classes_is_small(tmp_path: Path) -> None:
    labels = torch.arange(1000).repeat(2)
    score = score_classifier(
        torch.randn(2000, 1000), labels, classes=[f"class {i}" for i in range(1000)], model="m", model_hash="h",
        data="d", split="s", bins=15,
    )  # fmt: skip
    (tmp_path / "a.json").write_bytes(to_json(score))
    assert (tmp_path / "a.json").stat().st_size < 5_000_000
    found = read_classifier_score(tmp_path / "a.json")
    assert isinstance(found, ClassifierScore)
    assert found == score


@pytest.mark.slow
def test_two_processes_evaluate_once(digit_classifier: Path, tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    words = ["ssl_vision", "evaluate", str(digit_classifier), "digits", "--out", str(tmp_path)]
    done = subprocess.run([*launcher, *words], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("top-1") == 1
    assert read_classifier_score(tmp_path / "digits-test.json") is not None


def test_commands_that_share_no_work_are_done_by_one_process() -> None:
    alone = {name for name, verb in VERBS.items() if verb.alone}
    assert alone >= {"evaluate", "predict", "linear", "knn", "transfer", "embed", "report", "check", "make-splits"}
    assert not alone & {"pretrain", "finetune", "distill", "demo"}
