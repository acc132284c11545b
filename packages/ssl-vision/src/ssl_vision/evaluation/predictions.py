"""Files with class probabilities of labelled images, written by `evaluate` and read by `report`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from contrastive_core.errors import UserError
from contrastive_core.training.documents import reading
from ssl_vision.evaluation.features import replace_file

_ARRAYS = ("probabilities", "labels", "paths", "classes")


@dataclass(frozen=True)
class Predictions:
    """Predictions for N images and C classes.

    Attributes:
        probabilities: Class probabilities, float32 ``[N, C]``.
        labels: Class numbers, int64 ``[N]``.
        paths: Paths, text ``[N]``.
        classes: Class names, text ``[C]``.
    """

    probabilities: NDArray[np.float32]
    labels: NDArray[np.int64]
    paths: NDArray[np.str_]
    classes: NDArray[np.str_]

    @property
    def confidences(self) -> NDArray[np.float32]:
        """Largest probability of each image."""
        confidences: NDArray[np.float32] = self.probabilities.max(axis=1)
        return confidences

    @property
    def predicted(self) -> NDArray[np.int64]:
        """Class with the largest probability of each image."""
        indices: NDArray[np.int64] = self.probabilities.argmax(axis=1)
        return indices


def make_predictions(
    probabilities: NDArray[np.float32], labels: NDArray[np.int64], *, paths: Sequence[str], classes: Sequence[str]
) -> Predictions:
    """Make predictions from sequences of names."""
    return Predictions(probabilities, labels, np.array(paths, dtype=np.str_), np.array(classes, dtype=np.str_))


def write_predictions(file: Path, predictions: Predictions) -> None:
    """Write arrays that `numpy.load` reads without pickle; equal predictions give equal bytes."""

    def write(path: Path) -> None:
        with path.open("wb") as stream:
            np.savez(stream, **{name: getattr(predictions, name) for name in _ARRAYS})

    replace_file(file, write)


def read_predictions(file: Path) -> Predictions:
    """Read a file of `write_predictions`.

    Raises:
        UserError: There is no such file, or it is damaged.
    """
    remedy = "expected a file of `ssl-vision evaluate`; evaluate again"
    with reading(file, "found no predictions", remedy), np.load(file) as arrays:
        if any(member.compress_size != member.file_size for member in arrays.zip.infolist()):
            raise UserError("its arrays are compressed, and may unpack to any size")
        return Predictions(**{name: arrays[name] for name in _ARRAYS})
