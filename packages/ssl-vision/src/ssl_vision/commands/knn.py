"""`ssl-vision knn`: classify test images by their nearest training images."""

from __future__ import annotations

from contrastive_core.errors import UserError
from ssl_vision.data.dataset import ReadOptions
from ssl_vision.evaluation.features import evaluation_features, labelled_features
from ssl_vision.evaluation.probes import knn_scores
from ssl_vision.evaluation.scores import ProbeOptions, Score, limit_note, plan_score, score_probe
from ssl_vision.models import EncoderOptions
from ssl_vision.models.model_folder import load_encoder


def knn(
    model: str,
    data: str,
    *,
    k: int = 200,
    temperature: float = 0.1,
    probe: ProbeOptions = ProbeOptions(),  # noqa: B008 - frozen
    encoder: EncoderOptions | None = None,
    read: ReadOptions = ReadOptions(),  # noqa: B008
) -> Score:
    """Classify test images by the nearest training images in feature space.

    Args:
        model: Run folder, model folder, ``pixels`` for the images themselves as features, or ``none`` with
            `encoder`.
        data: Image folder, CSV manifest or named data set with labels.
        k: Number of neighbours that vote, at most the number of images; the score states a lower number.
        temperature: Temperature of the vote; lower values give more weight to the nearest neighbours.
        probe: Parts of the data that vote and that are classified, batch size, device, and the file for the scores.
        encoder: Network and its weights, if `model` is ``none``.
        read: Options for reading image files.

    Returns:
        Test accuracies.
    """
    if k < 1 or temperature <= 0:
        raise UserError(f"knn needs k >= 1 and temperature > 0, got k={k} and temperature={temperature}")
    output_files = plan_score(model, "knn", data, probe)
    loaded_model = load_encoder(model, device=probe.device, encoder=encoder)
    bank = labelled_features(
        loaded_model, data, split=probe.train_part, batch_size=probe.batch_size, labels=probe.labels, read=read
    )
    query = evaluation_features(
        loaded_model, data, part=probe.test_part, batch_size=probe.batch_size, classes=bank.classes, read=read
    )
    voting = min(k, len(bank.labels))
    scores = knn_scores(
        query.features,
        bank.features,
        bank.labels,
        num_classes=len(bank.classes),
        k=voting,
        temperature=temperature,
    )
    return score_probe(
        output_files, "knn", scores, query, probe, model=model, data=data,
        settings={"k": voting, "temperature": temperature},
        found=limit_note("k", setting=k, value=voting, what="labelled images"),
    )  # fmt: skip
