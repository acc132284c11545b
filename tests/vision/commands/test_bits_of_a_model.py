"""The bits of 16-bit images and the number of channels pass from a model to all commands that use it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile

from contrastive_core.errors import UserError
from contrastive_core.training import InferenceOptions, RunOptions
from ssl_vision.commands.distill import distill
from ssl_vision.commands.embed import embed
from ssl_vision.commands.evaluate import evaluate
from ssl_vision.commands.export import export
from ssl_vision.commands.few_labels import few_labels
from ssl_vision.commands.knn import knn
from ssl_vision.commands.linear import linear
from ssl_vision.commands.make_splits import make_splits
from ssl_vision.commands.predict import predict
from ssl_vision.commands.pretrain import pretrain
from ssl_vision.commands.transfer import transfer
from ssl_vision.data import measure_statistics, open_images
from ssl_vision.data.dataset import ReadOptions, TrainingReadOptions, UnlabelledReadOptions
from ssl_vision.evaluation.scores import ProbeOptions
from ssl_vision.models import EncoderOptions
from ssl_vision.models.model_folder import load_classifier, load_encoder
from ssl_vision.training.finetuning import finetune
from ssl_vision.training.options import DistillationOptions, FinetuningOptions, OptimizerOptions, PretrainingOptions

CPU = InferenceOptions(device="cpu")
QUIET = RunOptions(threads=1, device="cpu", progress=False)
SGD = OptimizerOptions(name="sgd", lr=0.1, warmup_epochs=0)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of 5 channels with 12 significant bits, of two classes."""
    root = tmp_path_factory.mktemp("scenes")
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 6)):
        for label, name in enumerate(("a", "b")):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                scene = rng.integers(0, 3000 + 1000 * label, (5, 16, 16)).astype(np.uint16)
                tifffile.imwrite(root / split / name / f"{i}.tif", scene, photometric="minisblack")
    return root


def test_all_commands_read_the_images_as_the_model_was_trained(scenes: Path, tmp_path: Path) -> None:
    data = str(scenes)
    model = str(
        pretrain(
            data, tmp_path / "pre", training=PretrainingOptions(epochs=2, batch_size=8, image_size=16), run=QUIET,
            encoder=EncoderOptions(width_multiplier=0.125, image_channels=5), optimizer=SGD,
            read=UnlabelledReadOptions(bits=12),
        )
    )  # fmt: skip
    assert load_encoder(model, device="cpu").bits == 12
    for bits in (0, 12, 16):
        embed(model, data, tmp_path / f"{bits}.npz", inference=CPU, read=ReadOptions(bits))
    features = {bits: np.load(tmp_path / f"{bits}.npz")["features"] for bits in (0, 12, 16)}
    np.testing.assert_array_equal(features[0], features[12])
    assert np.abs(features[0] - features[16]).max() > 1e-3

    longer = pretrain(
        data, tmp_path / "longer", init=model, optimizer=SGD, run=QUIET,
        training=PretrainingOptions(epochs=1, batch_size=8, image_size=16),
    )  # fmt: skip
    assert load_encoder(str(longer), device="cpu").bits == 12

    probe = ProbeOptions(batch_size=16, device="cpu")
    for command in (knn, linear, transfer):
        scores = [command(model, data, probe=probe, read=ReadOptions(bits)).top1 for bits in (0, 12)]
        assert scores[0] == scores[1], command

    tuned = finetune(
        model, data, tmp_path / "tuned", training=FinetuningOptions(epochs=2, batch_size=8), optimizer=SGD, run=QUIET
    )
    assert "bits: 12" in (tmp_path / "tuned" / "config.yaml").read_text()
    few_labels(model, data, tmp_path / "few", methods=("linear",), inference=CPU)
    student = distill(
        str(tuned), data, tmp_path / "student", training=DistillationOptions(epochs=1, batch_size=8), run=QUIET,
        optimizer=SGD,
    )  # fmt: skip
    for classifier in (str(tuned), str(tmp_path / "few" / "linear"), str(student)):
        assert load_classifier(classifier, device="cpu").bits == 12
        for bits in (0, 12):
            predict(
                classifier, data, tmp_path / "p.csv", probabilities=True, read=ReadOptions(bits), inference=CPU,
                overwrite=True,
            )  # fmt: skip
            (tmp_path / "p.csv").rename(tmp_path / f"p{bits}.csv")
        assert (tmp_path / "p0.csv").read_text() == (tmp_path / "p12.csv").read_text()
    evaluate(str(tuned), data, out=tmp_path / "scores", inference=CPU)
    found = np.load(tmp_path / "scores" / f"{scenes.name}-test-predictions.npz")["probabilities"]
    evaluate(str(tuned), data, out=tmp_path / "scores12", inference=CPU, read=ReadOptions(12))
    np.testing.assert_array_equal(
        found, np.load(tmp_path / "scores12" / f"{scenes.name}-test-predictions.npz")["probabilities"]
    )
    export(str(tuned), tmp_path / "model.pt2")
    assert json.loads((tmp_path / "model.pt2.json").read_text())["input"]["bits"] == 12


def test_networks_without_pre_training_are_normalised_by_their_images(scenes: Path, tmp_path: Path) -> None:
    """A student without a named encoder takes the teacher's number of channels."""
    data = str(scenes)
    teacher = finetune(
        "none", data, tmp_path / "teacher", encoder=EncoderOptions(width_multiplier=0.125, image_channels=5),
        training=FinetuningOptions(epochs=1, batch_size=8, image_size=16), optimizer=SGD, run=QUIET,
        read=TrainingReadOptions(bits=12),
    )  # fmt: skip
    mean, std = measure_statistics(open_images(scenes, channels=5, read=ReadOptions(bits=12)))
    encoder = load_classifier(str(teacher), device="cpu").model.encoder
    np.testing.assert_allclose(encoder.mean.flatten(), mean, rtol=1e-5)
    np.testing.assert_allclose(encoder.std.flatten(), std, rtol=1e-5)
    training = DistillationOptions(epochs=1, batch_size=8)
    student = distill(str(teacher), data, tmp_path / "student", training=training, optimizer=SGD, run=QUIET)
    found = load_classifier(str(student), device="cpu").model.encoder
    np.testing.assert_allclose(found.mean.flatten(), mean, rtol=1e-5)
    with pytest.raises(UserError, match=r"student takes images with 3 channels, the teacher with 5; .*channels 5"):
        distill(
            str(teacher), data, tmp_path / "other", training=training, optimizer=SGD, run=QUIET,
            encoder=EncoderOptions(width_multiplier=0.125),
        )  # fmt: skip


def test_label_files_need_no_number_of_channels(scenes: Path, tmp_path: Path) -> None:
    written = make_splits(str(scenes), tmp_path)
    assert not written.unreadable
