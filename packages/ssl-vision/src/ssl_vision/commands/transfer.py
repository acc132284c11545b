"""`ssl-vision transfer`: fit the best regularised linear classifier to the features of another data set."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from contrastive_core.errors import UserError
from contrastive_core.metrics import confusion_matrix, per_class_accuracy, top_k_accuracy
from contrastive_core.rng import derive
from ssl_vision.data import list_splits, resolve_split
from ssl_vision.data.dataset import ReadOptions
from ssl_vision.evaluation.features import LabelledFeatures, evaluation_features, labelled_features
from ssl_vision.evaluation.probes import LogisticFit, fit_logistic
from ssl_vision.evaluation.scores import ProbeOptions, Score, plan_score, score_probe
from ssl_vision.labels.choose import hold_out
from ssl_vision.models import EncoderOptions
from ssl_vision.models.model_folder import load_encoder

PENALTIES = tuple(np.logspace(5, -6, 45).tolist())
Metric = Literal["top1", "mean_per_class"]


def transfer(
    model: str,
    data: str,
    *,
    val_part: str | None = None,
    val_share: float = 0.2,
    metric: Metric = "top1",
    seed: int = 0,
    probe: ProbeOptions = ProbeOptions(),  # noqa: B008 - frozen
    encoder: EncoderOptions | None = None,
    read: ReadOptions = ReadOptions(),  # noqa: B008
) -> Score:
    """Evaluate a model on a data set by l2-regularised logistic regression on its features.

    SimCLR, Appendix B.8: no augmentation, L-BFGS, l2 chosen from 45 values between 1e-6 and 1e5, evenly spaced on a
    logarithmic scale, by accuracy on a validation split; the largest of equally good ones is used. The classifier is
    then fitted again on training and validation images together, and tested once. We take l2 to multiply half the sum
    of squared weights, added to the cross-entropy summed over images, because the paper does not specify it.

    Args:
        model: Run folder, model folder, ``pixels`` for the images themselves as features, or ``none`` with
            `encoder`.
        data: Image folder, CSV manifest or named data set with labels.
        val_part: Part of the data to choose the penalty on; by default ``val``, unless it is the test part, otherwise
            `val_share` of the training images of every class, drawn at random.
        val_share: Share of the training images to choose the penalty on; see `val_part`.
        metric: Accuracy by which to choose the penalty; the paper uses ``mean_per_class`` for Aircraft, Pets,
            Caltech-101 and Flowers.
        seed: Seed of all random draws: of the validation images.
        probe: Data to train on, from which validation images may be drawn, and to test on; batch size, device, and the
            file for the scores.
        encoder: Network and its weights, if `model` is ``none``.
        read: Options for reading image files.

    Returns:
        Test accuracies.
    """
    output_files = plan_score(model, "transfer", data, probe)
    loaded_model = load_encoder(model, device=probe.device, encoder=encoder)

    def features(split: str, *, classes: list[str] | None = None, labels: Path | None = None) -> LabelledFeatures:
        return labelled_features(
            loaded_model, data, split=split, batch_size=probe.batch_size, classes=classes, labels=labels, read=read,
        )  # fmt: skip

    val_part = val_part or _own_validation(data, probe)
    if val_part and resolve_split(data, val_part) in _probe_splits(data, probe):
        raise UserError(
            f"transfer needs separate images to choose the penalty l2; val_part {val_part!r} is also used elsewhere"
        )
    train = features(probe.train_part, labels=probe.labels)
    test = evaluation_features(
        loaded_model, data, part=probe.test_part, batch_size=probe.batch_size, classes=train.classes, read=read
    )
    if val_part is None:
        stay, held_out = hold_out(train.labels, train.classes, val_share, seed=derive(seed, "validation"))
        x, y, val_x, val_y = train.features[stay], train.labels[stay], train.features[held_out], train.labels[held_out]
    else:
        val = features(val_part, classes=train.classes)
        x, y, val_x, val_y = train.features, train.labels, val.features, val.labels
    number = len(train.classes)
    best, value, stuck = _choose(fit_logistic(x, y, number, penalties=PENALTIES), val_x, val_y, metric=metric)
    both_x, both_y = torch.cat([x, val_x]), torch.cat([y, val_y])
    (final,) = fit_logistic(both_x, both_y, number, penalties=[best])
    with torch.no_grad():
        scores = final.classifier(test.features)
    val_source = f"{val_share:g} of {probe.train_part}, seed {seed}"
    results: dict[str, object] = {
        "l2": best,
        f"{metric.replace('_', ' ')} in validation": value,
        "validation images": len(val_y),
    }
    if stuck or not final.converged:
        results["fits that did not converge"] = stuck + (not final.converged)
    return score_probe(
        output_files, "transfer", scores, test, probe, model=model, data=data,
        settings={"val_part": val_part or val_source, "l2 chosen by": metric}, found=results,
    )  # fmt: skip


def _own_validation(data: str, probe: ProbeOptions) -> str | None:
    """Return the split `val`, if it exists and is used neither for training nor for testing."""
    return "val" if "val" in list_splits(data) and "val" not in _probe_splits(data, probe) else None


def _probe_splits(data: str, probe: ProbeOptions) -> set[str]:
    return {resolve_split(data, probe.train_part), resolve_split(data, probe.test_part)}


@torch.no_grad()
def _choose(
    fits: Iterator[LogisticFit], features: Tensor, labels: Tensor, *, metric: Metric
) -> tuple[float, float, int]:
    """Return the best penalty on these images, its accuracy, and the number of fits that did not converge."""
    best, best_value, stuck = 0.0, -1.0, 0
    labels = labels.cpu()
    for fit in fits:
        scores = fit.classifier(features).cpu()
        if metric == "top1":
            value = top_k_accuracy(scores, labels, 1)
        else:
            confusion = confusion_matrix(scores.argmax(dim=1), labels, scores.shape[1])
            value = per_class_accuracy(confusion).nanmean().item()
        if value > best_value:
            best, best_value = fit.l2, value
        stuck += not fit.converged
    return best, best_value, stuck
