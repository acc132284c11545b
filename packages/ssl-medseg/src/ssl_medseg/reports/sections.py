"""Render the sections of a report that describe the run: data, training, settings."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import PurePath
from statistics import fmean
from typing import Any

import ssl_medseg
from contrastive_core.app.report import page, sections
from contrastive_core.app.report.figures import Panel, training_curves
from contrastive_core.text import duration, several
from ssl_medseg.evaluation.summary import summarise
from ssl_medseg.evaluation.text import failures, number
from ssl_medseg.preprocessing import Preprocessing
from ssl_medseg.reports.overlay import VALIDATION
from ssl_medseg.reports.run_folder import Reported, Stage

_METHODS = {
    "train": "supervised training on the labelled volumes alone",
    "pretrain": "contrastive pre-training without labels",
    "consistency": "weak-to-strong consistency with pseudo-labels from a mean teacher",
    "copy-paste": "bidirectional copy-paste with pseudo-labels from a mean teacher",
    "rounds": "self-training in rounds of pseudo-labels",
    "mean-teacher": "mean-teacher consistency: the student is trained to agree with the averaged network",
}
_LOSSES = {
    "segmentation": "labelled slices",
    "pseudo": "pseudo-labels",
    "contrast": "contrastive",
    "consistency": "pseudo-labels of the teacher",
    "copy-paste": "mixed labelled and unlabelled slices",
    "mean-teacher": "agreement with the teacher",
    "global_loss": "global",
    "local_loss": "local",
}
_PARTS = {
    "labelled": "images and labels used for training",
    "unlabelled": "images used for training; label files, if any, were not opened",
    "validation": "not used for training; labels used to score steps and to choose settings of prediction",
    "test": "not opened during training",
}


def describe_method(method: str) -> str:
    """Describe a training method in words."""
    return _METHODS.get(method.rsplit(maxsplit=1)[-1], method)


def title(run: Reported) -> str:
    """Return the title of the report."""
    task = f"Segmentation of {', '.join(run.structures) or 'structures'}"
    if run.last.method.startswith("pretrain"):
        task = "Pre-training without labels"
    return task + (f" in {run.data}" if run.data else "")


def header(run: Reported) -> str:
    """Render the title, a summary of the training, the headline numbers and the cautions."""
    counts = {part: (len(pairs), len({p for _, p in pairs})) for part, pairs in run.split.items()}
    text = f"Trained by {describe_method(run.last.method)}."
    if counts:
        others = f" and {_volumes(counts['unlabelled'])} without" if _uses_unlabelled(run) else ""
        text = f"Trained on {_volumes(counts['labelled'])} with labels{others}, by {describe_method(run.last.method)}."
    unfinished = [stage for stage in run.stages if not stage.is_done]
    if unfinished:
        steps = int(unfinished[-1].record.records[-1]["step"]) + 1 if unfinished[-1].record.records else 0
        of_stage = f" of the stage {unfinished[-1].name}" if unfinished[-1].name else ""
        text += f" Training is not finished: {steps:,} steps{of_stage} are done."
    numbers: dict[str, str] = {}
    if run.evaluations:
        newest = run.evaluations[0][0]
        summary = summarise(newest)
        cases = several(summary.mean_dice.n, "case" if newest.part == "all" else f"{newest.part} case")
        source = f" of {newest.data}" if run.data and newest.data != run.data else ""
        numbers[f"mean Dice, {cases}{source}"] = number("dice", summary.mean_dice.mean)
        for structure in summary.structures:
            numbers[f"Dice, {structure.structure}"] = number("dice", structure.measures["dice"].mean)
    if counts:
        for part in ("labelled", "unlabelled") if _uses_unlabelled(run) else ("labelled",):
            patients = counts[part][1]
            numbers[f"{part} patient{'' if patients == 1 else 's'}"] = f"{patients:,}"
    seconds = sum(stage.record.seconds or 0 for stage in run.stages)
    if seconds:
        numbers["training time"] = duration(seconds)
    return (
        f"<header>\n<h1>{escape(title(run))}</h1>\n{page.paragraph(text, kind='lead')}\n{page.facts(numbers)}\n"
        f"{page.warnings(_cautions(run))}</header>"
    )


def _cautions(run: Reported) -> Iterator[str]:
    """Collect the warnings that a reader should see first."""
    yield "For research only: neither numbers nor masks are cleared for diagnosis or treatment. Inspect the masks."
    yield from _failures(run)
    for stage in run.stages:
        yield from _implausible(stage)
    if run.split and not run.split["validation"]:
        yield (
            "No validation volumes: the best step could not be determined, so training had a fixed length and its last "
            "weights were kept."
        )
    if run.last.method.startswith("pretrain"):
        yield "Not a segmenter yet: train one from these weights with `train --init`."
    elif not run.evaluations:
        yield "Not evaluated yet: the quality of the masks on new patients is unknown."
    if run.split and len({patient for _, patient in run.split["labelled"]}) == 1:
        yield "One labelled patient covers one anatomy and one annotator."


def _failures(run: Reported) -> Iterator[str]:
    """Report structures that the newest evaluation never finds, and a run that therefore stopped."""
    for evaluation, _ in run.evaluations[:1]:
        yield from failures(summarise(evaluation))
    if run.has_failed:
        yield "Self-training has not been run: the run stopped because its baseline failed."


def _implausible(stage: Stage) -> Iterator[str]:
    """Report pseudo-labels whose areas are implausible compared with those of the labels."""
    texts = stage.card.get("details", {}).get("implausible", [])
    texts = [*texts, *dict.fromkeys(text for each in stage.rounds for text in each.get("warnings", []))]
    if texts:
        yield f"Pseudo-labels of the unlabelled volumes are implausible: {'; '.join(texts)}."


def learnt_from(run: Reported) -> str:
    """Render the section about the data: parts of the split, structures, preprocessing."""
    parts = []
    if run.split:
        uses = _PARTS if _uses_unlabelled(run) else {**_PARTS, "unlabelled": "not used by this method"}
        rows = [
            [part, str(len({p for _, p in pairs})), str(len(pairs)), uses[part]] for part, pairs in run.split.items()
        ]
        parts.append(page.table(["part", "patients", "volumes", "use"], rows, kind="parts"))
        parts.append(page.paragraph("All volumes of a patient are in the same part.", kind="note"))
    card = run.last.card
    if "labels" in card:
        names, values = card["labels"]["names"][1:], card["labels"]["values"][1:]
        structures = ", ".join(f"{name} ({value})" for name, value in zip(names, values, strict=True))
        parts.append(page.paragraph(f"Structures and their values in mask files: {structures}."))
    if "preprocessing" in card:
        parts.append(page.paragraph(_preprocessing(card["preprocessing"])))
        labelled = card.get("details", {}).get("labelled", [])
        if labelled:
            parts.append(page.paragraph(f"Labelled volumes: {', '.join(labelled)}.", kind="note"))
    parts += _preparation(run)
    return page.section("Data", *parts) if parts else ""


def _preparation(run: Reported) -> list[str]:
    """Tabulate how every volume was stored and what its slices do not contain."""
    rows, part_of = [], {name: part for part, pairs in run.split.items() for name, _ in pairs}
    for name, facts in run.last.preparation.items():
        sides = facts["spacing_mm"]
        remarks = [
            f"{share:.1%} of {structure} lies outside the slices"
            for structure, share in facts["outside_slices"].items()
        ]
        remarks += [f"resampling: {text}" for text in facts["removed_by_resampling"]]
        rows.append(
            [
                name, part_of.get(name, "–"), facts["stored"] or "not known", " × ".join(map(str, facts["shape"])),
                " × ".join(f"{side:.3g}" for side in sides) if sides else "not known", str(facts["slices"]),
                "; ".join([*remarks, *facts["notes"]]) or "–",
            ]
        )  # fmt: skip
    if not rows:
        return []
    head = ["volume", "part", "stored", "voxels", "voxel, mm", "slices", "remarks"]
    return [
        "<h3>Every volume</h3>",
        page.table(head, rows, kind="tight"),
        page.paragraph("Stored: the directions in which the axes of the file grow, such as L to the patient's left, "
                       "P to the back, S to the head.", kind="note"),
    ]  # fmt: skip


def _preprocessing(p: Mapping[str, Any]) -> str:
    size = " × ".join(map(str, p["size"]))
    if p.get("spacing"):
        pixels = f"resampled in-plane to pixels of {' × '.join(f'{s:.3g}' for s in p['spacing'])} mm"
    elif p.get("fit"):
        pixels = f"scaled to {p['fit']} pixels along their longer side, because their pixel size is unknown"
    else:
        pixels = "kept at their original pixel size"
    low, high = p["percentiles"]
    bias = " after correction of the bias field (N4)" if p.get("n4") else ""
    settings = Preprocessing.from_json(p)
    each = "of each volume"
    channels = ""
    if len(settings.channels) > 1:
        each = "of each channel of a volume"
        channels = f" The network receives {len(settings.channels)} channels: {', '.join(settings.channels)}."
    if settings.plane:
        slices = f"All volumes were reoriented to a common orientation and cut into {settings.plane} slices"
    else:
        slices = (
            f"Volumes were kept in their stored orientation and cut into slices along array axis {settings.slice_axis}"
        )
    return (
        f"{slices}, which were {pixels} and cropped or padded to {size}. The distance "
        f"between slices was not changed. Intensities were scaled so that the percentiles {low:g} and {high:g} {each} "
        f"became 0 and 1{bias}.{channels}"
    )


def training(run: Reported) -> str:
    """Render the training curves of every stage."""
    parts = []
    for stage in run.stages:
        if not stage.record.records:
            subject = f"The stage {stage.name}" if stage.name else "The run"
            parts.append(page.paragraph(f"{subject} has not logged any metrics yet."))
            continue
        if len(run.stages) > 1:
            parts.append(f"<h3>{escape(stage.name)}: {escape(describe_method(stage.method))}</h3>")
        name = f"training-{stage.name or 'run'}"
        parts.append(training_curves(stage.record.records, panels(stage, run.structures), name=name))
        parts += _validation_pictures(stage)
        weights = stage.card.get("details", {}).get("weights")
        if weights:
            parts.append(page.paragraph(f"Weights kept: {weights}.", kind="note"))
    parts.append(
        page.paragraph(
            "Validation Dice is measured on whole volumes on their original grid, for each structure in the volumes "
            "that contain it. Where it selected the step that was kept, its best value is optimistic; test cases are "
            "not used for any selection.",
            kind="note",
        )
    )
    return page.section("Training", *parts)


_PICTURES_SHOWN = 3


def _validation_pictures(stage: Stage) -> list[str]:
    """Show a validation case at the beginning, in the middle and at the end of training."""
    files = sorted((stage.path / VALIDATION).glob("step-*.png"))
    places = (
        sorted({round(i * (len(files) - 1) / (_PICTURES_SHOWN - 1)) for i in range(_PICTURES_SHOWN)}) if files else []
    )
    pictures = [page.picture(files[i].read_bytes(), label=f"A validation case, {files[i].stem}") for i in places]
    if not pictures:
        return []
    text = "A validation case during training: image, truth, and prediction with the truth as a white outline."
    return [page.paragraph(text), *map(page.figure, pictures)]


def _uses_unlabelled(run: Reported) -> bool:
    return any(stage.method.split()[0] != "train" for stage in run.stages)


def panels(stage: Stage, structures: tuple[str, ...]) -> tuple[Panel, ...]:
    """Define the panels of a stage: its loss or loss terms, and the validation Dice per structure."""
    logged = {key for record in stage.record.records for key in record}
    losses = {key: name for key, name in _LOSSES.items() if key in logged}
    all_panels = [Panel("Loss", losses or {"loss": ""})]
    dice = {f"validation_dice_{name.replace(' ', '_')}": name for name in structures}
    lines = {key: name for key, name in dice.items() if key in logged}
    recipe = stage.card.get("details", {}).get("recipe") or stage.record.config.get("recipe")
    mean = "validation_dice" if recipe == "paper" else "validation_dice_present"  # the one that selects weights
    if mean in logged:
        all_panels.append(Panel("Validation Dice", {mean: "mean", **lines}, from_zero=True, noisy=False))
    return tuple(all_panels)


def settings(run: Reported, *, show_paths: bool = False) -> str:
    """Render the settings of the last stage and the command that repeats it; full paths only with `show_paths`."""
    stage = run.last
    verb = stage.method.split()[0]
    command = getattr(ssl_medseg, verb)
    place = stage.path if show_paths else PurePath("RUN", stage.name)
    again = f"ssl-medseg {verb} --config {shlex.quote(str(place / 'config.yaml'))} --out runs/again"
    config = stage.record.config if show_paths else _without_folders(stage.record.config)
    return sections.settings(config, command, name=stage.name or verb, again=again, sessions=stage.record.sessions)


def _without_folders(value: Any) -> Any:
    """Reduce every path to its last component, because the names of parent folders may identify patients."""
    if isinstance(value, Mapping):
        return {key: _without_folders(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_folders(item) for item in value]
    return PurePath(value).name if isinstance(value, str) and os.sep in value else value


_GOOD = 0.7
"""Mean Dice below which a case is listed for inspection."""


def next_steps(run: Reported) -> str:
    """Suggest the next commands for the state of the run; RUN and DATA stand for its folder and the data set."""
    steps: list[tuple[str, str]] = []
    if not run.last.is_done:
        steps.append(("Training is not finished. Continue it:", "ssl-medseg ... --resume"))
    elif run.has_failed:
        steps += [
            ("Look at the pictures of this report and check the labels:",
             "ssl-medseg check DATA --picture-folder PICTURES"),
            ("Label one more patient, write a split with it, and train longer, in a new folder:",
             "ssl-medseg run DATA OUT --split SPLIT --effort night"),
        ]  # fmt: skip
    elif run.last.method.startswith("pretrain"):
        steps.append(("Train a segmenter from these weights:", "ssl-medseg train DATA OUT --split SPLIT --init RUN"))
    else:
        tested = [evaluation for evaluation, _ in run.evaluations if evaluation.part not in ("validation", "labelled")]
        if not tested:
            steps.append(
                ("Evaluate it on patients that were not used for training, from this data set or another one:",
                 "ssl-medseg evaluate RUN DATA")
            )  # fmt: skip
        for evaluation in tested[:1]:
            dice = {
                case.case: fmean(s.dice for s in case.structures if s.dice is not None)
                for case in evaluation.judged
                if any(s.dice is not None for s in case.structures)
            }
            low = sorted((value, name) for name, value in dice.items() if value < _GOOD)
            if low:
                value, name = low[0]
                which = (
                    f"{name}, whose mean Dice is {value:.2f}"
                    if len(low) == 1
                    else f"the {len(low)} cases with a mean Dice below {_GOOD:g}, starting with {name} ({value:.2f})"
                )
                steps.append(
                    (f"Inspect {which}: check the label, the image, then the mask.",
                     "ssl-medseg check DATA --picture-folder PICTURES")
                )  # fmt: skip
        steps.append(
            ("Find the cases about which the model is most uncertain, correct their masks and train again:",
             "ssl-medseg next RUN DATA OUT")
        )  # fmt: skip
        steps.append(
            ("Segment new images, with a picture of every mask and a quality score:",
             "ssl-medseg predict RUN IMAGES MASKS --pictures --uncertainty")
        )  # fmt: skip
    parts = [part for text, line in steps for part in (page.paragraph(text), page.command(line))]
    return page.section("What to do next", *parts)


def surroundings(run: Reported) -> str:
    """Render the environment of the run and the versions that wrote the report."""
    record = run.last.record
    return sections.surroundings(record.config, record.sessions, packages=("ssl-medseg", "monai", "nibabel"))


def _volumes(count: tuple[int, int]) -> str:
    volumes, patients = count
    return f"{several(volumes, 'volume')} of {several(patients, 'patient')}"
