"""How the files of an image folder, or the rows of a manifest, lie: what is beside the place where it would count."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from contrastive_core.app.checks import Finding, Item, most_first, several
from ssl_vision.data.folder import SPLITS, Layout, beside_classes, class_of, folder_layout, split_folder
from ssl_vision.data.listing import Listing, list_folder, printable
from ssl_vision.data.manifest import read_manifest
from ssl_vision.data.open import locate


def misplaced(data: str | os.PathLike[str], splits: Sequence[str]) -> Iterator[Finding]:
    """Findings about the folders or rows of these splits; none for a data set by name."""
    name, path = locate(data)
    if name:
        return
    if path.is_file():
        yield from _in_manifest(path, splits)
        return
    layout = folder_layout(path)
    for note in layout.notes:
        yield Finding("warning", "layout", note)
    if layout.splits:
        yield from _beside_splits(layout)
    for split in splits:
        name, folder = split_folder(path, layout, split)
        yield from _in_split(folder, root=path, split=name)


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
    if listing.unread:
        title = (
            f"{several(len(listing.unread), 'image')} in {split} of a kind not read ({_endings(listing.unread)}): "
            "export as JPEG or PNG"
        )
        yield Finding("warning", "unread_kind", title, item(listing.unread))
    if listing.others:
        number = several(len(listing.others), "file")
        title = f"{number} in {split} of other kinds ({_endings(listing.others)}), left out"
        yield Finding("note", "no_image", title, item(listing.others))
    if listing.hidden:
        title = f"{several(len(listing.hidden), 'hidden entry', 'hidden entries')} in {split}, left out"
        yield Finding("note", "hidden", title, item(listing.hidden))


def _beside_splits(layout: Layout) -> Iterator[Finding]:
    folders = {folder.relative_to(layout.root).parts[0] for folder in layout.splits.values()}
    names = sorted(entry.name for entry in layout.root.iterdir() if entry.name not in folders)
    beside = [printable(name) for name in names if not name.startswith(".")]
    if beside:
        title = f"{several(len(beside), 'entry', 'entries')} beside {', '.join(SPLITS)}, left out"
        yield Finding("note", "beside_splits", title, [Item(beside)])


def _empty_classes(listing: Listing) -> list[str]:
    full = {class_of(path) for path in listing.images}
    return [folder for folder in listing.folders if "/" not in folder and folder not in full]


def _in_manifest(manifest: Path, splits: Sequence[str]) -> Iterator[Finding]:
    content = read_manifest(manifest)
    rows = content.rows
    for note in content.notes:
        yield Finding("warning", "manifest", note, [Item([manifest.name])])
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
