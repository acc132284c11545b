"""List data sets in the raw layout of nnU-Net: imagesTr, labelsTr and imagesTs, with a file per channel of a case."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from contrastive_core.app.checks import Finding, Item
from contrastive_core.text import several
from contrastive_core.training.documents import read_object
from ssl_medseg.datasets.channels import choose_channels, split_number, unique_names
from ssl_medseg.datasets.layouts.decathlon import channel_names
from ssl_medseg.datasets.layouts.listing import Entry, Listing
from ssl_medseg.datasets.options import DataOptions
from ssl_medseg.io.file_types import images_in, stem
from ssl_medseg.io.label_map import label_map_of
from ssl_medseg.io.volume import join_channels


def list_nnunet(root: Path, options: DataOptions) -> Listing:
    """List the cases of imagesTr with their labels in labelsTr, and those of imagesTs with optional labels in labelsTs.

    An image has one file per channel, whose name ends in the channel number, such as ``_0000``;
    `DataOptions.channels` selects some of them. dataset.json names the channels and the label values.

    Raises:
        UserError: dataset.json cannot be read, or a requested channel does not exist.
    """
    content: Mapping[str, Any] = read_object(root / "dataset.json") if (root / "dataset.json").is_file() else {}
    name = str(content.get("name") or root.name)
    findings: list[Finding] = []
    entries: list[Entry] = []
    left_over: list[Path] = []
    parts = (("training", "imagesTr", "labelsTr"), ("test", "imagesTs", "labelsTs"))
    files = {images: _by_case(root / images, findings) for _, images, _ in parts}
    numbers = {number for cases in files.values() for channels in cases.values() for number in channels}
    names = unique_names(channel_names(content), source=root / "dataset.json")
    available = {number: names[number] if number < len(names) else str(number) for number in sorted(numbers)}
    by_number = choose_channels(available, options.channels, named=bool(names), source=name) if numbers else {}
    for part, images, labels in parts:
        label_of = {stem(path): path for path in images_in(root / labels, series=False)}
        for case, channels in files[images].items():
            label = label_of.pop(case, None)
            channel_images = [
                replace(options.image(channels[n], name=title), number=n)
                for n, title in by_number.items()
                if n in channels
            ]
            lacks = tuple(title for n, title in by_number.items() if n not in channels)
            image = join_channels(channel_images or [options.image(next(iter(channels.values())))])
            entries.append(Entry(case, image, label, part, is_unlabelled=part == "test", lacks=lacks))
        left_over += label_of.values()
    every = [path for cases in files.values() for channels in cases.values() for path in channels.values()]
    findings += _contradictions(content, names, numbers, every, training=len(files["imagesTr"]))
    return Listing(
        name=name,
        root=root,
        layout="nnunet",
        entries=entries,
        labels=label_map_of(content, root / "dataset.json") if "labels" in content else None,
        labels_without_image=left_over,
        channels=list(by_number.values()),
        findings=findings,
        set_aside=every,
    )


def has_channel_suffix(path: Path) -> bool:
    """Return whether a file name ends in a channel number."""
    return split_number(stem(path)) is not None


def _by_case(folder: Path, findings: list[Finding]) -> dict[str, dict[int, Path]]:
    cases: dict[str, dict[int, Path]] = {}
    bare = []
    for path in images_in(folder):
        parts = split_number(stem(path))
        if parts is None:
            bare.append(path.name)
        else:
            cases.setdefault(parts[0], {})[parts[1]] = path
    if bare:
        title = f"{several(len(bare), 'file')} in {folder.name} without a channel number (_0000), left out"
        findings.append(Finding("error", "no_channel_number", title, [Item(bare)]))
    return cases


def _contradictions(
    content: Mapping[str, Any], names: Sequence[str], numbers: set[int], files: Sequence[Path], *, training: int
) -> Iterator[Finding]:
    """Find contradictions between dataset.json and the file names."""
    if names and numbers and set(numbers) != set(range(len(names))):
        suffixes = ", ".join(f"_{number:04}" for number in sorted(numbers))
        title = (
            f"dataset.json names {several(len(names), 'channel')} ({', '.join(names)}), but the files have {suffixes}"
        )
        yield Finding("warning", "channel_names", title)
    count = content.get("numTraining")
    if isinstance(count, int) and count != training:
        title = (
            f"dataset.json states {count} training cases (numTraining), but imagesTr contains {training}: check for "
            "missing images"
        )
        yield Finding("warning", "image_count", title)
    ending = content.get("file_ending")
    others = [path.name for path in files if isinstance(ending, str) and not path.name.endswith(ending)]
    if others:
        title = f"{several(len(others), 'file')} without the extension {ending} that dataset.json states"
        yield Finding("warning", "file_ending", title, [Item(others)])
