"""Read image folders: their splits, their classes and their images."""

from __future__ import annotations

import itertools
import os
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from contrastive_core.errors import UserError
from contrastive_core.text import several, some_of
from contrastive_core.training.files import is_hidden
from contrastive_core.training.split_names import SPLITS, canonical_split, find_splits, split_word
from contrastive_core.training.tables import similar_names
from ssl_vision.data.dataset import ADD_LABELS, ReadOptions
from ssl_vision.data.decode import FileImages
from ssl_vision.data.listing import EXTENSIONS, Listing, holds_image, identity_of, is_image, list_folder, printable


@dataclass(frozen=True)
class Layout:
    """Arrangement of an image folder.

    Attributes:
        root: Folder with the splits, or with the classes if there are no splits.
        splits: Split -> its folder; empty without splits.
        notes: Sentences on what was inferred from folder names, and on images left out.
    """

    root: Path
    splits: Mapping[str, Path]
    notes: tuple[str, ...] = ()


def folder_layout(root: Path) -> Layout:
    """Find the splits of an image folder, for various spellings and within the nested folders of an unpacked archive.

    Folders named train, training, val, valid, validation, dev, test or testing are splits, in any case and with words
    such as ``_set`` or ``_images`` added; so are several folders that differ only in that word (seg_train, seg_test).
    A folder whose only content is another folder is replaced by that folder. A single folder named like a split that
    holds images directly, beside at least two others that do, is a class.

    Raises:
        UserError: There are two folders for one split, a folder that could be a split or a class, or training images
            that are linked into another split.
    """
    notes: list[str] = []
    folder = _without_wrapping(root)
    if folder != root:
        notes.append(f"the images are in {_relative(folder, root)}, which is opened instead of {root.name}")
    names = _subfolders(folder)
    splits = find_splits(folder, names)
    if not splits:
        return Layout(folder, {}, tuple(notes))
    other_folders = [name for name in names if name not in splits.values() and holds_image(folder / name)]
    if other_folders and not any(holds_image(folder / name) for name in splits.values()):
        # The results of a command, for example, in a folder called val beside the classes.
        notes += [f"{printable(name)} is not used as a split, because it holds no images" for name in splits.values()]
        return Layout(folder, {}, tuple(notes))
    if len(splits) == 1 and other_folders and _is_class(folder, *splits.values(), other_folders=other_folders):
        (name,) = splits.values()
        notes.append(
            f"the folder {name} is used as a class, not as a split, because it is beside "
            f"{printable(some_of(other_folders))}"
        )
        return Layout(folder, {}, tuple(notes))
    renames = [f"{splits[split]} as {split}" for split in SPLITS if splits.get(split, split) != split]
    if renames:
        notes.append(f"folders used as splits: {', '.join(renames)}")
    notes += _left_out(folder, other_folders)
    paths: dict[str, Path] = {}
    for split in SPLITS:
        if split in splits:
            paths[split] = _without_repetition(folder / splits[split])
    notes += _shared_by_splits(folder, paths)
    return Layout(folder, paths, tuple(notes))


def open_folder(
    root: Path,
    *,
    split: str,
    channels: int = 3,
    read: ReadOptions = ReadOptions(),  # noqa: B008 - frozen
) -> FileImages:
    """Open ``root/<split>/<class>/*``, ``root/<class>/*`` or a folder of images without classes.

    Images have classes if all of them lie in subfolders; the class names are the names of these folders, in Unicode's
    composed form (NFC). Hidden files and folders are skipped, links are followed. The order is that of the sorted
    relative paths, on every file system. If there is no test split, ``val`` is used in its place. See `folder_layout`
    for the accepted names of splits; beside them, any other folder is opened by its name (``unlabeled``).

    Labels number the sorted class names of the training split and of this split. A class without test images therefore
    keeps the number it had in training, and a class without training images is still listed.

    Raises:
        UserError: There are no images, there is no such split, or class folders contain split folders.
    """
    layout = folder_layout(root)
    split_name, folder = split_folder(root, layout, split)
    listing = list_folder(folder)
    if not listing.images:
        unread = f" {unread_text(listing.unread)}" if listing.unread else ""
        files = several(len(listing.others) + len(listing.unread), "file")
        raise UserError(
            f"{folder}: found no images among {files}, expected files with the suffix {', '.join(sorted(EXTENSIONS))}."
            f"{unread}"
        )
    notes = [f"{root}: {note}" for note in layout.notes]
    if listing.unread:
        notes.append(f"{folder}: {unread_text(listing.unread)}")
    _refuse_splits_in_classes(folder, listing)
    notes += [
        f"{folder}: {printable(' and '.join(paths))} are the same folder, because of a link; its images are counted "
        f"{len(paths)} times"
        for paths in listing.same
    ]
    loose_images = beside_classes(listing)
    if loose_images:
        reason = (
            "images without a class folder"
            if len(loose_images) == len(listing.images)
            else f"{loose_images[0]} beside classes"
        )
        return FileImages(
            str(folder), folder, listing.images, unlabelled=f"found {reason}, {ADD_LABELS}", split=split_name,
            notes=notes, unread=listing.unread, channels=channels, options=read,
        )  # fmt: skip
    _refuse_shared_by_classes(folder, listing)
    names = [class_of(path) for path in listing.images]
    notes += [f"{folder}: {note}" for note in (*unlabelled_class({*names}), *same_folders_in_classes(listing))]
    training = set() if split_name == "train" else _training_classes(layout)
    if training and names[0] not in training and set(names) == {names[0]} and names[0].lower() in _NO_CLASS_NAMES:
        # Tiny ImageNet, for example, has val/images beside train/<class>/images.
        reason = f"found all images in the folder {names[0]}, which is not a class of the training images"
        notes.append(f"{folder}: {printable(reason.removeprefix('found '))}, so that they have no labels")
        return FileImages(
            str(folder), folder, listing.images, unlabelled=f"{reason}, {ADD_LABELS}", split=split_name,
            notes=notes, unread=listing.unread, channels=channels, options=read,
        )  # fmt: skip
    classes = sorted(training.union(names))
    notes += [f"{root}: {printable(note)}" for note in similar_names(classes)]
    number = {name: label for label, name in enumerate(classes)}
    return FileImages(
        str(folder), folder, listing.images, labels=[number[name] for name in names], classes=classes, split=split_name,
        notes=notes, unread=listing.unread, channels=channels, options=read,
    )  # fmt: skip


_NO_CLASS_NAMES = frozenset(
    {
        *("images", "image", "imgs", "img", "jpg", "jpeg", "jpegimages", "png", "pictures", "photos", "data", "files"),
        *("all", "unknown", "unlabeled", "unlabelled"),
    }
)
"""Names of folders that hold images of all classes."""


def folder_splits(root: Path) -> list[str]:
    """List the splits of an image folder; without split folders, all images are ``train``."""
    return list(folder_layout(root).splits) or ["train"]


def split_folder(root: Path, layout: Layout, split: str) -> tuple[str, Path]:
    """Return the split that is used for a requested one, and its folder.

    Raises:
        UserError: There is no folder for the split.
    """
    split = canonical_split(split)
    folder_names = {name: folder.name for name, folder in layout.splits.items()}
    if not folder_names:
        if split in ("train", "all"):
            return split, layout.root
        raise UserError(
            f"{root}: found no folder of a split ({', '.join(SPLITS)}), expected {root / split}; all images here "
            "belong to split train. Add the folder, or give a CSV manifest with a column split"
        )
    for name in (split, "val") if split == "test" else (split,):
        if name in layout.splits:
            return name, layout.splits[name]
    if split in _subfolders(layout.root) and holds_image(layout.root / split):  # such as unlabeled
        return split, layout.root / split
    raise UserError(
        f"{root}: found {'the folder' if len(folder_names) == 1 else 'the folders'} "
        f"{', '.join(folder_names.values())}, expected {root / split}; name another split or add the folder"
    )


def class_of(path: str) -> str:
    """Return the class of an image in a class folder, by its relative path."""
    return unicodedata.normalize("NFC", path.partition("/")[0])


def beside_classes(listing: Listing) -> list[str]:
    """Return the images outside class folders."""
    return [path for path in listing.images if "/" not in path]


def same_folders_in_classes(listing: Listing) -> list[str]:
    """A sentence about class folders that hold mostly the same folders: centres, folds or splits above the classes."""
    inside: dict[str, set[str]] = {}
    for path in listing.images:
        name, _, rest = path.partition("/")
        inside.setdefault(name, set()).add(rest.partition("/")[0] if "/" in rest else "")
    if len(inside) < 2:
        return []
    everywhere, anywhere = set.intersection(*inside.values()), set.union(*inside.values())
    if len(everywhere) < 2 or "" in anywhere or 2 * len(everywhere) <= len(anywhere):
        return []
    return [
        f"{printable(some_of(sorted(inside)))} are used as the classes, and each contains the same folders, "
        f"{printable(some_of(sorted(everywhere)))}; if those are the classes, give a CSV manifest, or one folder per "
        "class"
    ]


def unlabelled_class(classes: Iterable[str]) -> list[str]:
    """A sentence about a class folder whose name says that its images have no label."""
    return [
        f"the folder {printable(name)} is used as a class; if its images have no label, move it beside the folder of "
        "the training images"
        for name in sorted(classes)
        if name.casefold().startswith(("unlabel", "no_label", "nolabel"))
    ]


def _refuse_shared_by_classes(folder: Path, listing: Listing) -> None:
    for paths in listing.same:
        classes = sorted({class_of(f"{path}/") for path in paths})
        if len(classes) > 1 and any(path.startswith(f"{paths[0]}/") for path in listing.images):
            raise UserError(
                f"{folder}: {printable(' and '.join(paths))} are the same folder, because of a link, and its images "
                f"would be in the classes {printable(' and '.join(classes))} at once; remove the link, or give a CSV "
                "manifest"
            )


def _shared_by_splits(folder: Path, splits: Mapping[str, Path]) -> list[str]:
    """Describe folders that links make part of two splits.

    Raises:
        UserError: One of the splits is the training split.
    """
    owner: dict[tuple[int, int], tuple[str, Path]] = {}
    notes = []
    for split, path in splits.items():
        for location in (path, *(path / name for name in _subfolders(path))):
            first, other = owner.setdefault(identity_of(location), (split, location))
            if first == split:
                continue
            same = (
                f"{_relative(other, folder)} and {_relative(location, folder)} are the same folder, because of a link"
            )
            if first == "train":
                raise UserError(
                    f"{folder}: {same}, so that training images would be in split {split}, too; remove the link, or "
                    "give a CSV manifest"
                )
            notes.append(f"{same}; a model that is validated on {first} cannot be tested on {split}")
            if location == path:
                break
    return notes


def unread_text(unread: Sequence[str]) -> str:
    """Describe images of unsupported kinds in a sentence."""
    endings = sorted({path[path.rfind(".") :].lower() for path in unread})
    count = several(len(unread), "image")
    return f"{count} of an unsupported kind ({', '.join(endings)}) left out; convert to JPEG or PNG"


def _subfolders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in _entries(folder) if entry.is_dir())


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """Return the entries of a folder, except hidden files and folders."""
    try:
        entries = list(os.scandir(folder))
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed ({error.strerror}); check its permissions") from error
    return [entry for entry in entries if not is_hidden(entry.name)]


def _is_class(folder: Path, name: str, *, other_folders: Sequence[str]) -> bool:
    """Whether the only folder named like a split is a class among the folders beside it.

    Raises:
        UserError: The folder could be a split or a class.
    """
    if _holds_classes(folder / name) or any(_holds_classes(folder / other) for other in other_folders):
        return False
    if not holds_image(folder / name):
        return False
    if len(other_folders) > 1:
        return True
    raise UserError(
        f"{folder}: found the folders {name} and {other_folders[0]}, which both hold images; {name} could be a split "
        f"or a class. Rename {name} if it is a class, move {other_folders[0]} away if {name} is a split, or give a CSV "
        "manifest"
    )


def _holds_classes(folder: Path) -> bool:
    return any(holds_image(folder / name) for name in _subfolders(folder))


def _without_wrapping(root: Path) -> Path:
    """Follow a chain of single folders to its end, if there are splits or several classes."""
    folder = root
    while True:
        if _holds_images_itself(folder):
            return root
        names = _subfolders(folder)
        if find_splits(folder, names):
            return folder
        full = list(itertools.islice((name for name in names if holds_image(folder / name)), 2))
        if len(full) != 1:
            return folder if full else root
        folder = folder / full[0]


def _without_repetition(folder: Path) -> Path:
    """Return the folder of a split, or the only folder in it if it has the same name: seg_train/seg_train."""
    names = _subfolders(folder)
    if not _holds_images_itself(folder) and len(names) == 1:
        inner = split_word(names[0])
        repeats = inner is not None and inner.is_whole and inner.split == canonical_split(folder.name)
        if names[0] == folder.name or repeats:
            return folder / names[0]
    return folder


def _holds_images_itself(folder: Path) -> bool:
    return any(is_image(entry.name) for entry in _entries(folder))


def _refuse_splits_in_classes(folder: Path, listing: Listing) -> None:
    inside = [path.partition("/")[::2] for path in listing.folders if path.count("/") == 1]
    by_class: dict[str, set[str]] = {}
    for parent, name in inside:
        word = split_word(name)
        if word and word.is_whole:
            by_class.setdefault(parent, set()).add(word.split)
    mixed = [parent for parent, splits in by_class.items() if len(splits) > 1]
    if mixed:
        example = next(f"{p}/{n}" for p, n in inside if p == mixed[0] and (w := split_word(n)) and w.is_whole)
        raise UserError(
            f"{folder}: found split folders inside class folders ({printable(example)}), expected "
            "<split>/<class>/*; training images and test images would be mixed. Swap the two levels, or give a CSV "
            "manifest with a column split"
        )


def _left_out(folder: Path, other_folders: Sequence[str]) -> list[str]:
    """Describe images beside the split folders in a sentence."""
    counts = [
        (f"{name} ({count:,})", count) for name in other_folders if (count := len(list_folder(folder / name).images))
    ]
    loose = sum(is_image(entry.name) for entry in _entries(folder))
    if loose:
        counts.append((f"no folder ({loose:,})", loose))
    if not counts:
        return []
    total = sum(count for _, count in counts)
    breakdown = printable(some_of([text for text, _ in counts]))
    return [f"{several(total, 'image')} beside the split folders left out: in {breakdown}"]


def _relative(folder: Path, root: Path) -> str:
    return printable(folder.relative_to(root).as_posix())


def _training_classes(layout: Layout) -> set[str]:
    train = layout.splits.get("train")
    if train is None:
        return set()
    return {class_of(name) for name in _subfolders(train) if holds_image(train / name)}
