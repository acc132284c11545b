"""List Medical Segmentation Decathlon data sets, in which dataset.json lists images with their labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from contrastive_core.app.checks import Finding
from contrastive_core.errors import UserError
from contrastive_core.training.documents import read_object
from contrastive_core.training.names import check_path
from ssl_medseg.datasets.channels import choose_channels, unique_names
from ssl_medseg.datasets.layouts.listing import Entry, Listing, place
from ssl_medseg.datasets.options import DataOptions
from ssl_medseg.io.file_types import images_in, stem
from ssl_medseg.io.label_map import label_map_of
from ssl_medseg.io.volume import join_channels

# List -> whether its images need no label. MONAI's tutorials call a second list of labelled images `validation`.
_LISTS = {"training": False, "validation": False, "unlabeled": True, "unlabelled": True, "test": True}


def list_decathlon(file: Path, options: DataOptions) -> Listing:
    """List the cases in a dataset.json, from ``training``, ``validation``, ``unlabeled`` (``unlabelled``) and ``test``.

    The channels of an image are the volumes of a 4-D file, named by ``modality``, or a list of files.

    Raises:
        UserError: The file is not such a list.
    """
    content, root = read_object(file), file.parent
    names = unique_names(channel_names(content), source=file)
    entries = [
        _entry(item, part, file, options, names)
        for part in _LISTS
        for item in _items(content, part, file)
    ]  # fmt: skip
    paths = {path for entry in entries for path in (*entry.image.paths, entry.label)}
    folders = sorted({path.parent for entry in entries for path in entry.image.paths})
    label_folders = sorted({entry.label.parent for entry in entries if entry.label is not None} | {root / "labelsTr"})
    return Listing(
        name=str(content.get("name") or root.name),
        root=root,
        layout="decathlon",
        entries=entries,
        labels=label_map_of(content, file) if "labels" in content else None,
        labels_without_image=[p for folder in label_folders for p in images_in(folder, series=False) if p not in paths],
        unlisted=[
            path
            for folder in folders
            for path in images_in(folder)
            if path not in paths and folder not in label_folders
        ],
        channels=names,
        findings=list(_counts(content, entries)),
    )


def _counts(content: Mapping[str, Any], entries: Sequence[Entry]) -> Iterator[Finding]:
    """Find numbers of images in a dataset.json that its own lists contradict."""
    totals = Counter(entry.listed for entry in entries)
    # Some lists keep the labelled images that MONAI's tutorials call validation within numTraining, others do not.
    for part, key, counts in (
        ("training", "numTraining", {totals["training"], totals["training"] + totals["validation"]}),
        ("test", "numTest", {totals["test"]}),
    ):
        number = content.get(key)
        if isinstance(number, int) and number not in counts:
            title = (
                f"dataset.json states {number} images for {part} ({key}), but lists {totals[part]}: check for missing "
                "images"
            )
            yield Finding("warning", "image_count", title)


def channel_names(content: Mapping[str, Any]) -> list[str]:
    """Return the names of the channels in a dataset.json, in the order of their numbers."""
    names = content.get("channel_names") or content.get("modality") or {}
    if not isinstance(names, dict):
        return []
    return [str(name) for _, name in sorted(names.items(), key=lambda pair: (len(str(pair[0])), str(pair[0])))]


def _items(content: Mapping[str, Any], part: str, file: Path) -> list[Any]:
    items = content.get(part, [])
    if not isinstance(items, list):
        raise UserError(f"{file}: {part!r} is a {type(items).__name__}, expected a list of images")
    return items


def _entry(item: Any, part: str, file: Path, options: DataOptions, names: Sequence[str]) -> Entry:
    if isinstance(item, str):
        item = {"image": item}
    image, label = (item.get("image"), item.get("label")) if isinstance(item, dict) else (None, None)
    images: list[Any] = image if isinstance(image, list) else [image]
    if not images or not all(isinstance(each, str) for each in images) or not isinstance(label, str | None):
        raise UserError(f"{file}: found {item!r} in {part!r}, expected a path or {{'image': path, 'label': path}}")
    for path in (*images, *([label] if label else [])):
        check_path(path, what="path", source=file)
    root = file.parent
    entry = Entry(
        name=stem(place(root, images[0])),
        image=options.image(place(root, images[0])),
        label=place(root, label) if label else None,
        listed="unlabelled" if part == "unlabeled" else part,
        is_unlabelled=_LISTS[part],
    )
    return (
        entry if len(images) == 1 else _of_several(entry, [place(root, each) for each in images], file, options, names)
    )


def _of_several(entry: Entry, paths: Sequence[Path], file: Path, options: DataOptions, names: Sequence[str]) -> Entry:
    """Create the entry of an image that is listed with a file per channel, as in MONAI's data lists."""
    every = max(len(paths), len(names))
    available = {number: names[number] if number < len(names) else str(number) for number in range(every)}
    channels = choose_channels(available, options.channels, named=bool(names), source=str(file))
    images = [options.image(paths[number], name=name) for number, name in channels.items() if number < len(paths)]
    lacks = tuple(name for number, name in channels.items() if number >= len(paths))
    return replace(entry, image=join_channels(images or [entry.image]), lacks=lacks)
