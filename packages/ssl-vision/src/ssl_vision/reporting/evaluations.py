"""What `evaluate` has found out about a run's classifier, as it lies in the run's folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ssl_vision.classifier_score import ClassifierScore, read_classifier_score
from ssl_vision.prediction_files import Predictions, read_predictions
from ssl_vision.reporting.run_folder import data_name


@dataclass(frozen=True)
class Evaluated:
    """An evaluation of a classifier.

    Attributes:
        file: the JSON file.
        score: its numbers.
    """

    file: Path
    score: ClassifierScore

    @property
    def name(self) -> str:
        """The images in words."""
        seen = " (validated on in training)" if self.score.validation_share else ""
        return f"{data_name(self.score.data)}, split {self.score.split}{seen}"

    @property
    def images(self) -> tuple[str, str]:
        """Which images: scores of the same ones may be compared."""
        return self.score.data, self.score.split

    def predictions(self) -> Predictions | None:
        """The probabilities beside it; None if the file was taken away.

        Raises:
            UserError: it is damaged.
        """
        file = self.file.with_name(f"{self.file.stem}-predictions.npz")
        return read_predictions(file) if file.is_file() else None


def read_evaluations(run: Path) -> list[Evaluated]:
    """Every evaluation in ``RUN/evaluation``, the one on most images first.

    Raises:
        UserError: a damaged file.
    """
    found = [(file, read_classifier_score(file)) for file in sorted(run.glob("evaluation/*.json"))]
    evaluated = [Evaluated(file, score) for file, score in found if score is not None]
    return sorted(evaluated, key=lambda e: (-e.score.images, e.file.name))
