"""nnU-Net's raw layout: imagesTr, labelsTr and imagesTs, a file for every channel of a case."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from contrastive_core.app.checks import Finding, Item
from contrastive_core.text import several
from ssl_medseg.datasets.channels import choose_channels, unique_names
from ssl_medseg.datasets.layouts.decathlon import channel_names
from ssl_medseg.datasets.layouts.listing import Entry, Listing
from ssl_medseg.datasets.options import DataOptions
from ssl_medseg.io.file_types import images_in, stem
from ssl_medseg.io.label_map import label_map_of, read_json
from ssl_medseg.io.volume import join_channels

_CHANNEL = re.compile(r"(.+)_(\d{4})$")


def list_nnunet(root: Path, options: DataOptions) -> Listing:
    """The cases of imagesTr with the labels in labelsTr, and those of imagesTs, which need none (labelsTs).

    An image has a file for every channel, which ends in its number, ``_0000``; `DataOptions.channels` chooses some of
    them. What the channels and the label values are is said by dataset.json.

    Raises:
        UserError: dataset.json cannot be read, or a channel was asked for that is not there.
    """
    content: Mapping[str, Any] = read_json(root / "dataset.json") if (root / "dataset.json").is_file() else {}
    name = str(content.get("name") or root.name)
    findings: list[Finding] = []
    entries: list[Entry] = []
    left_over: list[Path] = []
    parts = (("training", "imagesTr", "labelsTr"), ("test", "imagesTs", "labelsTs"))
    files = {images: _by_case(root / images, findings) for _, images, _ in parts}
    numbers = {number for cases in files.values() for channels in cases.values() for number in channels}
    names = unique_names(channel_names(content))
    available = {number: names[number] if number < len(names) else str(number) for number in sorted(numbers)}
    chosen = choose_channels(available, options.channels, named=bool(names), source=name) if numbers else {}
    for part, images, labels in parts:
        label_of = {stem(path): path for path in images_in(root / labels, series=False)}
        for case, channels in files[images].items():
            label = label_of.pop(case, None)
            there = [
                replace(options.image(channels[n], name=title), number=n)
                for n, title in chosen.items()
                if n in channels
            ]
            lacks = tuple(title for n, title in chosen.items() if n not in channels)
            image = join_channels(there or [options.image(next(iter(channels.values())))])
            entries.append(Entry(case, image, label, part, is_unlabelled=part == "test", lacks=lacks))
        left_over += label_of.values()
    every = [path for cases in files.values() for channels in cases.values() for path in channels.values()]
    findings += _contradictions(content, names, numbers, every)
    return Listing(
        name=name,
        root=root,
        layout="nnunet",
        entries=entries,
        labels=label_map_of(content, root / "dataset.json") if "labels" in content else None,
        labels_without_image=left_over,
        channels=list(chosen.values()),
        findings=findings,
        set_aside=every,
    )


def has_channel_suffix(path: Path) -> bool:
    """Whether a file ends in the number of its channel."""
    return _CHANNEL.match(stem(path)) is not None


def _by_case(folder: Path, findings: list[Finding]) -> dict[str, dict[int, Path]]:
    found: dict[str, dict[int, Path]] = {}
    bare = []
    for path in images_in(folder):
        match = _CHANNEL.match(stem(path))
        if match is None:
            bare.append(path.name)
        else:
            found.setdefault(match[1], {})[int(match[2])] = path
    if bare:
        title = f"{several(len(bare), 'file')} in {folder.name} without the number of its channel (_0000), left out"
        findings.append(Finding("error", "no_channel_number", title, [Item(bare)]))
    return found


def _contradictions(
    content: Mapping[str, Any], names: Sequence[str], numbers: set[int], files: Sequence[Path]
) -> Iterator[Finding]:
    """What dataset.json states otherwise than the names of the files."""
    if names and numbers and set(numbers) != set(range(len(names))):
        found = ", ".join(f"_{number:04}" for number in sorted(numbers))
        title = f"dataset.json names {several(len(names), 'channel')} ({', '.join(names)}), and the files have {found}"
        yield Finding("warning", "channel_names", title)
    ending = content.get("file_ending")
    others = [path.name for path in files if isinstance(ending, str) and not path.name.endswith(ending)]
    if others:
        title = f"{several(len(others), 'file')} without the ending {ending} that dataset.json states"
        yield Finding("warning", "file_ending", title, [Item(others)])
