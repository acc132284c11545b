"""Select and order the channels of images, and match them to those of a model."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from contrastive_core.app.checks import Finding, Item
from contrastive_core.errors import UserError
from contrastive_core.text import several
from contrastive_core.training.names import check_label, check_labels
from ssl_medseg.datasets.layouts.listing import Entry, Listing
from ssl_medseg.datasets.options import DataOptions
from ssl_medseg.io.dicom import NoImagesError, Series, list_series
from ssl_medseg.io.file_types import is_series, walk
from ssl_medseg.io.read import volumes_in
from ssl_medseg.io.volume import ImageFile, join_channels

_NUMBERED = re.compile(r"(.+)_(\d{4})$")

UNNAMED = "image"
"""Name of the only channel of single-channel images without a stated name."""


def parse_channels(entries: Sequence[str]) -> list[tuple[str, str]]:
    """Parse the entries of ``--channels`` into pairs: name in the data, name of the channel.

    >>> parse_channels(["T2", "ADC=ep2d_diff_ADC"])
    [('T2', 'T2'), ('ep2d_diff_ADC', 'ADC')]
    """
    pairs = []
    for entry in entries:
        name, equals, source = entry.partition("=")
        pairs.append(((source if equals else name).strip(), name.strip()))
    names = [name for _, name in pairs]
    if not all(source and name for source, name in pairs) or len(set(names)) < len(names):
        raise UserError(f"--channels is {','.join(entries)}; expected distinct names or numbers, such as T2,ADC")
    for name in names:
        check_label(name, what="channel", source="--channels")
    return pairs


def split_number(name: str) -> tuple[str, int] | None:
    """Split a file name that ends in a channel number, as in nnU-Net, into case and number; None if it does not.

    >>> split_number("case_0001")
    ('case', 1)
    """
    match = _NUMBERED.match(name)
    return None if match is None else (match[1], int(match[2]))


def split_ending(name: str, pairs: Sequence[tuple[str, str]]) -> tuple[str, str] | None:
    """Split the relative name of a file into case and channel; None if it names no channel.

    The channel is the end of the name or, in a folder of the case, the whole name. Case is ignored, and the longest
    channel name that fits is used.

    Args:
        name: Relative name without extension.
        pairs: Name in the data, name of the channel, as returned by `parse_channels`.

    >>> split_ending("case_t2", [("T2", "T2"), ("ADC", "ADC")])
    ('case', 'T2')
    """
    folder, _, own = name.rpartition("/")
    for key, channel in sorted(pairs, key=lambda pair: -len(pair[0])):
        if key.isdecimal():
            continue
        if own.casefold() == key.casefold() and folder:
            return folder, channel
        start = own[: -len(key)]
        if own.casefold().endswith(key.casefold()) and start[-1:] in ("_", "-", ".", " ") and start.strip("_-. "):
            return f"{folder}/{start[:-1]}" if folder else start[:-1], channel
    return None


def choose_channels(
    available: Mapping[int, str], entries: Sequence[str], *, named: bool, source: str
) -> dict[int, str]:
    """Choose the channels to use, as an ordered map from number to name.

    Args:
        available: Number -> name of every available channel.
        entries: Entries of ``--channels``: a name or number, or NAME=NAME_OR_NUMBER. If empty, all channels are used.
        named: Whether the data name their channels. If not, non-numeric entries name them in order.
        source: Name of the data set, for errors.

    Raises:
        UserError: A channel does not exist or is named twice, or the number of names differs from that of channels.
    """
    if not entries:
        return dict(available)
    pairs = parse_channels(entries)
    places = [_place(key, available) for key, _ in pairs]
    names = ", ".join(f"{number} {name}" if named else str(number) for number, name in available.items())
    if not named and all(place is None for place in places) and not any("=" in entry for entry in entries):
        if len(pairs) != len(available):
            raise UserError(
                f"{source}: --channels has {several(len(pairs), 'name')} ({', '.join(entries)}) for "
                f"{several(len(available), 'unnamed channel')}; expected a name for each, or numbers"
            )
        return {number: name for number, (_, name) in zip(available, pairs, strict=True)}
    for (key, _), place in zip(pairs, places, strict=True):
        if place is None:
            raise UserError(f"{source} has no channel {key!r}; its channels are {names or 'none'}")
    channels: dict[int, str] = {}
    for (key, name), place in zip(pairs, places, strict=True):
        if place is not None and place in channels:
            raise UserError(f"{source}: --channels names the channel {key} twice")
        if place is not None:
            # A number without a name selects the channel under the name that the data give it.
            channels[place] = available[place] if named and name == key else name
    return channels


def fit_channels(image: ImageFile, names: Sequence[str], numbers: Sequence[int] = ()) -> ImageFile:
    """Select the channels that a model was trained with, in its order.

    Args:
        image: Image with its channels.
        names: Names of the channels of the model.
        numbers: Numbers of these channels in the training data, if they were numbered; unnamed channels are matched by
            number.

    Raises:
        UserError: The image lacks a channel, or its channels are not named.
    """
    available = image.channel_names
    if len(available) == len(names) == 1 or available == tuple(names):
        return image
    places: dict[str, ImageFile] = {channel.name.casefold(): channel for channel in image.channels}
    missing = [name for name in names if name.casefold() not in places]
    if not missing:
        return join_channels([places[name.casefold()] for name in names])
    by_number = _by_number(image, numbers)
    if by_number:
        return join_channels([replace(each, name=name) for each, name in zip(by_number, names, strict=True)])
    expected = f"was trained with {', '.join(names)}"
    if tuple(names) == (UNNAMED,):
        content = f"has {several(len(available), 'channel')} ({', '.join(available)})"
        expected, remedy = "was trained with one channel", f"choose one, as in --channels {available[0]}"
    elif any(name and not name.isdecimal() for name in available):
        content = f"has {'the channels' if len(available) > 1 else 'the channel'} {', '.join(available)}"
        remedy = f"add {' and '.join(missing)}, or map its name in the data: --channels {missing[0]}=..."
    elif len(available) < len(names):
        content = f"has {several(len(available), 'unnamed channel')}"
        remedy = f"name the files of a case after the channels: CASE_{names[0]}, CASE_{names[1]}"
    else:
        content = f"has {several(len(available), 'unnamed channel')}"
        remedy = f"state their order, for example --channels {','.join(names)}"
    raise UserError(f"{image.path}: {content}; the model {expected}. {remedy[0].upper()}{remedy[1:]}")


def _by_number(image: ImageFile, numbers: Sequence[int]) -> list[ImageFile]:
    """Select channels by number; empty if the image names its channels, or if the numbers are not conclusive.

    The volumes of a 4-D file may be time points, so their number must equal the number of channels.
    """
    channels = {channel.number: channel for channel in image.channels}
    in_one_file = any(channel.channel is not None for channel in image.channels)
    if None in channels or any(channel.name != str(channel.number) for channel in image.channels):
        return []
    if not numbers or not set(numbers) <= set(channels) or (in_one_file and len(channels) != len(numbers)):
        return []
    return [channels[number] for number in numbers]


def choose_series(candidates: Sequence[Series], text: str) -> Series:
    """Find the series whose description equals or contains a text, ignoring case.

    Raises:
        UserError: No series matches, or several match equally well.
    """
    key, words = text.casefold(), set(_words(text))
    exact = [series for series in candidates if series.description.casefold() == key]
    by_word = [series for series in candidates if words and words <= set(_words(series.description))]
    by_part = [series for series in candidates if key in series.description.casefold()]
    matches = exact or by_word or by_part
    if len(matches) == 1:
        return matches[0]
    descriptions = ", ".join(series.description or "without a description" for series in matches or candidates)
    how_many = f"{len(matches)} series match {text!r}" if matches else f"no series matches {text!r}"
    raise UserError(f"{how_many} ({descriptions})")


def apply_channels(listing: Listing, options: DataOptions) -> Listing:
    """Split images with several channels: the volumes of a 4-D file, or the series of a DICOM study.

    Images for which the layout lists a file per channel are left unchanged.

    Raises:
        UserError: ``--channels`` names a channel that does not exist.
    """
    whole = [entry for entry in listing.entries if _is_whole(entry)]
    folders = {entry.name for entry in whole if entry.image.path.is_dir()}
    files = [entry for entry in whole if entry.name not in folders]
    if not whole:
        return listing
    findings: list[Finding] = []
    numbers: dict[int, str] = {}
    counts: dict[Path, int] = {}
    if files and (len(listing.channels) > 1 or options.channels):
        counts = {entry.image.path: count for entry in files if (count := _volumes(entry.image, options)) is not None}
        numbers, findings = _of_files(listing, options, counts)
    elif files and listing.channels:
        numbers = {0: listing.channels[0]}
    entries = []
    for entry in listing.entries:
        if not _is_whole(entry):
            entries.append(entry)
        elif entry.name in folders:
            entries.append(_of_study(entry, options) if options.channels else entry)
        else:
            entries.append(_of_file(entry, numbers, counts.get(entry.image.path)))
    names = tuple(numbers.values()) or tuple(name for _, name in parse_channels(options.channels))
    return replace(listing, entries=entries, channels=names, findings=[*listing.findings, *findings])


def _is_whole(entry: Entry) -> bool:
    """Return whether an image may hold several channels, because its channel is not stated."""
    return not entry.image.others and not entry.image.name and entry.image.channel is None


def unique_names(names: Sequence[str], *, source: object) -> list[str]:
    """Append the channel number to names that occur more than once.

    Args:
        names: Names of the channels, in order.
        source: File or data set that states them, for the error message.

    Raises:
        UserError: A name is empty or contains control characters.
    """
    check_labels(names, what="channel", source=source)
    counts = Counter(name.casefold() for name in names)
    return [name if counts[name.casefold()] == 1 else f"{name} {number}" for number, name in enumerate(names)]


def series_below(folder: Path) -> list[tuple[Path, Series]]:
    """List all DICOM series in a folder and its subfolders."""
    pairs = []
    for place, _, _ in walk(folder):
        if is_series(place):
            with contextlib.suppress(NoImagesError):  # segmentations and other objects of the study
                pairs += [(place, series) for series in list_series(place)]
    return pairs


def _place(key: str, available: Mapping[int, str]) -> int | None:
    for number, name in available.items():
        if name.casefold() == key.casefold():
            return number
    return int(key) if key.isdecimal() and int(key) in available else None


def _words(text: str) -> list[str]:
    return [word for word in re.split(r"[^a-z0-9]+", text.casefold()) if word]


def _volumes(image: ImageFile, options: DataOptions) -> int | None:
    """Return the number of channels of a file; None if it cannot be read, which is reported when it is read."""
    if not image.path.is_file():
        return None
    try:
        more = volumes_in(image.path)
    except UserError:
        return None
    if image.frame is not None or options.frame_table is not None:
        more = more[1:]  # the fourth axis is time
    return more[0] if more else 1


def _of_files(
    listing: Listing, options: DataOptions, counts: Mapping[Path, int]
) -> tuple[dict[int, str], list[Finding]]:
    """Return the channels of multi-channel files, and findings where dataset.json contradicts the files."""
    names = unique_names(listing.channels, source=listing.name)
    most = max(counts.values(), default=0)
    if not counts:  # no file could be read: trust the stated channels
        highest = max(
            (int(source) + 1 for source, _ in parse_channels(options.channels) if source.isdecimal()), default=0
        )
        most = max(len(names), highest, 0 if names or highest else len(options.channels))
    findings = []
    total = most
    if len(names) > 1 and most != len(names):
        others = [path.name for path, count in counts.items() if count != len(names)]
        use = f"the first, {names[0]}" if most == 1 else f"the first {min(most, len(names))}"
        title = (
            f"dataset.json names {several(len(names), 'channel')} ({', '.join(names)}), but the files contain at "
            f"most {several(most, 'volume')}; using {use}"
        )
        findings.append(Finding("warning", "channel_names", title, [Item(others)]))
        total = min(most, len(names)) if not options.channels else most
    available = {number: names[number] if number < len(names) else str(number) for number in range(total)}
    return choose_channels(available, options.channels, named=bool(names), source=listing.name), findings


def _of_file(entry: Entry, numbers: Mapping[int, str], count: int | None) -> Entry:
    available = {number: name for number, name in numbers.items() if count is None or number < count}
    lacks = tuple(name for number, name in numbers.items() if number not in available)
    if not available:
        return replace(entry, lacks=lacks)
    is_single = count == 1 or (count is None and len(numbers) == 1)
    channels = [
        replace(entry.image, channel=None if is_single else number, name=name, number=number)
        for number, name in available.items()
    ]
    return replace(entry, image=join_channels(channels), lacks=lacks)


def _of_study(entry: Entry, options: DataOptions) -> Entry:
    pairs = series_below(entry.image.path)
    channels, lacks = [], []
    for key, name in parse_channels(options.channels):
        try:
            match = choose_series([series for _, series in pairs], key)
        except UserError as error:
            lacks.append(f"{name}: {error}")
            continue
        folder = next(folder for folder, series in pairs if series is match)
        channels.append(replace(entry.image, path=folder, series=match.uid, name=name))
    return replace(entry, image=join_channels(channels) if channels else entry.image, lacks=tuple(lacks))
