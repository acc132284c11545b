"""nnU-Net's raw layout: imagesTr, labelsTr and imagesTs, a file for every channel of a case."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from contrastive_core.app.checks import Finding, Item
from contrastive_core.text import several
from ssl_medseg.datasets.layouts.decathlon import channel_names
from ssl_medseg.datasets.layouts.listing import Entry, Listing
from ssl_medseg.datasets.options import DataOptions
from ssl_medseg.io.file_types import images_in, stem
from ssl_medseg.io.label_map import label_map_of, read_json

_CHANNEL = re.compile(r"(.+)_(\d{4})$")


def list_nnunet(root: Path, options: DataOptions) -> Listing:
    """The cases of imagesTr with the labels in labelsTr, and those of imagesTs, which need none (labelsTs).

    An image file ends in its channel, ``_0000``; `DataOptions.channel` chooses where there are several. What the
    channels and the label values are is said by dataset.json.

    Raises:
        UserError: dataset.json cannot be read.
    """
    content: Mapping[str, Any] = read_json(root / "dataset.json") if (root / "dataset.json").is_file() else {}
    findings: list[Finding] = []
    entries: list[Entry] = []
    left_over: list[Path] = []
    numbers: set[int] = set()
    every: list[Path] = []
    for part, images, labels in (("training", "imagesTr", "labelsTr"), ("test", "imagesTs", "labelsTs")):
        files = _by_case(root / images, findings)
        numbers.update(number for channels in files.values() for number in channels)
        label_of = {stem(path): path for path in images_in(root / labels, series=False)}
        for name, channels in files.items():
            label = label_of.pop(name, None)
            image = replace(options.image(_chosen(channels, options)), channel=None)
            entries.append(Entry(name, image, label, part, is_unlabelled=part == "test"))
        left_over += label_of.values()
        every += [path for channels in files.values() for path in channels.values()]
        findings += _without_channel(files, options)
    names = channel_names(content)
    findings += _contradictions(content, names, numbers, every)
    return Listing(
        name=str(content.get("name") or root.name),
        root=root,
        layout="nnunet",
        entries=entries,
        labels=label_map_of(content, root / "dataset.json") if "labels" in content else None,
        labels_without_image=left_over,
        channels=[names[n] if n < len(names) else f"{n:04}" for n in sorted(numbers)],
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


def _chosen(channels: Mapping[int, Path], options: DataOptions) -> Path:
    number = min(channels) if options.channel is None else options.channel
    # A file that is not there is named in the finding below, not again as a missing image.
    return channels.get(number, next(iter(channels.values())))


def _contradictions(
    content: Mapping[str, Any], names: Sequence[str], numbers: set[int], files: Sequence[Path]
) -> Iterator[Finding]:
    """What dataset.json states otherwise than the names of the files."""
    if names and numbers and len(names) != max(numbers) + 1:
        found = ", ".join(f"_{number:04}" for number in sorted(numbers))
        title = f"dataset.json names {several(len(names), 'channel')} ({', '.join(names)}), and the files have {found}"
        yield Finding("warning", "channel_names", title)
    ending = content.get("file_ending")
    others = [path.name for path in files if isinstance(ending, str) and not path.name.endswith(ending)]
    if others:
        title = f"{several(len(others), 'file')} without the ending {ending} that dataset.json states"
        yield Finding("warning", "file_ending", title, [Item(others)])


def _without_channel(files: Mapping[str, Mapping[int, Path]], options: DataOptions) -> Iterator[Finding]:
    most = max(map(len, files.values()), default=0)
    fewer = [f"{name} ({', '.join(f'_{n:04}' for n in there)})" for name, there in files.items() if len(there) < most]
    if fewer and options.channel is None:
        title = f"{several(len(fewer), 'case')} with fewer channels than others, which have {most}"
        yield Finding("warning", "fewer_channels", title, [Item(fewer)])
    if options.channel is None:
        return
    short = [
        f"{name} (has {', '.join(map(str, there))})" for name, there in files.items() if options.channel not in there
    ]
    if short:
        title = f"{several(len(short), 'case')} without channel {options.channel}"
        yield Finding("error", "missing_channel", title, [Item(short)])
