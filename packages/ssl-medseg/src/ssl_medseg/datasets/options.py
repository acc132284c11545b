"""Options for opening a data set, shared by every command that takes one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Layout = Literal["auto", "decathlon", "nnunet", "bids", "folders", "csv"]


@dataclass(frozen=True)
class DataOptions:
    """How to open a data set.

    Args:
        layout: how its files lie; auto: seen from what is there.
        channel: of images with several (T2, ADC, ...), which one; counted from 0.
        frame: of images with several time points, which one; counted from 0.
        frames: a CSV file with the columns case and frame, for cases of which another one is meant than --frame, such
            as end-diastole of each heart.
        suffix: of a BIDS data set with images of several kinds, which: ``T2w``.
        label_map: a file that says what the values of the labels mean, where the data set does not.
        patient_pattern: a regular expression searched in the names of cases; what its group matches is the patient.
        patients: a CSV file with the columns case and patient.
        unlabelled: a text file with the names of cases that are meant to have no label, one per line.
        allow_unlabelled: every case may be without a label.
    """

    layout: Layout = "auto"
    channel: int | None = None
    frame: int | None = None
    frames: Path | None = None
    suffix: str | None = None
    label_map: Path | None = None
    patient_pattern: str | None = None
    patients: Path | None = None
    unlabelled: Path | None = None
    allow_unlabelled: bool = False
