"""The transfer protocol against the same steps in scikit-learn."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score

from contrastive_core.app.report.page import to_image
from contrastive_core.errors import UserError
from contrastive_core.rng import derive
from contrastive_core.training import RunOptions
from ssl_vision.commands.pretrain import pretrain
from ssl_vision.commands.transfer import PENALTIES, transfer
from ssl_vision.data import open_images
from ssl_vision.evaluation.features import labelled_features
from ssl_vision.evaluation.scores import ProbeOptions
from ssl_vision.labels.choose import hold_out
from ssl_vision.models import EncoderOptions
from ssl_vision.models.model_folder import load_encoder
from ssl_vision.training.options import PretrainingOptions


def write_digits(folder: Path, counts: dict[str, int], *, classes: int = 4) -> Path:
    """Write the first digits of some classes as files; no image is in two splits."""
    images = open_images("digits", split="all")
    for digit in range(classes):
        members = iter((images.labels() == digit).nonzero()[:, 0].tolist())
        for split, count in counts.items():
            (folder / split / str(digit)).mkdir(parents=True)
            for _ in range(count):
                to_image(images.read(i := next(members))).save(folder / split / str(digit) / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("transfer") / "run"
    pretrain(
        "digits",
        out,
        training=PretrainingOptions(epochs=1, batch_size=128, image_size=8),
        encoder=EncoderOptions(width_multiplier=0.0625),
        run=RunOptions(device="cpu", threads=1, progress=False),
    )
    return str(out)


Arrays = tuple[np.ndarray, np.ndarray]


def regression(l2: float, *parts: Arrays) -> LogisticRegression:
    images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return LogisticRegression(C=1 / l2, tol=1e-5, max_iter=5_000).fit(images, labels)


def arrays(model: str, data: str, split: str) -> Arrays:
    found = labelled_features(load_encoder(model, device="cpu"), data, split=split, batch_size=64)
    return found.features.double().numpy(), found.labels.numpy()


@pytest.mark.parametrize("own", [True, False], ids=["own validation split", "drawn"])
def test_protocol_is_that_of_scikit_learn(own: bool, model: str, tmp_path: Path) -> None:
    counts = {"train": 20, "val": 8, "test": 20} if own else {"train": 28, "test": 20}
    data = str(write_digits(tmp_path / "data", counts))
    score = transfer(model, data, seed=3, val_share=0.25, probe=ProbeOptions(device="cpu", out=tmp_path / "score.json"))
    train, test = arrays(model, data, "train"), arrays(model, data, "test")
    if own:
        val = arrays(model, data, "val")
    else:
        stay, held = hold_out(torch.from_numpy(train[1]), list("0123"), 0.25, seed=derive(3, "validation"))
        train, val = (train[0][stay], train[1][stay]), (train[0][held], train[1][held])
    l2 = score.found["l2"]
    correct = {each: regression(each, train).score(*val) * len(val[1]) for each in PENALTIES}
    # An image on the border between two classes may change sides with the rounding of another processor.
    assert correct[l2] >= max(correct.values()) - 1.5
    if own:  # no such image here
        assert l2 == max(each for each, count in correct.items() if count == max(correct.values()))
    classifier = regression(l2, train, val)
    assert score.found["validation images"] == len(val[1])
    predicted = classifier.predict(test[0])
    assert score.top1 == pytest.approx(100 * np.mean(predicted == test[1]))
    assert score.mean_per_class == pytest.approx(100 * balanced_accuracy_score(test[1], predicted))
    assert json.loads((tmp_path / "score.json").read_text())["found"]["l2"] == l2
    assert f"l2 {l2:.4g}" in str(score)


def test_validation_images_are_never_those_tested_on(model: str, tmp_path: Path) -> None:
    # Without a folder test, val is the test split, and no validation split.
    data = str(write_digits(tmp_path / "data", {"train": 12, "val": 4}))
    score = transfer(model, data, probe=ProbeOptions(device="cpu", out=tmp_path / "score.json"))
    assert score.settings["val_part"] == "0.2 of train, seed 0"
    assert score.images == 16
    with pytest.raises(UserError, match="val_part 'test' is also used"):
        transfer(model, data, val_part="test", probe=ProbeOptions(device="cpu"))


def test_score_lies_beside_the_model_and_repeats(model: str, tmp_path: Path) -> None:
    data = str(write_digits(tmp_path / "data", {"train": 8, "test": 4}))
    first, again = (transfer(model, data, metric="mean_per_class", probe=ProbeOptions(device="cpu")) for _ in range(2))
    assert first == again
    written = json.loads((Path(model) / "evaluation" / "transfer.json").read_text())
    assert written["mean_per_class"] == first.mean_per_class
    assert written["settings"]["l2 chosen by"] == "mean_per_class"
