"""`ssl-vision linear`: train and test a linear classifier on frozen features."""

from __future__ import annotations

from typing import Literal

import torch

from contrastive_core.errors import UserError
from contrastive_core.rng import derive
from contrastive_core.training.model_file import module_hash
from ssl_vision.data.dataset import ReadOptions
from ssl_vision.evaluation.features import evaluation_features, extract, labelled_images
from ssl_vision.evaluation.probes import Augmented, Cached, Source, fit_linear
from ssl_vision.evaluation.scores import ProbeOptions, Score, limit_note, plan_score, score_probe
from ssl_vision.labels.subsets import require_two_classes
from ssl_vision.models import EncoderOptions
from ssl_vision.models.model_folder import load_encoder


def linear(
    model: str,
    data: str,
    *,
    epochs: int = 90,
    lr: float = 0.1,
    augment: Literal["crop-flip", "none"] = "crop-flip",
    seed: int = 0,
    probe: ProbeOptions = ProbeOptions(),  # noqa: B008 - frozen
    encoder: EncoderOptions | None = None,
    read: ReadOptions = ReadOptions(),  # noqa: B008
) -> Score:
    """Train a linear classifier on frozen features and report its test accuracy after the last epoch.

    SimCLR, Appendix B.6: Nesterov momentum 0.9, learning rate ``lr * batch_size / 256`` with cosine decay, no warm-up,
    no weight decay, zero-initialised weights, random crop and flip. The encoder's batch norm stays in inference mode;
    a hash verifies that it does not change.

    Args:
        model: Run folder, model folder, ``pixels`` for the images themselves as features, or ``none`` with
            `encoder`.
        data: Image folder, CSV manifest or named data set with labels.
        epochs: Number of passes over the training images.
        lr: Learning rate per 256 images.
        augment: Augmentation: ``crop-flip`` is that of the papers and runs the encoder for every image of every epoch;
            ``none`` computes the features once, which is about ``epochs`` times faster and costs a little accuracy.
        seed: Seed of all random draws: of the order of images and of the crops.
        probe: Data to learn from and to test on, batch size, device, and the file for the scores.
        encoder: Network and its weights, if `model` is ``none``.
        read: Options for reading image files.

    Returns:
        Test accuracies.
    """
    if epochs < 1 or lr <= 0:
        raise UserError(f"linear needs epochs >= 1 and lr > 0, got epochs={epochs} and lr={lr}")
    output_files = plan_score(model, "linear", data, probe)
    loaded_model = load_encoder(model, device=probe.device, encoder=encoder)
    before = module_hash(loaded_model.encoder)
    read = read.for_model(loaded_model.bits)
    train = labelled_images(
        data, split=probe.train_part, labels=probe.labels, channels=loaded_model.channels, read=read
    )
    require_two_classes(train, labels=probe.labels)
    test = evaluation_features(
        loaded_model, data, part=probe.test_part, batch_size=probe.batch_size, classes=train.classes, read=read
    )
    source: Source
    if augment == "none":
        source = Cached(extract(loaded_model, train, batch_size=probe.batch_size))
    else:
        source = Augmented(loaded_model, train, seed=derive(seed, "linear"))
    batch = min(probe.batch_size, len(train))
    classifier = fit_linear(
        source, train.labels().to(loaded_model.device), len(train.classes), features=test.features.shape[1],
        epochs=epochs, batch_size=batch, lr=lr, seed=seed,
    )  # fmt: skip
    with torch.no_grad():
        scores = classifier(test.features)
    if module_hash(loaded_model.encoder) != before:
        raise RuntimeError("the frozen encoder changed during linear evaluation; its scores are invalid")
    return score_probe(
        output_files, "linear", scores, test, probe, model=model, data=data,
        settings={"epochs": epochs, "batch_size": batch, "lr": lr, "augment": augment, "seed": seed},
        found=limit_note("batch size", setting=probe.batch_size, value=batch, what="training images"),
    )  # fmt: skip
