"""Represent the files of a data set as listed by its layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from contrastive_core.app.checks import Finding
from contrastive_core.training.tables import local_path
from ssl_medseg.io.label_map import LabelMap
from ssl_medseg.io.volume import ImageFile


def place(root: Path, written: str) -> Path:
    """Return the path of a file in a list, resolved against the folder of the list.

    Lists written on Windows separate folders by backslashes, and files from macOS may have decomposed accents.
    """
    return root / local_path(written, root)


@dataclass(frozen=True)
class Entry:
    """An image that a layout lists; its files may not exist.

    Attributes:
        name: Name of the case.
        image: File or DICOM folder.
        label: Expected file of the label; None if the layout has none for it.
        listed: Part of the data set that lists the image.
        is_unlabelled: Whether the data set states that the image has no label.
        patient: Patient, if the data set states it.
        lacks: Channels that other cases have and this one lacks.
        phase: ED or ES, if a table states it.
    """

    name: str
    image: ImageFile
    label: Path | None = None
    listed: str = ""
    is_unlabelled: bool = False
    patient: str | None = None
    lacks: tuple[str, ...] = ()
    phase: str = ""


@dataclass(frozen=True)
class Listing:
    """The files of a data set.

    Attributes:
        name: Name of the data set.
        root: Folder that paths are shown relative to.
        layout: Name of the layout.
        entries: All images.
        labels: Label map of the data set, if it has one.
        labels_without_image: Label files that belong to no entry.
        unlisted: Images that the data set has no entry for.
        channels: Names of the channels of every image, in order; empty if the data set does not state them.
        findings: Further problems.
        set_aside: Images of the data set that are left out intentionally: other channels, other kinds.
        unused: Path and reason of files that are, or appear to be, images and are not read.
    """

    name: str
    root: Path
    layout: str
    entries: Sequence[Entry]
    labels: LabelMap | None = None
    labels_without_image: Sequence[Path] = ()
    unlisted: Sequence[Path] = ()
    channels: Sequence[str] = ()
    findings: Sequence[Finding] = field(default=())
    set_aside: Sequence[Path] = ()
    unused: Sequence[tuple[Path, str]] = ()
