"""How the files of an image folder, or the rows of a manifest, lie: what is beside the place where it would count."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from contrastive_core.findings import Finding, Item, most_first, several
from ssl_vision.data.folder import SPLITS, beside_classes, class_of, split_folder
from ssl_vision.data.listing import Listing, list_folder, printable
from ssl_vision.data.manifest import read_manifest
from ssl_vision.data.open import locate

# Endings of images that are not read; leaving them out without a word would be a loss nobody notices.
_UNREAD = frozenset(
    f".{kind}"
    for kind in (
        "heic", "heif", "avif", "jp2", "j2k", "jxl", "psd", "svg", "tga", "ico",
        "dng", "cr2", "cr3", "nef", "arw", "orf", "rw2", "raw", "exr", "hdr", "dcm", "npy",
    )
)  # fmt: skip


def misplaced(data: str | os.PathLike[str], splits: Sequence[str]) -> Iterator[Finding]:
    """Findings about the folders or rows of these splits; none for a data set by name."""
    name, path = locate(data)
    if name:
        return
    if path.is_file():
        yield from _in_manifest(path, splits)
        return
    if any((path / split).is_dir() for split in SPLITS):
        yield from _beside_splits(path)
    for split in splits:
        yield from _in_split(split_folder(path, split), root=path, split=split)


def _in_split(folder: Path, *, root: Path, split: str) -> Iterator[Finding]:
    listing = list_folder(folder)
    prefix = "" if folder == root else f"{folder.relative_to(root).as_posix()}/"

    def item(paths: Sequence[str]) -> list[Item]:
        return [Item([printable(prefix + path) for path in paths])]

    beside = beside_classes(listing)
    if beside and len(beside) < len(listing.images):
        title = f"{several(len(beside), 'image')} of {split} beside class folders, so the split has no labels"
        yield Finding("warning", "beside_classes", title, item(beside))
    empty = [] if beside else _empty_classes(listing)
    if empty:
        title = f"{several(len(empty), 'folder')} in {split} without an image: a class is missing"
        yield Finding("error", "empty_class", title, item(empty))
    unread = [path for path in listing.others if PurePosixPath(path).suffix.lower() in _UNREAD]
    if unread:
        title = (
            f"{several(len(unread), 'image')} in {split} of a kind not read ({_endings(unread)}): export as JPEG or PNG"
        )
        yield Finding("warning", "unread_kind", title, item(unread))
    others = sorted(set(listing.others).difference(unread))
    if others:
        title = f"{several(len(others), 'file')} in {split} of other kinds ({_endings(others)}), left out"
        yield Finding("note", "no_image", title, item(others))
    if listing.hidden:
        title = f"{several(len(listing.hidden), 'hidden entry', 'hidden entries')} in {split}, left out"
        yield Finding("note", "hidden", title, item(listing.hidden))


def _beside_splits(root: Path) -> Iterator[Finding]:
    names = sorted(entry.name for entry in root.iterdir() if entry.name not in SPLITS)
    beside = [printable(name) for name in names if not name.startswith(".")]
    if beside:
        title = f"{several(len(beside), 'entry', 'entries')} beside {', '.join(SPLITS)}, left out"
        yield Finding("note", "beside_splits", title, [Item(beside)])


def _empty_classes(listing: Listing) -> list[str]:
    full = {class_of(path) for path in listing.images}
    return [folder for folder in listing.folders if "/" not in folder and folder not in full]


def _in_manifest(manifest: Path, splits: Sequence[str]) -> Iterator[Finding]:
    rows = read_manifest(manifest)
    nowhere = [f"line {row.line}" for row in rows if not row.split]
    if nowhere:
        yield Finding("warning", "no_split", f"{several(len(nowhere), 'row')} of no split, left out", [Item(nowhere)])
    for split in splits:
        inside = [row for row in rows if row.split == split]
        bare = [f"line {row.line}" for row in inside if not row.label]
        if bare and len(bare) < len(inside):
            title = f"{several(len(bare), 'row')} of {split} without a label, so the split has no labels"
            yield Finding("warning", "no_label", title, [Item(bare)])


def _endings(paths: Sequence[str]) -> str:
    counted = most_first(Counter(PurePosixPath(path).suffix.lower() or "no ending" for path in paths))
    shown = [f"{number} {ending}" for ending, number in list(counted.items())[:5]]
    return ", ".join(shown) + (", ..." if len(counted) > 5 else "")
