"""BIDS-like trees: sub-XX/[ses-XX/]anat/*_T2w.nii.gz, with *_dseg.nii.gz beside them or under derivatives."""

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
from ssl_medseg.io.file_types import is_image, stem
from ssl_medseg.io.label_map import LabelMap, read_label_map
from ssl_medseg.io.volume import join_channels

LABEL_SUFFIX = "dseg"
# What a label's name may say beyond its image's.
_OF_LABELS = frozenset(("space", "desc", "label", "res", "den", "seg", "atlas"))
_NO_IMAGES = frozenset((LABEL_SUFFIX, "mask", "probseg"))


_OF_SESSIONS = ("sub", "ses", "run")
"""Entities that tell images of one session from those of another; the others tell kinds of image apart."""


@dataclass(frozen=True)
class _File:
    path: Path
    entities: frozenset[tuple[str, str]]
    suffix: str

    @property
    def session(self) -> tuple[str, ...]:
        """Subject, session and run."""
        stated = dict(self.entities)
        return tuple(f"{name}-{stated[name]}" for name in _OF_SESSIONS if name in stated)

    @property
    def named_images(self) -> set[str]:
        """Words in a label's name that may be the kind of image it was drawn on: ``T2w``, ``space-T2w``."""
        return {key for key, value in self.entities if not value} | {v for k, v in self.entities if k == "space"}

    @property
    def kind(self) -> str:
        """What kind of image it is: ``T1w``, ``ce-gadolinium_T1w``."""
        _, *others = self.path.name.split("_")
        pairs = [part for part in others[:-1] if part.partition("-")[0] not in _OF_SESSIONS]
        return "_".join([*pairs, self.suffix])


def list_bids(root: Path, options: DataOptions) -> Listing:
    """Images of every subject and session, with the segmentation whose name has the same entities.

    Kinds of image with different suffixes are the channels of a case: T2w, FLAIR. The one that a segmentation is named
    after comes first, else the order is that of the alphabet; `DataOptions.channels` chooses some, in its order. Where
    there is one suffix, every image is a case. A label may say ``space``, ``desc``, ``seg`` and the like beyond its
    image's name. The values are named by the ``*dseg.tsv`` files (columns index and name), which must agree.

    Raises:
        UserError: the tables of label names cannot be read or contradict each other, or a channel was asked for that is
            not there.
    """
    files = [_parsed(path) for path in sorted(root.glob("**/sub-*.nii*")) if is_image(path) and path.is_file()]
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
    for there in cases:
        matching = _labels_of(there.values(), labels, suffixes)
        used.update(matching)
        first = next(iter(there.values()))
        own = stem(first.path) if len(channels) < 2 else "_".join(first.session)
        if len(matching) > 1:
            title = f"{own} has several labels: leave one, or list the cases in a CSV file"
            findings.append(Finding("error", "several_labels", title, [Item([label.name for label in matching])]))
        image = join_channels([options.image(each.path, name=channels[kind]) for kind, each in there.items()])
        lacks = tuple(called for kind, called in channels.items() if kind not in there)
        label = next(iter(matching), None)
        entries.append(Entry(own, image, label, "training", patient=first.session[0], lacks=lacks))
    # A label that was drawn on a kind of image that is not used is not missing its image.
    others = [
        label.path for label in labels
        if label.path not in used and not (options.channels and label.named_images & suffixes)
    ]  # fmt: skip
    chosen = {each.path for there in cases for each in there.values()}
    unchosen = [file.path for file in images if file.path not in chosen]
    if unchosen and options.channels:
        title = f"{several(len(unchosen), 'image')} of other kinds than {', '.join(options.channels)}, left out"
        findings.append(Finding("note", "other_kind", title))
    elif unchosen:
        title = f"{several(len(unchosen), 'image')} of a kind that their session has already, left out"
        findings.append(Finding("warning", "same_kind", title, [Item([path.name for path in unchosen])]))
    return Listing(
        name, root, "bids", entries, _own_map(root), labels_without_image=others, channels=list(channels.values()),
        findings=findings, set_aside=unchosen,
    )  # fmt: skip


def _channels(images: Sequence[_File], labels: Sequence[_File], options: DataOptions, name: str) -> dict[str, str]:
    """Kind of image -> name of its channel, in order; images of one suffix are one channel."""
    suffixes = {image.suffix for image in images}
    if len(suffixes) < 2:
        kinds = sorted(suffixes)
    else:
        kinds = sorted({image.kind for image in images}, key=str.casefold)
        drawn_on = {part for label in labels for part in label.named_images}
        kinds.sort(key=lambda kind: kind not in drawn_on and kind.rpartition("_")[2] not in drawn_on)
    chosen = choose_channels(dict(enumerate(kinds)), options.channels, named=True, source=name)
    return {kinds[number]: called for number, called in chosen.items()}


def _cases(images: Sequence[_File], channels: Mapping[str, str]) -> list[dict[str, _File]]:
    """Kind -> image of every case, in the order of the channels."""
    if len({image.suffix for image in images}) < 2:
        return [{image.suffix: image} for image in images]
    sessions: dict[tuple[str, ...], dict[str, _File]] = {}
    for image in images:
        if image.kind in channels:
            sessions.setdefault(image.session, {}).setdefault(image.kind, image)
    return [{kind: found[kind] for kind in channels if kind in found} for found in sessions.values()]


def is_bids(root: Path) -> bool:
    """Whether a folder has subjects in it."""
    return any(path.is_dir() for path in root.glob("sub-*"))


def _parsed(path: Path) -> _File:
    *pairs, suffix = stem(path).split("_")
    entities = (pair.partition("-") for pair in pairs)
    return _File(path, frozenset((key, value) for key, _, value in entities), suffix)


def _labels_of(there: Collection[_File], labels: Sequence[_File], suffixes: Set[str]) -> dict[Path, _File]:
    """The labels of a case: those that name one of its images or none, else those that name another of its session."""
    if len(suffixes) < 2:
        return {label.path: label for image in there for label in labels if _belongs(label, image)}
    session = next(iter(there)).session
    kinds = {word for image in there for word in (image.kind, image.suffix)}
    beyond = _OF_LABELS | suffixes | {name for image in there for name, _ in image.entities}
    own = [
        label for label in labels
        if label.session == session and {key for key, _ in label.entities} <= beyond
    ]  # fmt: skip
    nearest = [label for label in own if not (named := label.named_images & suffixes) or named & kinds]
    return {label.path: label for label in nearest or own}


def _belongs(label: _File, image: _File) -> bool:
    """The label says all that the image says, the suffix perhaps (sub-01_T2w_dseg), and no more than labels may."""
    beyond = {(key, value) for key, value in label.entities - image.entities if key not in _OF_LABELS}
    return image.entities <= label.entities and beyond <= {(image.suffix, "")}


def _own_map(root: Path) -> LabelMap | None:
    maps = {file: read_label_map(file) for file in sorted(root.glob(f"**/*{LABEL_SUFFIX}.tsv"))}
    if len(set(maps.values())) > 1:
        first, *others = maps
        other = next(file for file in others if maps[file] != maps[first])
        raise UserError(
            f"{other.relative_to(root)}: says {maps[other]}, and {first.relative_to(root)} says {maps[first]}; make "
            "them agree, or give --label-map"
        )
    return next(iter(maps.values()), None)
