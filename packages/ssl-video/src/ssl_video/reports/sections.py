"""Sections of the report of a training run."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from contrastive_core.app.report import page
from contrastive_core.app.report.figures import RATE, Panel, confusion_figure, to_inline_svg, training_curves
from contrastive_core.app.report.run_record import RunRecord
from contrastive_core.text import duration, several
from contrastive_core.training.documents import read_json, reading
from ssl_video.evaluation import FORMAT

_METHODS = {"mvpl": "Multiview pseudo-labelling", "fixmatch": "FixMatch", "supervised": "Labels alone"}
VIEW_NAMES = {
    "rgb": "frames",
    "flow": "optical flow",
    "tg": "temporal gradient",
    "audio": "sound",
    "fused": "together",
}
"""Names of the views in reports."""


def title(config: Mapping[str, Any]) -> str:
    """Return method, network and data as a short title."""
    method = _METHODS.get(str(config.get("method")), "Training")
    return f"{method}: {config['network']['name']} on {Path(str(config['data'])).name}"


def header(record: RunRecord, *, card: Mapping[str, Any] | None, evaluations: Sequence[Mapping[str, Any]]) -> str:
    """Return the title, a summary and the headline numbers."""
    config = record.config
    views = ", ".join(VIEW_NAMES.get(view, view) for view in config["inputs"]["views"])
    data_text = "a few labelled videos" if card is None else f"{card['labelled']} labelled videos"
    if config["method"] != "supervised":
        others = "others" if card is None else f"{max(0, len(card['learned_from']) - card['labelled']):,} others"
        data_text += f" and {others} whose labels were not used"
    size = config["inputs"]["image_size"]
    text = (
        f"An action recognition network trained on {data_text}. Views: {views}; clips of "
        f"{config['clip']['frames']} frames, {size} × {size} pixels; seed "
        f"{config['run']['seed']}."
    )
    numbers: dict[str, str] = {}
    for result in evaluations:
        head = result["views"][result["headline"]]
        name = VIEW_NAMES.get(result["headline"], result["headline"])
        numbers[f"top-1, {result['part']}, {name}"] = f"{head['top1']:.1f} %"
        if "fused" in result["views"]:
            numbers[f"top-1, {result['part']}, all views"] = f"{result['views']['fused']['top1']:.1f} %"
    if evaluations:
        numbers["chance"] = f"{100 / sum(share is not None for share in evaluations[0]['per_class']):.3g} %"
    if record.records:
        last = record.records[-1]
        numbers["final loss"] = f"{last['loss']:.3f}" if "loss" in last else "?"
        if "coverage" in last:
            numbers["pseudo-labels used"] = f"{100 * last['coverage']:.0f} %"
    if record.seconds:
        numbers["training time"] = duration(record.seconds)
    if card is None:
        step_count = int(record.records[-1]["step"]) + 1 if record.records else 0
        text += f" Training has not ended: {step_count} of {config['training']['steps']} steps are done."
    return f"<header>\n<h1>{escape(title(config))}</h1>\n{page.paragraph(text)}\n{page.facts(numbers)}\n</header>"


def training(record: RunRecord) -> str:
    """Draw the curves of losses, learning rate and pseudo-labels.

    Panels without recorded numbers are omitted.
    """
    views = {f"pseudo_accuracy_{view}": VIEW_NAMES.get(view, view) for view in record.config["inputs"]["views"]}
    names = {name for line in record.records for name in line}
    losses = {"supervised": "labels", "unlabelled": "pseudo-labels", "feature_distance": "distance of features"}
    if record.config["method"] == "supervised":
        del losses["unlabelled"]
    rows = [
        [
            Panel("Loss", losses, from_zero=True),
            Panel("Validation accuracy", {"validation_accuracy": ""}, share=True, noisy=False),
            RATE,
        ]
    ]
    text = page.paragraph("By step.", kind="note")
    if record.config["method"] != "supervised":
        rows.append(
            [
                Panel("Pseudo-labels", {"coverage": "used", "confidence": "mean confidence"}, share=True),
                Panel("Views that agree", {"agreement": ""}, share=True),
                Panel("Correct", {"pseudo_accuracy": "of those used", "pseudo_accuracy_all": "of all"}, share=True),
            ]
        )
        right = "Correct: share of the pseudo-labels that match the class of the video."
        if "pseudo_accuracy" not in names:
            right = "The accuracy of pseudo-labels is recorded with `--diagnose`, if the labels are known."
        text = page.paragraph(
            "By step. Pseudo-labels: share that is confident enough to be used, and mean confidence. Views that agree: "
            f"share of pairs of views with the same prediction for a clip. {right}"
        )
        rows.append([Panel("Views alone, on unlabelled clips", views, share=True)])
    rows = [[panel for panel in row if names & {*panel.lines}] for row in rows]
    figures = [training_curves(record.records, row, name=f"training{i}") for i, row in enumerate(rows) if row]
    return page.section("Training", text, *figures)


def evaluation(result: Mapping[str, Any]) -> str:
    """Show the result of `evaluate` on one part of the split."""
    names = list(result["views"])
    has_top5 = result["views"][names[0]]["top5"] is not None
    columns = ("top1", "top5", "mean_per_class") if has_top5 else ("top1", "mean_per_class")
    rows = [
        [
            VIEW_NAMES.get(view, view) + (" (headline)" if view == result["headline"] else ""),
            *("no videos" if score[name] is None else f"{score[name]:.2f} %" for name in columns),
            str(score["videos"]),
        ]
        for view, score in result["views"].items()
    ]
    head = ["view", "top-1", *(["top-5"] if has_top5 else []), "mean per class", "videos"]
    figure = confusion_figure(result["confusion"], result["classes"])
    classes = [
        [name, "no videos" if share is None else f"{share:.1f} %"]
        for name, share in zip(result["classes"], result["per_class"], strict=True)
    ]
    problems = [f"{key}: {reason}" for key, reason in result["skipped"].items()]
    return page.section(
        f"Evaluation: {result['part']}",
        page.paragraph(f"{result['clips']} clips × {result['crops']} crops per video, mean probabilities."),
        page.warnings(
            [f"{several(len(problems), 'video')} could not be read: {'; '.join(problems[:3])}"] if problems else []
        ),
        page.table(head, rows, kind="scores"),
        page.figure(to_inline_svg(figure, name=f"confusion-{result['part']}", label="Confusion")),
        page.table(["class", "accuracy"], classes, kind="numbers"),
    )


def missing(title: str, text: str) -> str:
    """Return a section that explains what is missing."""
    return page.section(title, page.paragraph(text, kind="note"))


def again(config: Mapping[str, Any]) -> str:
    """Return the command line that repeats a run."""
    data, split = (shlex.quote(str(config[name])) for name in ("data", "split"))
    return f"ssl-video train {data} NEW --split {split} --config config.yaml"


def read_evaluations(folder: Path, *, model_hash: str | None) -> tuple[list[dict[str, Any]], list[str]]:
    """Read the results of `evaluate` in a run folder, and notes on results of another model, which are left out.

    Raises:
        UserError: A file is damaged.
    """
    results: list[dict[str, Any]] = []
    notes: list[str] = []
    for file in sorted((folder / "evaluation").glob("*.json")):
        content = read_json(file)
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            continue
        with reading(file, "is damaged", "remove it, or evaluate again"):
            part, of = str(content["part"]), content["model_hash"]
        if model_hash is not None and of != model_hash:
            notes.append(f"{file.name} was computed with other weights than the model in the folder, and is left out")
        else:
            results.append({**content, "part": part})
    return sorted(results, key=lambda entry: str(entry["part"])), notes
