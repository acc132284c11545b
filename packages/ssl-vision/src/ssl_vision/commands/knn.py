"""`ssl-vision knn`: classify test images by their nearest training images."""

from __future__ import annotations

from pathlib import Path

from contrastive_core.errors import UserError
from ssl_vision.evaluation.features import labelled_features
from ssl_vision.evaluation.probes import knn_scores
from ssl_vision.evaluation.scores import Score, accuracy, record_score, training_images


def knn(
    model: str,
    data: str,
    *,
    train_split: str = "train",
    test_split: str = "test",
    k: int = 200,
    temperature: float = 0.1,
    labels: Path | None = None,
    batch_size: int = 512,
    device: str = "auto",
    out: Path | None = None,
) -> Score:
    """Evaluate a model without training anything: classify test images by their nearest training images.

    Args:
        model: a run folder, a model folder, or ``pixels`` for the images themselves as features.
        data: an image folder, CSV manifest or named data set with labels.
        train_split: the images that vote.
        test_split: the images that are classified.
        k: how many neighbours vote.
        temperature: of the vote; smaller trusts the nearest more.
        labels: a label file, such as ``ssl-vision make-splits`` writes: only the training images in it vote.
        batch_size: images per forward pass.
        device: auto, cpu, cuda or mps.
        out: file for the scores as JSON; by default ``evaluation/knn.json`` in the model's folder.

    Returns:
        The accuracies.
    """
    if k < 1 or temperature <= 0:
        raise UserError(f"knn needs k >= 1 and temperature > 0, got k={k} and temperature={temperature}")
    bank = labelled_features(model, data, split=train_split, batch_size=batch_size, device=device, labels=labels)
    query = labelled_features(model, data, split=test_split, batch_size=batch_size, device=device, classes=bank.classes)
    scores = knn_scores(
        query.features,
        bank.features,
        bank.labels,
        num_classes=len(bank.classes),
        k=k,
        temperature=temperature,
    )
    settings = {
        "k": k, "temperature": temperature, **training_images(train_split, labels), "test_split": query.split,
    }  # fmt: skip
    score = accuracy(
        "knn", scores, query.labels, model=model, encoder_hash=query.encoder_hash, data=data, settings=settings
    )
    record_score(score, out)
    return score
