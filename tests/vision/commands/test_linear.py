"""Linear evaluation against scikit-learn's logistic regression; the encoder stays unchanged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from contrastive_core.errors import UserError
from ssl_vision.commands import linear as linear_module
from ssl_vision.commands.linear import linear
from ssl_vision.data import in_memory, open_images
from ssl_vision.evaluation.scores import ProbeOptions
from ssl_vision.models.model_folder import LoadedModel


class Restless(nn.Module):
    """An encoder that changes with every use, like one with batch norm left in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("uses", torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        self.uses += 1
        return images.flatten(1)[:, :64]


def test_accuracy_is_that_of_logistic_regression(tmp_path: Path) -> None:
    score = linear(
        "pixels", "digits", augment="none", epochs=60, probe=ProbeOptions(batch_size=128, out=tmp_path / "score.json")
    )
    train, test = open_images("digits"), open_images("digits", split="test")
    pixels = [in_memory(images).flatten(1).float().numpy() / 255 for images in (train, test)]
    reference = LogisticRegression(max_iter=2000).fit(pixels[0], train.labels().numpy())
    expected = 100 * reference.score(pixels[1], test.labels().numpy())
    assert score.top1 == pytest.approx(expected, abs=2.5)
    assert json.loads((tmp_path / "score.json").read_text())["top1"] == score.top1


def test_same_seed_same_score() -> None:
    first, again = (linear("pixels", "digits", augment="crop-flip", epochs=1, seed=4) for _ in range(2))
    assert first == again


def test_a_batch_beyond_the_images_is_said() -> None:
    score = linear("pixels", "digits", epochs=1, augment="none", probe=ProbeOptions(batch_size=5000))
    assert "; batch size 1,433, all training images (5,000 requested)" in str(score)
    assert score.settings["batch_size"] == 1433


def test_an_encoder_that_changes_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    restless = LoadedModel(Restless(), 8, torch.device("cpu"))
    monkeypatch.setattr(linear_module, "load_encoder", lambda *_, **__: restless)
    with pytest.raises(RuntimeError, match="frozen encoder changed"):
        linear("pixels", "digits", augment="none", epochs=1)


def test_test_images_of_other_classes_are_refused(tmp_path: Path) -> None:
    manifest = tmp_path / "images.csv"
    picture = tmp_path / "a.png"
    from PIL import Image

    Image.new("RGB", (8, 8)).save(picture)
    manifest.write_text("path,label,split\na.png,cat,train\na.png,dog,train\n")
    other = tmp_path / "other.csv"
    other.write_text("path,label,split\na.png,cat,train\n")
    with pytest.raises(UserError, match="expected some of split 'test'"):
        linear("pixels", str(manifest), epochs=1)
    train = open_images(str(manifest))
    assert train.classes == ["cat", "dog"]


@pytest.mark.parametrize("arguments", [{"epochs": 0}, {"lr": -1.0}])
def test_impossible_settings_are_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(UserError, match="got epochs="):
        linear("pixels", "digits", **arguments)  # type: ignore[arg-type]


def test_images_without_labels_are_refused(tmp_path: Path) -> None:
    from PIL import Image

    for name in "ab":
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    with pytest.raises(UserError, match="expected labels"):
        linear("pixels", str(tmp_path), epochs=1)
