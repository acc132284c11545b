"""List BIDS-like data sets: sub-XX/[ses-XX/]anat/*_T2w.nii.gz, with *_dseg.nii.gz alongside or in derivatives."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from contrastive_core.app.checks import Finding, Item
from contrastive_core.errors import UserError
from contrastive_core.text import several
from ssl_medseg.datasets.channels import choose_channels
from ssl_medseg.datasets.layouts.listing import Entry, Listing
from ssl_medseg.datasets.options import DataOptions
from ssl_medseg.io.file_types import stem, walk
from ssl_medseg.io.label_map import LabelMap, read_label_map
from ssl_medseg.io.volume import join_channels

LABEL_SUFFIX = "dseg"
_ENDINGS = (".nii", ".nii.gz")
# Entities that the name of a label may have in addition to those of its image.
_OF_LABELS = frozenset(("space", "desc", "label", "res", "den", "seg", "atlas"))
_NO_IMAGES = frozenset((LABEL_SUFFIX, "mask", "probseg"))


_OF_SESSIONS = ("sub", "ses", "run")
"""Entities that identify a session; the others identify the kind of image."""


@dataclass(frozen=True)
class _File:
    path: Path
    entities: frozenset[tuple[str, str]]
    suffix: str

    @property
    def session(self) -> tuple[str, ...]:
        """Subject, session and run."""
        entities = dict(self.entities)
        return tuple(f"{name}-{entities[name]}" for name in _OF_SESSIONS if name in entities)

    @property
    def named_images(self) -> set[str]:
        """Parts of the name of a label that may state the image it was drawn on: ``T2w``, ``space-T2w``."""
        return {key for key, value in self.entities if not value} | {v for k, v in self.entities if k == "space"}

    @property
    def kind(self) -> str:
        """Kind of the image, such as ``T1w`` or ``ce-gadolinium_T1w``."""
        _, *others = self.path.name.split("_")
        pairs = [part for part in others[:-1] if part.partition("-")[0] not in _OF_SESSIONS]
        return "_".join([*pairs, self.suffix])


def list_bids(root: Path, options: DataOptions) -> Listing:
    """List the images of every subject and session, with the segmentations whose names have the same entities.

    Images with different suffixes (T2w, FLAIR) are the channels of a case. The channel that segmentations are named
    after comes first, the others follow in alphabetical order; `DataOptions.channels` selects some, in its order. If
    all images have the same suffix, every image is a case. The name of a label may have additional entities such as
    ``space``, ``desc`` or ``seg``. Label names are read from the ``*dseg.tsv`` files (columns index and name), which
    must agree.

    Raises:
        UserError: The tables of label names cannot be read or contradict each other, or a requested channel does not
            exist.
    """
    files = [
        _parsed(path)
        for path in _files(root)
        if path.name.startswith("sub-") and path.name.lower().endswith(_ENDINGS) and path.is_file()
    ]
    labels = [file for file in files if file.suffix == LABEL_SUFFIX]
    images = [
        file
        for file in files
        if file.suffix not in _NO_IMAGES and "derivatives" not in file.path.relative_to(root).parts
    ]  # fmt: skip
    name = root.resolve().name
    channels = _channels(images, labels, options, name)
    cases = _cases(images, channels)
    suffixes = {image.suffix for image in images}
    findings: list[Finding] = []
    entries: list[Entry] = []
    used: set[Path] = set()
    for case in cases:
        matches = _labels_of(case.values(), labels, suffixes)
        used.update(matches)
        first = next(iter(case.values()))
        own = stem(first.path) if len(channels) < 2 else "_".join(first.session)
        if len(matches) > 1:
            title = f"{own} has several labels: keep one, or list the cases in a CSV file"
            findings.append(Finding("error", "several_labels", title, [Item([label.name for label in matches])]))
        image = join_channels([options.image(each.path, name=channels[kind]) for kind, each in case.items()])
        lacks = tuple(channel for kind, channel in channels.items() if kind not in case)
        label = next(iter(matches), None)
        entries.append(Entry(own, image, label, "training", patient=first.session[0], lacks=lacks))
    # Labels drawn on a kind of image that is not used are not reported as labels without an image.
    others = [
        label.path for label in labels
        if label.path not in used and not (options.channels and label.named_images & suffixes)
    ]  # fmt: skip
    paths = {each.path for case in cases for each in case.values()}
    surplus = [file.path for file in images if file.path not in paths]
    if surplus and options.channels:
        title = f"{several(len(surplus), 'image')} of kinds other than {', '.join(options.channels)}, left out"
        findings.append(Finding("note", "other_kind", title))
    elif surplus:
        title = f"{several(len(surplus), 'image')} of a kind that their session already has, left out"
        findings.append(Finding("warning", "same_kind", title, [Item([path.name for path in surplus])]))
    return Listing(
        name, root, "bids", entries, _own_map(root), labels_without_image=others, channels=list(channels.values()),
        findings=findings, set_aside=surplus,
    )  # fmt: skip


def _channels(images: Sequence[_File], labels: Sequence[_File], options: DataOptions, name: str) -> dict[str, str]:
    """Map kinds of images to channel names, in order; if there is only one suffix, there is only one channel."""
    suffixes = {image.suffix for image in images}
    if len(suffixes) < 2:
        kinds = sorted(suffixes)
    else:
        kinds = sorted({image.kind for image in images}, key=str.casefold)
        drawn_on = {part for label in labels for part in label.named_images}
        kinds.sort(key=lambda kind: kind not in drawn_on and kind.rpartition("_")[2] not in drawn_on)
    channels = choose_channels(dict(enumerate(kinds)), options.channels, named=True, source=name)
    return {kinds[number]: channel for number, channel in channels.items()}


def _cases(images: Sequence[_File], channels: Mapping[str, str]) -> list[dict[str, _File]]:
    """Return kind -> image for every case, in the order of the channels."""
    if len({image.suffix for image in images}) < 2:
        return [{image.suffix: image} for image in images]
    sessions: dict[tuple[str, ...], dict[str, _File]] = {}
    for image in images:
        if image.kind in channels:
            sessions.setdefault(image.session, {}).setdefault(image.kind, image)
    return [{kind: files[kind] for kind in channels if kind in files} for files in sessions.values()]


def _files(root: Path) -> list[Path]:
    return sorted(folder / name for folder, _, names in walk(root) for name in names)


def is_bids(root: Path) -> bool:
    """Return whether a folder contains subject folders."""
    return any(path.is_dir() for path in root.glob("sub-*"))


def _parsed(path: Path) -> _File:
    *pairs, suffix = stem(path).split("_")
    entities = (pair.partition("-") for pair in pairs)
    return _File(path, frozenset((key, value) for key, _, value in entities), suffix)


def _labels_of(images: Collection[_File], labels: Sequence[_File], suffixes: Set[str]) -> dict[Path, _File]:
    """Find the labels of a case: those named after one of its images or none, otherwise others of its session."""
    if len(suffixes) < 2:
        return {label.path: label for image in images for label in labels if _belongs(label, image)}
    session = next(iter(images)).session
    kinds = {kind for image in images for kind in (image.kind, image.suffix)}
    beyond = _OF_LABELS | suffixes | {name for image in images for name, _ in image.entities}
    own = [
        label for label in labels
        if label.session == session and {key for key, _ in label.entities} <= beyond
    ]  # fmt: skip
    nearest = [label for label in own if not (references := label.named_images & suffixes) or references & kinds]
    return {label.path: label for label in nearest or own}


def _belongs(label: _File, image: _File) -> bool:
    """Return whether a label has all entities of an image, and beyond them only its suffix or those of labels."""
    beyond = {(key, value) for key, value in label.entities - image.entities if key not in _OF_LABELS}
    return image.entities <= label.entities and beyond <= {(image.suffix, "")}


def _own_map(root: Path) -> LabelMap | None:
    maps = {file: read_label_map(file) for file in _files(root) if file.name.endswith(f"{LABEL_SUFFIX}.tsv")}
    if len(set(maps.values())) > 1:
        first, *others = maps
        other = next(file for file in others if maps[file] != maps[first])
        raise UserError(
            f"{other.relative_to(root)} contains {maps[other]}, but {first.relative_to(root)} contains {maps[first]}; "
            "make them agree, or pass --label-map"
        )
    return next(iter(maps.values()), None)
