"""The sections of the report of a classifier: what it learnt from, and how good it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from contrastive_core.app.report import page
from contrastive_core.app.report.figures import RATE, Panel, confusion_figure, to_inline_svg, training_figure
from ssl_vision.classifier_score import ClassifierScore
from ssl_vision.reporting.evaluations import Evaluated
from ssl_vision.reporting.mistakes import mistakes
from ssl_vision.reporting.reliability import reliability_figure
from ssl_vision.reporting.run_folder import RunFolder, RunSettings, data_name
from ssl_vision.reporting.sections import nothing_logged, opening

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
    """What was run, in a few words."""
    data = data_name(settings.data)
    if settings.kind == "distill":
        return f"Distillation into {settings.encoder} on {data}"
    scratch = settings.config.get("model") == "none"
    return f"{'Training' if scratch else 'Fine-tuning'} of {settings.encoder} on {data}" + (
        " from scratch" if scratch else ""
    )


def header(run: RunFolder, evaluations: Sequence[Evaluated], *, labelled: int | None) -> str:
    """The title, what was done in two sentences, and the numbers a reader wants first."""
    s = run.settings
    text = f"{_what_was_done(s, labelled)} {s.epochs:,} epochs in batches of {s.batch_size:,}, seed {s.seed}."
    numbers = {}
    for evaluated in evaluations[:2]:
        numbers[f"accuracy, {evaluated.name}"] = f"{evaluated.score.top1:.1f} %"
    if evaluations:
        numbers["calibration error"] = f"{100 * evaluations[0].score.calibration.ece:.1f} %"
    if labelled:
        numbers["labelled images" if s.kind == "finetune" else "labels behind it"] = f"{labelled:,}"
    return opening(run, title(s), text, numbers)


def training(run: RunFolder) -> str:
    """Curves of what was logged."""
    if not run.records:
        return nothing_logged()
    figure = training_figure(run.records, PANELS[run.settings.kind])
    batches = {
        "finetune": "Training accuracy is that of single batches, cropped and flipped, while the network learns.",
        "distill": "Agreement is the share of a batch's images whose most likely class is the teacher's.",
    }
    note = (
        f"{batches[run.settings.kind]} Where a line is faint, it is what was logged, and the strong one its running "
        "mean."
    )
    return page.section(
        "Training",
        page.figure(to_inline_svg(figure, name="training", label="Loss, accuracy and learning rate by epoch")),
        page.paragraph(note, kind="note"),
    )


def evaluation(
    run: RunFolder, evaluations: Sequence[Evaluated], *, model_hash: str | None, data: str | None, pictures: int
) -> str:
    """Numbers of every evaluation, then confusion, classes, calibration and mistakes of the first.

    Args:
        run: whose report it is.
        evaluations: that were found.
        model_hash: of the classifier that is in the folder now.
        data: where the images lie by now, if elsewhere.
        pictures: how many mistakes to show.
    """
    if not evaluations:
        return page.section(
            "Evaluation",
            page.paragraph(
                f"This classifier has not been evaluated. `ssl-vision evaluate {run.path} DATA` does it on labelled "
                "data; a report written after it shows accuracies, confusion, calibration and mistakes."
            ),
        )
    first = evaluations[0]
    parts = [page.figure(_numbers(evaluations))]
    if model_hash and any(e.score.model_hash != model_hash for e in evaluations):
        stale = ", ".join(e.name for e in evaluations if e.score.model_hash != model_hash)
        parts.append(
            page.paragraph(f"Of another model than the one in the folder now: {stale}. Evaluate again.", kind="note")
        )
    score = first.score
    confusion = to_inline_svg(
        confusion_figure(score.confusion, score.classes), name="confusion", label="Confusion of classes"
    )
    reliability = to_inline_svg(
        reliability_figure(score.calibration), name="reliability", label="Accuracy by confidence"
    )
    parts += [
        f'<div class="beside">{page.figure(confusion)}{page.figure(reliability)}</div>',
        page.paragraph(
            f"{first.name}. Left, images of each class (row) by what they were taken for (column): blue is right, "
            "orange wrong. Right, whether confidence means what it says: points on the dashed line do, points beneath "
            f"it are sure too often. The calibration error is the mean distance to the line over "
            f"{len(score.calibration.bins)} bins of equal width, weighted by images.",
            kind="note",
        ),
        *_classes(score),
        *mistakes(first, data=data, count=pictures),
    ]
    return page.section("Evaluation", *parts)


def _what_was_done(s: RunSettings, labelled: int | None) -> str:
    which = "all labels" if s.labels is None else f"the labels in {Path(s.labels).name}"
    count = f"{labelled:,} images" if labelled else "images"
    if s.kind == "distill":
        also = "" if s.config.get("alpha", 1.0) == 1 else f" and {count} with {which}"
        return (
            f"A network that learns to answer as the teacher in {s.config.get('teacher')} does, from images without "
            f"labels{also}."
        )
    if s.config.get("model") == "none":
        return f"A classifier trained from scratch on {count} with {which}."
    kept = int(s.config.get("from_layer", 0))
    layers = {0: "", 1: " and the first layer of its projection head"}.get(
        kept, f" and the first {kept} layers of its projection head"
    )
    return (
        f"A classifier on the network in {s.config.get('model')}{layers}, all of it trained further on {count} with "
        f"{which}."
    )


def _numbers(evaluations: Sequence[Evaluated]) -> str:
    head = ["images", "number", "top-1", "top-5", "mean per class", "−log p", "confidence", "calibration error"]
    rows = []
    for evaluated in evaluations:
        s = evaluated.score
        rows.append([
            evaluated.name, f"{s.images:,}", f"{s.top1:.1f} %", "–" if s.top5 is None else f"{s.top5:.1f} %",
            f"{s.mean_per_class:.1f} %", f"{s.nll:.3f}", f"{100 * s.calibration.confidence:.1f} %",
            f"{100 * s.calibration.ece:.1f} %",
        ])  # fmt: skip
    return page.table(head, rows, kind="numbers")


def _classes(score: ClassifierScore) -> list[str]:
    """A table of the classes, the weakest first; of many classes the weakest alone."""
    taken: dict[str, tuple[str, int]] = {}
    for true, predicted, count in score.mistakes():
        taken.setdefault(true, (predicted, count))
    present = sorted((c for c in score.per_class if c.images), key=lambda c: (c.right / c.images, c.name))
    rows = [
        [
            c.name, f"{c.images:,}", f"{100 * c.right / c.images:.1f} %",
            f"{taken[c.name][0]} ({taken[c.name][1]:,})" if c.name in taken else "–",
        ]
        for c in present[:_LISTED]
    ]  # fmt: skip
    more = f", the weakest {_LISTED} of {len(present)}" if len(present) > _LISTED else ", the weakest first"
    return [
        f"<h3>Classes{more}</h3>",
        page.figure(page.table(["class", "images", "right", "most often taken for"], rows, kind="numbers")),
    ]
