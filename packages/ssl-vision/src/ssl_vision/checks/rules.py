"""Find problems from the facts about single images, the folders and the rows of a manifest."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from statistics import median_low
from typing import TypeVar

from contrastive_core.app.checks import Finding, Item, most_first
from contrastive_core.text import several, some_of
from contrastive_core.training.split_names import SPLITS
from contrastive_core.training.tables import similar_names
from ssl_vision.checks.facts import Facts
from ssl_vision.data.folder import (
    Layout,
    beside_classes,
    class_of,
    folder_layout,
    same_folders_in_classes,
    split_folder,
    unlabelled_class,
)
from ssl_vision.data.listing import Listing, list_folder, printable
from ssl_vision.data.manifest import read_manifest
from ssl_vision.data.open import locate

_TINY = 8
_LONG = 5
_NEARLY_ALL = 0.9
_MODES = {
    "1": "black and white",
    "L": "gray",
    "LA": "gray and alpha, composited over white",
    "P": "palette",
    "PA": "palette and alpha, composited over white",
    "RGBA": "RGB and alpha, composited over white",
    "RGBa": "RGB and alpha, composited over white",
    "CMYK": "CMYK, converted without colour profile",
    "YCbCr": "YCbCr",
    "LAB": "Lab",
}

Name = Callable[[Facts], str]
_K = TypeVar("_K")
_V = TypeVar("_V")


def unreadable(facts: Sequence[Facts], name: Name) -> Iterator[Finding]:
    """Find files that would stop training."""
    items = [Item([name(fact)], fact.problem) for fact in facts if fact.problem is not None]
    if items:
        yield Finding("error", "unreadable", f"{several(len(items), 'file')} cannot be read", items)


def duplicates(facts: Sequence[Facts], name: Name) -> Iterator[Finding]:
    """Find pictures that occur more than once: under two classes, in two splits, or twice."""
    contradictory, leaks, copies = [], [], []
    for group in _same_pixels(facts):
        same_bytes = group[0].file_hash and len({fact.file_hash for fact in group}) == 1
        item = Item([name(fact) for fact in group], "identical files" if same_bytes else "identical pixels")
        classes = {fact.class_name for fact in group} - {None}
        # A picture that is also among the unlabelled training images is no leak: its label is not known there.
        splits = {fact.split for fact in group if not fact.split.startswith("unlabel")}
        if len(classes) > 1:
            contradictory.append(item)
        if len(splits) > 1:
            leaks.append(item)
        if len(classes) <= 1 and len(splits) <= 1:
            copies.append(item)
    if contradictory:
        title = f"{several(len(contradictory), 'picture')} under more than one class: the labels contradict each other"
        yield Finding("error", "contradictory", title, contradictory)
    if leaks:
        title = f"{several(len(leaks), 'picture')} in more than one split: test images were used for training"
        yield Finding("error", "leaked", title, leaks)
    if copies:
        yield Finding("warning", "duplicate", f"{several(len(copies), 'picture')} stored more than once", copies)


def unlike_the_rest(facts: Sequence[Facts], name: Name) -> Iterator[Finding]:
    """Find pictures that are probably mistakes: of one colour, tiny, very long, or of a different size than most."""
    good = [fact for fact in facts if fact.problem is None]
    if not good:
        return
    sizes = most_first(Counter(fact.size for fact in good))
    typical, count = next(iter(sizes.items()))
    short = median_low(min(fact.size) for fact in good)
    blank = [Item([name(fact)]) for fact in good if fact.is_blank]
    dark = [Item([name(fact)]) for fact in good if fact.is_dark]
    stack = [Item([name(fact)]) for fact in good if fact.is_stack]
    tiny, long, other = [], [], []
    for fact in good:
        width, height = fact.size
        item = Item([name(fact)], f"{width}x{height} px")
        if min(fact.size) < max(_TINY, short / _TINY):
            tiny.append(item)
        elif max(fact.size) > _LONG * min(fact.size):
            long.append(item)
        elif fact.size != typical and count >= _NEARLY_ALL * len(good):
            other.append(item)
    for kind, items, what in (
        ("blank", blank, "of one colour"),
        ("tiny", tiny, f"very small: under {_TINY} px, or {_TINY} times smaller than usual here"),
        ("long", long, f"more than {_LONG} times as long as wide; a crop shows only a small part"),
        ("dark", dark, "nearly black: at most 12 of 16 bits are used; --bits 12 scales them"),
        ("stack", stack, "a stack of gray pages: the first is used; if they are channels, set --image-channels"),
        ("odd_size", other, f"of another size than nearly all others ({typical[0]}x{typical[1]} px)"),
    ):
        if items:
            yield Finding(
                "warning", kind, f"{several(len(items), 'file')} {'is' if len(items) == 1 else 'are'} {what}", items
            )


def converted(facts: Sequence[Facts], name: Name) -> Iterator[Finding]:
    """Find pictures that are converted when they are read."""
    by_mode: Mapping[str, list[str]] = _grouped(
        (fact.mode, name(fact)) for fact in facts if fact.mode != "RGB" and not fact.mode.endswith("channels")
    )
    if by_mode:
        items = [Item(files, f"{mode} ({_mode_in_words(mode)})") for mode, files in by_mode.items()]
        count = sum(len(files) for files in by_mode.values())
        yield Finding("note", "mode", f"{several(count, 'file')} not in RGB, converted when read", items)
    several_pictures = [name(fact) for fact in facts if fact.frames > 1 and not fact.is_stack]
    for kind, files, what in (
        ("turned", [name(fact) for fact in facts if fact.is_turned], "rotated or mirrored according to the EXIF block"),
        ("frames", several_pictures, "with several pictures: the first is used"),
        ("misnamed", [name(fact) for fact in facts if fact.is_misnamed], "with the suffix of another format"),
    ):
        if files:
            yield Finding("note", kind, f"{several(len(files), 'file')} {what}", [Item(files)])


def uneven_classes(classes: Mapping[str, Mapping[str, int]]) -> Iterator[Finding]:
    """Find single classes, and classes that are missing from a split."""
    if "train" not in classes:
        return
    train_counts = classes["train"]
    train_classes = [name for name, count in train_counts.items() if count]
    if len(train_classes) == 1:
        title = "one class in train: a classifier needs at least two; check where the labels come from"
        yield Finding("warning", "one_class", title, [Item(train_classes)])
    for split, counts in classes.items():
        unseen = [label for label in counts if counts[label] and not train_counts.get(label)]
        untested = [label for label in train_counts if train_counts[label] and not counts.get(label)]
        if unseen:
            title = (
                f"{several(len(unseen), 'class', 'classes')} of {split} without an image in train: cannot be learned"
            )
            yield Finding("error", "unseen_class", title, [Item(unseen)])
        if untested:
            title = f"{several(len(untested), 'class', 'classes')} of train without an image in {split}: not tested"
            yield Finding("warning", "untested_class", title, [Item(untested)])


def _same_pixels(facts: Iterable[Facts]) -> list[list[Facts]]:
    groups = _grouped((fact.pixel_hash, fact) for fact in facts if fact.problem is None)
    return [group for group in groups.values() if len(group) > 1]


def _grouped(pairs: Iterable[tuple[_K, _V]]) -> dict[_K, list[_V]]:
    groups: dict[_K, list[_V]] = defaultdict(list)
    for key, value in pairs:
        groups[key].append(value)
    return groups


def _mode_in_words(mode: str) -> str:
    return "16 bits, reduced to the high 8" if mode.startswith("I") else _MODES.get(mode, "converted")


def misplaced(data: str | os.PathLike[str], splits: Sequence[str]) -> Iterator[Finding]:
    """Find problems in the folders or rows of these splits; none for a named data set."""
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

    loose_images = beside_classes(listing)
    if loose_images and len(loose_images) < len(listing.images):
        title = (
            f"{several(len(loose_images), 'image')} of {split} beside class folders, so that the split has no labels"
        )
        yield Finding("warning", "beside_classes", title, item(loose_images))
    for note in similar_names({class_of(path) for path in listing.images} if not loose_images else ()):
        yield Finding("warning", "similar_classes", f"in {split}, {printable(note)}")
    for note in same_folders_in_classes(listing):
        yield Finding("warning", "nested_classes", f"in {split}, {note}")
    for note in unlabelled_class({class_of(path) for path in listing.images} if not loose_images else ()):
        yield Finding("warning", "unlabelled_class", f"in {split}, {note}")
    without = [] if loose_images else _folders_without_images(listing)
    # A folder with other files is often not meant as a class: label files, a run, results.
    other_folders = [name for name in without if any(path.startswith(f"{name}/") for path in listing.others)]
    empty = [name for name in without if name not in other_folders]
    if empty:
        title = f"{several(len(empty), 'folder')} in {split} without an image: a class is missing"
        yield Finding("error", "empty_class", title, item(empty))
    if other_folders:
        title = f"{several(len(other_folders), 'folder')} in {split} with other files but no image, not used as a class"
        yield Finding("warning", "no_class", title, item(other_folders))
    if listing.unread:
        title = (
            f"{several(len(listing.unread), 'image')} in {split} of an unsupported kind ({_endings(listing.unread)}): "
            "export as JPEG or PNG"
        )
        yield Finding("warning", "unread_kind", title, item(listing.unread))
    if listing.others:
        number = several(len(listing.others), "file")
        title = f"{number} in {split} that are not images ({_endings(listing.others)}), left out"
        yield Finding("note", "no_image", title, item(listing.others))
    if listing.hidden:
        title = f"{several(len(listing.hidden), 'hidden entry', 'hidden entries')} in {split}, left out"
        yield Finding("note", "hidden", title, item(listing.hidden))


def _beside_splits(layout: Layout) -> Iterator[Finding]:
    folders = {folder.relative_to(layout.root).parts[0] for folder in layout.splits.values()}
    names = sorted(entry.name for entry in layout.root.iterdir() if entry.name not in folders)
    entries = [printable(name) for name in names if not name.startswith(".")]
    if entries:
        title = f"{several(len(entries), 'entry', 'entries')} beside {', '.join(SPLITS)}, left out"
        yield Finding("note", "beside_splits", title, [Item(entries)])


def _folders_without_images(listing: Listing) -> list[str]:
    full = {class_of(path) for path in listing.images}
    return [folder for folder in listing.folders if "/" not in folder and class_of(f"{folder}/") not in full]


def _in_manifest(manifest: Path, splits: Sequence[str]) -> Iterator[Finding]:
    content = read_manifest(manifest)
    rows = content.rows
    for note in content.notes:
        yield Finding("warning", "manifest", note, [Item([manifest.name])])
    lines = [f"line {row.line}" for row in rows if not row.split]
    if lines:
        yield Finding("warning", "no_split", f"{several(len(lines), 'row')} without a split, left out", [Item(lines)])
    for split in splits:
        inside = [row for row in rows if row.split == split]
        bare = [f"line {row.line}" for row in inside if not row.label]
        if bare and len(bare) < len(inside):
            title = f"{several(len(bare), 'row')} of {split} without a label, so that the split has no labels"
            yield Finding("warning", "no_label", title, [Item(bare)])


def _endings(paths: Sequence[str]) -> str:
    counts = most_first(Counter(PurePosixPath(path).suffix.lower() or "no suffix" for path in paths))
    return some_of(f"{number} {ending}" for ending, number in counts.items())
