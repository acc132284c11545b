"""Compare a classifier with other runs by number of labels, and a distilled one with its teacher."""

from __future__ import annotations

import re
import shlex
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator, PercentFormatter

from contrastive_core.app.report import page
from contrastive_core.app.report.figures import INK, SERIES, new_figure, plain_axes, to_inline_svg
from contrastive_core.errors import UserError
from ssl_vision.evaluation.predictions import Predictions
from ssl_vision.reports.run_folder import (
    Evaluated,
    RunFolder,
    RunSettings,
    count_labels,
    open_run,
    read_evaluations,
    run_of,
)


@dataclass(frozen=True)
class Agreement:
    """Numbers of images by agreement of student and teacher.

    Attributes:
        images: All images.
        same: Images with the same predicted class.
        both_right: Images that both classify correctly.
        student_only: Images that only the student classifies correctly.
        teacher_only: Images that only the teacher classifies correctly.
        same_mistake: Images that both misclassify as the same class.
        other_mistake: Images that both misclassify as different classes.
    """

    images: int
    same: int
    both_right: int
    student_only: int
    teacher_only: int
    same_mistake: int
    other_mistake: int


def compare_predictions(student: Predictions, teacher: Predictions) -> Agreement:
    """Count the agreement on images that both have predicted, with the same classes."""
    student_classes, teacher_classes, labels = student.predicted, teacher.predicted, student.labels
    student_correct, teacher_correct, same = (
        student_classes == labels,
        teacher_classes == labels,
        student_classes == teacher_classes,
    )

    def count(which: np.typing.NDArray[np.bool_]) -> int:
        return int(which.sum())

    return Agreement(
        images=len(labels),
        same=count(same),
        both_right=count(student_correct & teacher_correct),
        student_only=count(student_correct & ~teacher_correct),
        teacher_only=count(~student_correct & teacher_correct),
        same_mistake=count(~student_correct & same),
        other_mistake=count(~student_correct & ~teacher_correct & ~same),
    )


def agreement(run: RunFolder, evaluations: list[Evaluated]) -> str:
    """Return the section of a distilled network: its predictions beside its teacher's on the evaluated images."""
    title, teacher = "Teacher and student", Path(str(run.settings.config["teacher"]))
    if not evaluations:
        return page.section(title, page.paragraph("The student has not been evaluated."))
    first = evaluations[0]
    teacher_evaluation = next((e for e in read_evaluations(run_of(teacher)) if e.images == first.images), None)
    if teacher_evaluation is None:
        return page.section(
            title,
            page.paragraph(
                f"The teacher has not been evaluated on these images. `ssl-vision evaluate {shlex.quote(str(teacher))} "
                f"{shlex.quote(first.score.data)} --part {first.score.split}` evaluates it; then write the report "
                "again to see where the two agree."
            ),
        )
    student_predictions, teacher_predictions = first.predictions(), teacher_evaluation.predictions()
    if (
        student_predictions is None
        or teacher_predictions is None
        or not _comparable(student_predictions, teacher_predictions)
    ):
        return page.section(
            title,
            page.paragraph("The two sets of predictions are not for the same images and classes; evaluate both again."),
        )
    counts = compare_predictions(student_predictions, teacher_predictions)
    rows = [
        ["both correct", *_share(counts.both_right, counts)],
        ["only the teacher correct", *_share(counts.teacher_only, counts)],
        ["only the student correct", *_share(counts.student_only, counts)],
        ["both wrong, the same class", *_share(counts.same_mistake, counts)],
        ["both wrong, different classes", *_share(counts.other_mistake, counts)],
    ]
    teacher_mistakes = counts.images - counts.both_right - counts.teacher_only
    return page.section(
        title,
        page.facts(
            {
                "teacher's accuracy": f"{teacher_evaluation.score.top1:.1f} %",
                "student's accuracy": f"{first.score.top1:.1f} %",
                "the same answer": f"{100 * counts.same / counts.images:.1f} %",
            }
        ),
        page.paragraph(
            f"On {counts.images:,} images of {first.name}, by their most likely class. Of the teacher's "
            f"{teacher_mistakes:,} mistakes the student repeats {counts.same_mistake:,} and corrects "
            f"{counts.student_only:,}."
        ),
        page.table(["", "images", "share"], rows, kind="numbers"),
    )


def _comparable(student: Predictions, teacher: Predictions) -> bool:
    return np.array_equal(student.paths, teacher.paths) and np.array_equal(student.classes, teacher.classes)


def _share(count: int, counts: Agreement) -> tuple[str, str]:
    return f"{count:,}", f"{100 * count / counts.images:.1f} %"


_APART = 1.3  # ratio of numbers that can be written beside each other


@dataclass(frozen=True)
class Point:
    """One run of a comparison.

    Attributes:
        run: Run folder.
        group: Training settings, apart from labels and seed.
        labels: Number of labels seen in training.
        top1: Accuracy in percent.
    """

    run: Path
    group: str
    labels: int
    top1: float


def find_runs(run: Path, compare: Sequence[Path] | None) -> list[Path]:
    """Find the runs to compare: those given, and the runs in folders given; by default the runs beside this one.

    Raises:
        UserError: A given folder is not a run, and contains none.
    """
    runs: list[Path] = []
    for path in [run.resolve().parent] if compare is None else compare:
        inside = [path] if _is_run(path) else sorted(folder.parent for folder in path.glob("*/config.yaml"))
        if not inside and compare is not None:
            raise UserError(
                f"{path}: found no run and no folder of runs, expected out folders of `ssl-vision finetune`"
            )
        runs += inside
    return list(dict.fromkeys(folder.resolve() for folder in runs))


def collect(run: RunFolder, evaluated: Evaluated, compare: Sequence[Path] | None) -> list[Point]:
    """Collect the run and all others that were evaluated on the same images and whose number of labels is known.

    Folders beside this one that are not runs of classifiers are skipped; given ones are not.

    Raises:
        UserError: A given run cannot be read.
    """
    points = []
    for folder in dict.fromkeys([run.path.resolve(), *find_runs(run.path, compare)]):
        try:
            other = open_run(folder)
            same = next((e for e in read_evaluations(folder) if e.images == evaluated.images), None)
        except UserError:
            if compare is not None:
                raise
            continue
        if other.settings.kind == "pretrain" or same is None:
            continue
        labels = count_labels(other.settings)
        if labels is not None:
            points.append(Point(folder, group_of(other.settings), labels, same.score.top1))
    return sorted(points, key=lambda p: (p.group, p.labels, p.run.name))


def group_of(settings: RunSettings) -> str:
    """Describe the training of a classifier, apart from labels and seed."""
    config = settings.config
    encoder = config["encoder"]
    width = "" if encoder.get("width_multiplier", 1.0) == 1 else f" {encoder['width_multiplier']:g}x"
    name = f"{settings.encoder}{width}{' + SK' if encoder.get('sk_ratio') else ''}"
    if settings.kind == "distill":
        return f"{name}, distilled" + ("" if config.get("alpha", 1.0) == 1 else " with labels")
    if config.get("init") == "none":
        return f"{name}, from scratch"
    num_layers = int(config.get("from_layer", 0))
    return f"{name}, fine-tuned from {_start(str(config.get('init')))}" + (
        f", head layer {num_layers}" if num_layers else ""
    )


def comparison(run: RunFolder, evaluated: Evaluated, points: Sequence[Point]) -> list[str]:
    """Return the section; empty without another run. With a single number of labels it has no figure."""
    if len(points) < 2:
        return []
    several = len({p.labels for p in points}) > 1
    parts = []
    note = "The labels of a distilled network are those of its teacher."
    if several:
        figure = comparison_figure(points, run.path.resolve())
        parts.append(page.figure(to_inline_svg(figure, name="labels", label="Accuracy by number of labels")))
        note = f"Points are runs, lines connect means, and a ring marks this run. {note}"
    ranking = points if several else sorted(points, key=lambda p: -p.top1)
    rows = [[p.run.name, p.group, f"{p.labels:,}", f"{p.top1:.1f} %"] for p in ranking]
    return [
        page.section(
            "Accuracy by number of labels" if several else "Other runs on the same images",
            *parts,
            page.paragraph(f"Top-1 accuracy of {len(points)} runs on {evaluated.name}. {note}", kind="note"),
            page.table(["run", "trained", "labels", "top-1"], rows, kind="runs"),
        )
    ]


def comparison_figure(points: Sequence[Point], this: Path) -> Figure:
    """Draw accuracy over labels, in one colour per group."""
    groups = list(dict.fromkeys(p.group for p in points))
    figure = new_figure(9.6, max(3.4, 0.3 * len(groups) + 1.2))
    axes = figure.subplots()
    plain_axes(axes, "Top-1 accuracy")
    ends = {}
    for number, group in enumerate(groups):
        colour = SERIES[number % len(SERIES)]
        ends[group] = _draw_group(axes, [p for p in points if p.group == group], this, colour=colour)
    axes.set_xscale("log")
    axes.set_xticks(_apart(sorted({p.labels for p in points})))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda count, _: f"{count:,.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("labelled images")
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10], integer=True))
    axes.yaxis.set_major_formatter(PercentFormatter(100, decimals=0))
    axes.margins(x=0.06, y=0.12)
    _name_groups(axes, ends)
    return figure


def _apart(counts: Sequence[int]) -> list[int]:
    """Return the ascending counts, without those whose tick labels would overlap the previous one."""
    ticks: list[int] = []
    for count in counts:
        if not ticks or count >= _APART * ticks[-1]:
            ticks.append(count)
    return ticks


def _draw_group(axes: Axes, points: Sequence[Point], this: Path, *, colour: str) -> tuple[str, float]:
    """Draw a group; return its colour and last mean."""
    counts = sorted({p.labels for p in points})
    means = {count: statistics.mean(p.top1 for p in points if p.labels == count) for count in counts}
    axes.plot(list(means), list(means.values()), color=colour, linewidth=1.8)
    axes.plot([p.labels for p in points], [p.top1 for p in points], "o", color=colour, markersize=4.5, alpha=0.8)
    own = [p for p in points if p.run == this]
    axes.plot(
        [p.labels for p in own], [p.top1 for p in own], "o", markersize=10, markerfacecolor="none", markeredgecolor=INK,
        markeredgewidth=1.4,
    )  # fmt: skip
    return colour, means[max(means)]


def _name_groups(axes: Axes, ends: Mapping[str, tuple[str, float]]) -> None:
    """Write the labels beside the axes, in the order of the ends of the lines."""
    groups = sorted(ends.items(), key=lambda end: -end[1][1])
    for row, (group, (colour, _)) in enumerate(groups):
        axes.annotate(
            group, (1, 1), xycoords="axes fraction", xytext=(10, -14 * row), textcoords="offset points", va="top",
            fontsize=8.5, color=colour, annotation_clip=False,
        )  # fmt: skip


def _start(model: str) -> str:
    """Return the name of the pre-training run, without the number of its seed."""
    parts = Path(model).parts
    epoch = ""
    if len(parts) > 2 and parts[-2] == "models":
        epoch, parts = f", epoch {parts[-1].removeprefix('epoch-').lstrip('0') or '0'}", parts[:-2]
    if len(parts) > 1 and parts[-1] == "model":
        parts = parts[:-1]
    return re.sub(r"[-_.](seed|s)[-_]?\d+$", "", parts[-1]) + epoch


def _is_run(folder: Path) -> bool:
    return (folder / "config.yaml").is_file()
