"""`ssl-vision knn`: classify test images by their nearest training images."""

from __future__ import annotations

from pathlib import Path

from contrastive_core.errors import UserError
from ssl_vision.data import input_files
from ssl_vision.data.decode import ReadOptions
from ssl_vision.evaluation.features import labelled_features
from ssl_vision.evaluation.probes import knn_scores
from ssl_vision.evaluation.scores import Score, accuracy, capped, plan_score, record_score, training_images
from ssl_vision.models import EncoderOptions
from ssl_vision.models.checkpoint import load_encoder


def knn(
    model: str,
    data: str,
    *,
    train_part: str = "train",
    test_part: str = "test",
    k: int = 200,
    temperature: float = 0.1,
    labels: Path | None = None,
    batch_size: int = 512,
    device: str = "auto",
    out: Path | None = None,
    encoder: EncoderOptions | None = None,
    read: ReadOptions = ReadOptions(),  # noqa: B008 - frozen
    overwrite: bool = False,
) -> Score:
    """Classify test images by the nearest training images in feature space.

    Args:
        model: Run folder, model folder, ``pixels`` for the images themselves as features, or ``none`` with
            `encoder`.
        data: Image folder, CSV manifest or named data set with labels.
        train_part: Part of the data that votes.
        test_part: Part of the data that is classified.
        k: Number of neighbours that vote; at most as many as there are images, which the score then says.
        temperature: Temperature of the vote; the lower, the more the nearest count.
        labels: Label file of the training images that vote; by default all.
        batch_size: Images per forward pass.
        device: Device to run on: auto, cpu, cuda or mps.
        out: JSON file for the scores; by default ``evaluation/knn.json`` in the model's folder.
        encoder: Network and its weights, if `model` is ``none``.
        read: How image files are read.
        overwrite: Whether to replace files that this command did not write.

    Returns:
        The accuracies.
    """
    if k < 1 or temperature <= 0:
        raise UserError(f"knn needs k >= 1 and temperature > 0, got k={k} and temperature={temperature}")
    planned = plan_score(model, "knn", out, inputs=input_files(data, labels), overwrite=overwrite)
    loaded = load_encoder(model, device=device, encoder=encoder)
    bank = labelled_features(loaded, data, split=train_part, batch_size=batch_size, labels=labels, read=read)
    query = labelled_features(loaded, data, split=test_part, batch_size=batch_size, classes=bank.classes, read=read)
    voting = min(k, len(bank.labels))
    scores = knn_scores(
        query.features,
        bank.features,
        bank.labels,
        num_classes=len(bank.classes),
        k=voting,
        temperature=temperature,
    )
    settings = {
        "k": voting, "temperature": temperature, **training_images(train_part, labels), "test_part": query.split,
    }  # fmt: skip
    score = accuracy(
        "knn", scores, query.labels, model=model, encoder_hash=query.encoder_hash, data=data, settings=settings,
        found=capped("k", asked=k, used=voting, what="labelled images"),
    )  # fmt: skip
    with planned:
        record_score(score, out)
    return score
