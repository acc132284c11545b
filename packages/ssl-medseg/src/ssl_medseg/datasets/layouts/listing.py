"""The files of a data set as its layout lists them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from contrastive_core.app.checks import Finding
from ssl_medseg.io.label_map import LabelMap
from ssl_medseg.io.volume import ImageFile


@dataclass(frozen=True)
class Entry:
    """An image as the layout has it; its files may not exist.

    Attributes:
        name: of the case.
        image: file or DICOM folder.
        label: where its label should be, None if the layout has none for it.
        listed: the part of the data set it is listed in.
        is_unlabelled: the data set says in so many words that it has no label.
        patient: whom it shows, if the data set says so.
    """

    name: str
    image: ImageFile
    label: Path | None = None
    listed: str = ""
    is_unlabelled: bool = False
    patient: str | None = None


@dataclass(frozen=True)
class Listing:
    """A data set as it lies on disk.

    Attributes:
        name: of the data set.
        root: folder that paths are shown relative to.
        layout: name of the layout.
        entries: every image.
        labels: what the data set says its labels mean, None if it does not.
        labels_without_image: label files that belong to no entry.
        unlisted: images the data set has no entry for.
        channels: names of the channels of every image, empty if the data set does not say.
        findings: what is wrong beside all that.
        set_aside: Images of the data set that are left out on purpose: other channels, other kinds.
        unused: Files that hold images or seem to, and are not read: path and reason.
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
