"""Evaluation with few labels: only images of the label file are learnt from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from contrastive_core.errors import UserError
from ssl_vision.augment import EvalTransform
from ssl_vision.commands.knn import knn
from ssl_vision.commands.linear import linear
from ssl_vision.commands.transfer import transfer
from ssl_vision.data import Subset, open_images
from ssl_vision.evaluation.features import decode, evaluation_batches, labelled_features, labelled_images
from ssl_vision.evaluation.probes import knn_scores
from ssl_vision.evaluation.scores import ProbeOptions, Score
from ssl_vision.labels.choose import choose_per_class
from ssl_vision.models.model_folder import load_encoder


@pytest.fixture
def labels(tmp_path: Path) -> tuple[Path, Tensor]:
    """A list of three digits of every class, and their indices."""
    images = open_images("digits")
    chosen = choose_per_class(images.labels(), images.classes, 3, seed=0).sort().values
    file = tmp_path / "labels.txt"
    file.write_text("".join(f"{images.key(int(i))}\n" for i in chosen))
    return file, chosen


def test_only_listed_images_vote(labels: tuple[Path, Tensor]) -> None:
    file, chosen = labels
    score = knn("pixels", "digits", k=1, probe=ProbeOptions(labels=file))
    train, test = (
        labelled_features(load_encoder("pixels", device="cpu"), "digits", split=s, batch_size=512)
        for s in ("train", "test")
    )
    votes = knn_scores(test.features, train.features[chosen], train.labels[chosen], num_classes=10, k=1)
    assert score.top1 == pytest.approx(100 * (votes.argmax(dim=1) == test.labels).double().mean().item())
    assert score.settings["labels"] == "labels.txt"
    assert score.top1 < knn("pixels", "digits", k=1).top1


def test_linear_learns_from_listed_images_alone(labels: tuple[Path, Tensor]) -> None:
    few = linear("pixels", "digits", augment="none", epochs=20, probe=ProbeOptions(labels=labels[0]))
    everything = linear("pixels", "digits", augment="none", epochs=20)
    assert 50 < few.top1 < everything.top1
    assert few.settings["labels"] == "labels.txt"
    assert "labels" not in everything.settings


def test_transfer_draws_validation_images_from_the_list(labels: tuple[Path, Tensor]) -> None:
    score = transfer("pixels", "digits", val_share=0.34, probe=ProbeOptions(labels=labels[0], device="cpu"))
    assert score.found["validation images"] == 10
    assert 60 < score.top1 < 95


def test_a_single_label_a_class_leaves_nothing_to_validate_on(tmp_path: Path) -> None:
    images = open_images("digits")
    file = tmp_path / "one.txt"
    file.write_text(
        "".join(f"{images.key(int(i))}\n" for i in choose_per_class(images.labels(), images.classes, 1, seed=0))
    )
    with pytest.raises(UserError, match="single labelled image"):
        transfer("pixels", "digits", probe=ProbeOptions(labels=file, device="cpu"))


def test_images_of_a_subset_are_those_of_the_set(tmp_path: Path) -> None:
    for i in range(5):
        (tmp_path / "train" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4 + i, 3), (i, 0, 0)).save(tmp_path / "train" / "ab"[i % 2] / f"{i}.png")
    images = open_images(tmp_path)
    some = Subset(images, [3, 0])
    assert len(some) == 2
    assert [some.key(0), some.path(1)] == [images.key(3), images.path(0)]
    assert torch.equal(some.read(0), images.read(3))
    assert some.size(0) == images.size(3)
    assert some.labels().tolist() == images.labels()[[3, 0]].tolist()


def test_batches_are_the_images_in_order_however_many_threads_read_them(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for i in range(70):
        Image.new("RGB", (40 + i % 7, 50), (i, 2 * i, 0)).save(tmp_path / "a" / f"{i:02}.png")
    images = open_images(tmp_path)
    transform = EvalTransform(32)
    expected = torch.stack([transform(images.read(i)) for i in range(70)])
    batches = list(evaluation_batches(images, size=32, batch_size=33))
    assert [len(batch) for batch in batches] == [33, 33, 4]
    assert torch.equal(torch.cat(batches), expected)


def test_files_that_cannot_be_read_are_left_out_only_where_they_are_asked_for(tmp_path: Path) -> None:
    for i in range(20):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / f"{i:02}.png")
    for i in (3, 17):
        (tmp_path / f"{i:02}.png").write_bytes(b"not an image")
    images = open_images(tmp_path)
    problems: dict[int, str] = {}
    found = decode(images, range(20), EvalTransform(8), problems=problems)
    assert sorted(problems) == [3, 17]
    assert "17.png" in problems[17]
    reds = (found[:, 0, 0, 0] * 255).round().int().tolist()
    assert reds == [i for i in range(20) if i not in (3, 17)]
    with pytest.raises(UserError, match=r"03\.png"):
        decode(images, range(20), EvalTransform(8))


def test_scores_name_what_they_found() -> None:
    score = Score("knn", 50.0, None, 10, 2, "m", "h", "d", {}, mean_per_class=48.5, found={"l2": 0.123456, "images": 3})
    assert str(score) == ("knn: top-1 50.00 %, mean per class 48.50 % on 10 images of 2 classes; l2 0.1235; images 3")


def test_classes_without_a_label_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("apple", "pear", "plum"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (4, 4)).save(tmp_path / "data" / name / f"{name}{number}.png")
    labels = tmp_path / "labels.txt"
    labels.write_text("apple0.png\npear0.png\n")
    data = str(tmp_path / "data")
    note = f"warning: {labels}: no labelled image belongs to 1 of the 3 classes (plum), which cannot be predicted"
    labelled_images(data, split="train", labels=labels)
    assert note in capsys.readouterr().err
    labels.write_text("apple0.png\npear0.png\nplum1.png\n")
    labelled_images(data, split="train", labels=labels)
    assert not capsys.readouterr().err
