"""Teacher and student on the same test images: where they agree, and who is right where they do not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from contrastive_core.app.report import page
from ssl_vision.prediction_files import Predictions
from ssl_vision.reporting.evaluations import Evaluated, read_evaluations
from ssl_vision.reporting.label_counts import run_of
from ssl_vision.reporting.run_folder import RunFolder


@dataclass(frozen=True)
class Agreement:
    """Counts of images.

    Attributes:
        images: all.
        same: with the same predicted class.
        both_right: right by both.
        student_only: right by the student alone.
        teacher_only: right by the teacher alone.
        same_mistake: wrong by both, with the same class.
        other_mistake: wrong by both, with different classes.
    """

    images: int
    same: int
    both_right: int
    student_only: int
    teacher_only: int
    same_mistake: int
    other_mistake: int


def compare_predictions(student: Predictions, teacher: Predictions) -> Agreement:
    """Counts over images that both have predicted, of the same classes."""
    given, taught, labels = student.predicted, teacher.predicted, student.labels
    right, also_right, same = given == labels, taught == labels, given == taught

    def count(which: np.typing.NDArray[np.bool_]) -> int:
        return int(which.sum())

    return Agreement(
        images=len(labels),
        same=count(same),
        both_right=count(right & also_right),
        student_only=count(right & ~also_right),
        teacher_only=count(~right & also_right),
        same_mistake=count(~right & same),
        other_mistake=count(~right & ~also_right & ~same),
    )


def agreement(run: RunFolder, evaluations: list[Evaluated]) -> str:
    """The section of a distilled network: its answers beside its teacher's on the images it was evaluated on."""
    title, teacher = "Teacher and student", Path(str(run.settings.config["teacher"]))
    if not evaluations:
        return page.section(title, page.paragraph("The student has not been evaluated."))
    first = evaluations[0]
    taught = next((e for e in read_evaluations(run_of(teacher)) if e.images == first.images), None)
    if taught is None:
        return page.section(
            title,
            page.paragraph(
                f"The teacher has not been evaluated on these images. `ssl-vision evaluate {teacher} "
                f"{first.score.data} --split {first.score.split}` does it; a report written after it shows where the "
                "two agree."
            ),
        )
    student, master = first.predictions(), taught.predictions()
    if student is None or master is None or not _comparable(student, master):
        return page.section(
            title,
            page.paragraph("The predictions of the two are not of the same images and classes; evaluate both again."),
        )
    found = compare_predictions(student, master)
    rows = [
        ["both right", *_share(found.both_right, found)],
        ["only the teacher right", *_share(found.teacher_only, found)],
        ["only the student right", *_share(found.student_only, found)],
        ["both wrong, the same class", *_share(found.same_mistake, found)],
        ["both wrong, different classes", *_share(found.other_mistake, found)],
    ]
    wrong = found.images - found.both_right - found.teacher_only
    return page.section(
        title,
        page.facts(
            {
                "teacher's accuracy": f"{taught.score.top1:.1f} %",
                "student's accuracy": f"{first.score.top1:.1f} %",
                "the same answer": f"{100 * found.same / found.images:.1f} %",
            }
        ),
        page.paragraph(
            f"On {found.images:,} images of {first.name}, by their most likely class. Of the teacher's {wrong:,} "
            f"mistakes the student repeats {found.same_mistake:,} and puts {found.student_only:,} right."
        ),
        page.figure(page.table(["", "images", "share"], rows, kind="numbers")),
    )


def _comparable(student: Predictions, teacher: Predictions) -> bool:
    return np.array_equal(student.paths, teacher.paths) and np.array_equal(student.classes, teacher.classes)


def _share(count: int, found: Agreement) -> tuple[str, str]:
    return f"{count:,}", f"{100 * count / found.images:.1f} %"
