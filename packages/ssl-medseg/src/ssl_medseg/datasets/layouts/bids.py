"""BIDS-like trees: sub-XX/[ses-XX/]anat/*_T2w.nii.gz, with *_dseg.nii.gz beside them or under derivatives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from contrastive_core.app.checks import Finding, Item
from contrastive_core.errors import UserError
from contrastive_core.text import several
from ssl_medseg.datasets.layouts.listing import Entry, Listing
from ssl_medseg.datasets.options import DataOptions
from ssl_medseg.io.file_types import is_image, stem
from ssl_medseg.io.label_map import LabelMap, read_label_map

LABEL_SUFFIX = "dseg"
# What a label's name may say beyond its image's.
_OF_LABELS = frozenset(("space", "desc", "label", "res", "den", "seg", "atlas"))
_NO_IMAGES = frozenset((LABEL_SUFFIX, "mask", "probseg"))


@dataclass(frozen=True)
class _File:
    path: Path
    entities: frozenset[tuple[str, str]]
    suffix: str


def list_bids(root: Path, options: DataOptions) -> Listing:
    """Images of every subject and session, with the segmentation whose name has the same entities.

    A label may say ``space``, ``desc``, ``seg`` and the like beyond its image's name; where the image kinds are told
    apart by suffix only, `DataOptions.suffix` chooses one. The values are named by the ``*dseg.tsv`` files (columns
    index and name), which must agree.

    Raises:
        UserError: the tables of label names cannot be read or contradict each other.
    """
    files = [_parsed(path) for path in sorted(root.glob("**/sub-*.nii*")) if is_image(path) and path.is_file()]
    labels = [file for file in files if file.suffix == LABEL_SUFFIX]
    images = [
        file
        for file in files
        if file.suffix not in _NO_IMAGES and "derivatives" not in file.path.relative_to(root).parts
    ]  # fmt: skip
    kinds = sorted({file.suffix for file in images})
    chosen = [file for file in images if options.suffix in (None, file.suffix)]
    findings = list(_of_kinds(kinds, options))
    entries: list[Entry] = []
    used: set[Path] = set()
    for image in chosen:
        matching = [label for label in labels if _belongs(label, image)]
        used.update(label.path for label in matching)
        if len(matching) > 1:
            title = f"{stem(image.path)} has several labels: leave one, or list the cases in a CSV file"
            findings.append(Finding("error", "several_labels", title, [Item([m.path.name for m in matching])]))
        label = matching[0].path if matching else None
        file = options.image(image.path)
        entries.append(Entry(stem(image.path), file, label, "training", patient=f"sub-{dict(image.entities)['sub']}"))
    others = [label.path for label in labels if label.path not in used]
    unchosen = [file.path for file in images if file not in chosen]
    if unchosen and options.suffix is not None:
        title = f"{several(len(unchosen), 'image')} with other suffixes than {options.suffix}, left out as you say"
        findings.append(Finding("note", "other_suffix", title))
    return Listing(
        root.resolve().name, root, "bids", entries, _own_map(root), others, findings=findings, set_aside=unchosen
    )


def is_bids(root: Path) -> bool:
    """Whether a folder has subjects in it."""
    return any(path.is_dir() for path in root.glob("sub-*"))


def _parsed(path: Path) -> _File:
    *pairs, suffix = stem(path).split("_")
    entities = (pair.partition("-") for pair in pairs)
    return _File(path, frozenset((key, value) for key, _, value in entities), suffix)


def _belongs(label: _File, image: _File) -> bool:
    """The label says all that the image says, the suffix perhaps (sub-01_T2w_dseg), and no more than labels may."""
    beyond = {(key, value) for key, value in label.entities - image.entities if key not in _OF_LABELS}
    return image.entities <= label.entities and beyond <= {(image.suffix, "")}


def _of_kinds(kinds: Sequence[str], options: DataOptions) -> Iterator[Finding]:
    if options.suffix is not None and options.suffix not in kinds:
        title = f"no image has the suffix {options.suffix}; found {', '.join(kinds) or 'none at all'}"
        yield Finding("error", "suffix", title)
    if options.suffix is None and len(kinds) > 1:
        title = f"{several(len(kinds), 'kind')} of image ({', '.join(kinds)}): choose one with --suffix"
        yield Finding("error", "suffix", title)


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
