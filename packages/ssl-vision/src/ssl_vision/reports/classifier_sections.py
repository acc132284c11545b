"""Sections of a classifier's report: training, evaluation, most confident errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from shlex import quote

import numpy as np

from contrastive_core.app.report import page
from contrastive_core.app.report.figures import (
    RATE,
    Panel,
    confusion_figure,
    running_mean_note,
    to_inline_svg,
    training_curves,
)
from contrastive_core.errors import UserError
from contrastive_core.text import decimal
from ssl_vision.data import ImageSet, open_images
from ssl_vision.evaluation.predictions import Predictions
from ssl_vision.evaluation.scores import ClassifierScore
from ssl_vision.reports.figures import reliability_figure
from ssl_vision.reports.run_folder import Evaluated, RunFolder, RunSettings, data_name
from ssl_vision.reports.sections import nothing_logged, opening
from ssl_vision.reports.sheets import Picture


@dataclass(frozen=True)
class Mistake:
    """A misclassified image.

    Attributes:
        index: Index of the image.
        true: True class.
        predicted: Class of largest probability.
        confidence: That probability.
        true_probability: Probability of the true class.
    """

    index: int
    true: str
    predicted: str
    confidence: float
    true_probability: float


def most_confident(predictions: Predictions, count: int) -> list[Mistake]:
    """Select the misclassified images of largest confidence, in decreasing order; ties in the order of the set."""
    prediction, confidences = predictions.predicted, predictions.confidences
    indices = np.flatnonzero(prediction != predictions.labels)
    ranked = indices[np.argsort(-confidences[indices], kind="stable")][:count]
    return [
        Mistake(
            index=int(i),
            true=str(predictions.classes[predictions.labels[i]]),
            predicted=str(predictions.classes[prediction[i]]),
            confidence=float(confidences[i]),
            true_probability=float(predictions.probabilities[i, predictions.labels[i]]),
        )
        for i in ranked
    ]


def mistakes(evaluated: Evaluated, *, data: str | None, count: int) -> list[str]:
    """Show the most confident mistakes; `data` is the location of the images, if they have moved."""
    title = f"<h3>{escape('Most confident mistakes')}</h3>"
    predictions = evaluated.predictions()
    if predictions is None:
        return [title, page.paragraph("The predictions were removed; evaluate again to see the mistakes.")]
    label = evaluated.score.label
    selection = [
        replace(m, true=label(m.true), predicted=label(m.predicted)) for m in most_confident(predictions, count)
    ]
    if not selection:
        return [title, page.paragraph("None: all images are classified correctly.")]
    try:
        images = open_images(data or evaluated.score.data, split=evaluated.score.split)
        _check(images, predictions, selection)
        pictures = [Picture(images.read(m.index), images.path(m.index), m.true) for m in selection]
    except UserError as error:
        text = (
            f"The images could not be opened ({error}). Give their new location with `ssl-vision report --data DATA`."
        )
        return [title, page.paragraph(text)]
    num_mistakes = int((predictions.predicted != predictions.labels).sum())
    text = (
        f"The most confident of {num_mistakes:,} mistakes. Below each image: its class and the probability of that "
        "class, then the predicted class and its probability. Wrong labels and ambiguous images often show up here."
    )
    cells = "".join(f"<div>{_cell(*pair)}</div>" for pair in zip(pictures, selection, strict=True))
    return [title, page.paragraph(text), page.figure(f'<div class="mistakes sheet">{cells}</div>')]


def _cell(picture: Picture, mistake: Mistake) -> str:
    return (
        page.image(picture.pixels, label=f"{picture.path}, {mistake.true} predicted as {mistake.predicted}")
        + f'<span class="same">{escape(mistake.true)}</span> {_percent(mistake.true_probability)}<br>'
        + f'<span class="other">{escape(mistake.predicted)}</span> {_percent(mistake.confidence)}'
    )


def _percent(probability: float) -> str:
    # A mistake must not be shown as certain if it is not.
    return f"{100 * min(probability, 0.999):.1f} %" if probability < 0.9995 else "> 99.9 %"


def _check(images: ImageSet, predictions: Predictions, selection: Sequence[Mistake]) -> None:
    """Check that the images are those of the predictions."""
    new_paths = [images.path(m.index) if m.index < len(images) else "" for m in selection]
    old_paths = [str(predictions.paths[m.index]) for m in selection]
    endings = [(new.rpartition("/")[2], old.rpartition("/")[2]) for new, old in zip(new_paths, old_paths, strict=True)]
    if len(images) != len(predictions.labels) or any(new != old for new, old in endings):
        raise UserError(f"{images.name}: its images are not those that were evaluated; evaluate again")


_LISTED = 30

PANELS = {
    "finetune": (
        Panel("Loss", {}),
        Panel("Accuracy", {"accuracy": "training batch", "validation_accuracy": "validation"}, share=True),
        RATE,
    ),
    "distill": (
        Panel("Loss", {"distillation": "distillation", "cross_entropy": "labels"}),
        Panel(
            "Agreement and accuracy",
            {"agreement": "agreement with the teacher", "validation_accuracy": "validation accuracy"},
            share=True,
            either=True,
        ),
        RATE,
    ),
}


def title(settings: RunSettings) -> str:
    """Return the title of the report."""
    data = data_name(settings.data)
    if settings.kind == "distill":
        return f"Distillation into {settings.encoder} on {data}"
    scratch = settings.config.get("init") == "none"
    return f"{'Training' if scratch else 'Fine-tuning'} of {settings.encoder} on {data}" + (
        " from scratch" if scratch else ""
    )


def header(run: RunFolder, evaluations: Sequence[Evaluated], *, num_labels: int | None) -> str:
    """Return the title, a summary in two sentences, and the headline numbers."""
    s = run.settings
    # A batch is never larger than the set.
    batch = min(s.batch_size, num_labels) if num_labels and s.kind == "finetune" else s.batch_size
    text = f"{_what_was_done(s, num_labels)} {s.epochs:,} epochs in batches of {batch:,}, seed {s.seed}."
    numbers = {}
    for evaluated in evaluations[:2]:
        numbers[f"accuracy, {evaluated.name}"] = f"{evaluated.score.top1:.1f} %"
    warning = ""
    if evaluations:
        warning = evaluations[0].score.warning
        numbers["chance"] = f"{100 / len([c for c in evaluations[0].score.per_class if c.images]):.3g} %"
        numbers["calibration error"] = f"{100 * evaluations[0].score.calibration.ece:.1f} %"
    if num_labels:
        numbers["labelled images" if s.kind == "finetune" else "labels of the teacher"] = f"{num_labels:,}"
    return opening(run, title(s), text, numbers, warning=warning)


def training(run: RunFolder, *, classes: int | None) -> str:
    """Return the curves of the logged values; `classes` is the number of classes, if known."""
    if not run.records:
        return nothing_logged()
    panels: tuple[Panel, ...] = PANELS[run.settings.kind]
    if classes and run.settings.kind == "finetune":
        panels = tuple(replace(p, chance=1 / classes) if p.title == "Accuracy" else p for p in panels)
    batches = {
        "finetune": "Training accuracy is measured on single batches of cropped and flipped images during training."
        + (" Dashed: guessing." if classes else ""),
        "distill": "Agreement is the share of a batch's images whose most likely class is the teacher's.",
    }
    note = f"{batches[run.settings.kind]} {running_mean_note(run.records, panels)}".rstrip()
    return page.section(
        "Training",
        training_curves(run.records, panels, name="training"),
        page.paragraph(note, kind="note"),
    )


def evaluation(
    run: RunFolder, evaluations: Sequence[Evaluated], *, model_hash: str | None, data: str | None, pictures: int
) -> str:
    """Return the numbers of every evaluation, then confusion matrix, classes, calibration and errors of the first.

    Args:
        run: Run of the report.
        evaluations: Evaluations in its folder.
        model_hash: Hash of the classifier in the folder.
        data: New location of the images, if they have moved.
        pictures: Number of misclassified images to show.
    """
    if not evaluations:
        return page.section(
            "Evaluation",
            page.paragraph(
                f"This classifier has not been evaluated. Run `ssl-vision evaluate {quote(str(run.path))} DATA` on "
                "labelled data, then write the report again to see accuracies, confusion matrix, calibration and "
                "mistakes."
            ),
        )
    first = evaluations[0]
    parts = [_numbers(evaluations)]
    if model_hash and any(e.score.model_hash != model_hash for e in evaluations):
        stale = ", ".join(e.name for e in evaluations if e.score.model_hash != model_hash)
        parts.append(
            page.paragraph(
                f"Computed with another model than the one in the folder: {stale}. Evaluate again.", kind="note"
            )
        )
    score = first.score
    confusion = to_inline_svg(
        confusion_figure(score.confusion, [score.label(name) for name in score.classes]),
        name="confusion",
        label="Confusion of classes",
    )
    reliability = to_inline_svg(
        reliability_figure(score.calibration), name="reliability", label="Accuracy by confidence"
    )
    parts += [
        f'<div class="beside">{page.figure(confusion)}{page.figure(reliability)}</div>',
        page.paragraph(
            f"{first.name}. Confusion matrix: true classes in rows, predicted classes in columns; blue is "
            "correct, orange wrong. Reliability diagram: points on the dashed line are calibrated, points "
            f"below it are overconfident. The calibration error is the mean distance to the line over "
            f"{len(score.calibration.bins)} bins of equal width, weighted by images.",
            kind="note",
        ),
        *_classes(score),
        *mistakes(first, data=data, count=pictures),
    ]
    return page.section("Evaluation", *parts)


def _what_was_done(s: RunSettings, num_labels: int | None) -> str:
    which = "all labels" if s.labels is None else f"the labels in {Path(s.labels).name}"
    count = f"{num_labels:,} images" if num_labels else "images"
    if s.kind == "distill":
        supplement = "" if s.config.get("alpha", 1.0) == 1 else f" and {count} with {which}"
        return (
            f"A network distilled from the teacher in {s.config.get('teacher')}, on images without labels{supplement}."
        )
    if s.config.get("init") == "none":
        return f"A classifier trained from scratch on {count} with {which}."
    num_layers = int(s.config.get("from_layer", 0))
    layers = {0: "", 1: " and the first layer of its projection head"}.get(
        num_layers, f" and the first {num_layers} layers of its projection head"
    )
    return f"A classifier fine-tuned from the network in {s.config.get('init')}{layers}, on {count} with {which}."


def _numbers(evaluations: Sequence[Evaluated]) -> str:
    head = ["images", "number", "top-1", "top-5", "mean per class", "−log p", "confidence", "calibration error"]
    rows = []
    for evaluated in evaluations:
        s = evaluated.score
        rows.append([
            evaluated.name, f"{s.images:,}", f"{s.top1:.1f} %", "–" if s.top5 is None else f"{s.top5:.1f} %",
            f"{s.mean_per_class:.1f} %", decimal(s.nll), f"{100 * s.calibration.confidence:.1f} %",
            f"{100 * s.calibration.ece:.1f} %",
        ])  # fmt: skip
    return page.table(head, rows, kind="numbers")


def _classes(score: ClassifierScore) -> list[str]:
    """Return a table of the classes, the weakest first; only the weakest if there are many."""
    confusions: dict[str, tuple[str, int]] = {}
    for true, prediction, count in score.mistakes():
        confusions.setdefault(true, (prediction, count))
    tested_classes = sorted((c for c in score.per_class if c.images), key=lambda c: (c.right / c.images, c.name))
    rows = [
        [
            score.label(c.name), f"{c.images:,}", f"{100 * c.right / c.images:.1f} %",
            f"{score.label(confusions[c.name][0])} ({confusions[c.name][1]:,})" if c.name in confusions else "–",
        ]
        for c in tested_classes[:_LISTED]
    ]  # fmt: skip
    more = (
        f", the weakest {_LISTED} of {len(tested_classes)}" if len(tested_classes) > _LISTED else ", the weakest first"
    )
    return [
        f"<h3>Classes{more}</h3>",
        page.table(["class", "images", "accuracy", "most often predicted as"], rows, kind="numbers"),
    ]
