"""Put the channels of a patient together that lie in a folder: files named after them, DICOM series of a study."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from contrastive_core.errors import UserError
from ssl_medseg.datasets.channels import choose_series, fit_channels, parse_channels
from ssl_medseg.datasets.options import DataOptions
from ssl_medseg.io.dicom import Series, list_series
from ssl_medseg.io.read import volumes_in
from ssl_medseg.io.volume import ImageFile, join_channels

_NUMBERED = re.compile(r"(.+)_(\d{4})$")


@dataclass(frozen=True)
class Wanted:
    """An image to segment.

    Attributes:
        name: of its mask, a relative path without an ending.
        image: where it is.
        is_dicom: whether it is a DICOM series.
        label: its label in a data set, which no mask may replace.
        error: why it cannot be segmented, known before it is read.
    """

    name: str
    image: ImageFile
    is_dicom: bool
    label: Path | None = None
    error: str = ""


def group_channels(
    found: Sequence[Wanted], names: Sequence[str], opening: DataOptions, *, root: Path, numbers: Sequence[int] = ()
) -> list[Wanted]:
    """Images of a folder as cases of the channels that a model has.

    Files are put together by what their names end in, ``case_T2`` and ``case_ADC``, ``case_0000`` and ``case_0001``, or
    by their folder, ``case/T2`` and ``case/ADC``; the volumes of a 4-D file are the channels of one case. DICOM series
    are put together by their study, and chosen by their description. `DataOptions.channels` says what the data call a
    channel, as in ``ADC=dADC``, and gives unnamed ones their names.

    Args:
        found: Every file and series.
        names: Channels of the model, in order. Of a single one, images stay as they are unless channels are chosen.
        opening: How to open the data.
        root: Folder that names of cases are relative to.
        numbers: Numbers that the channels had in the data of training, if they were numbered.

    Returns:
        Cases in the order of their names. One that lacks a channel has an error.
    """
    if len(names) < 2 and not opening.channels:
        return list(found)
    pairs = parse_channels(opening.channels) or [(name, name) for name in names]
    series = [wanted for wanted in found if wanted.is_dicom]
    files = [wanted for wanted in found if not wanted.is_dicom]
    cases = [*_of_files(files, pairs, opening), *_of_studies(series, pairs, root)]
    return sorted((_fitted(case, names, numbers) for case in cases), key=lambda case: case.name)


def _fitted(case: Wanted, names: Sequence[str], numbers: Sequence[int]) -> Wanted:
    if case.error or not names:
        return case
    try:
        return replace(case, image=fit_channels(case.image, names, numbers))
    except UserError as error:
        return replace(case, error=str(error))


def _of_files(files: Sequence[Wanted], pairs: Sequence[tuple[str, str]], opening: DataOptions) -> list[Wanted]:
    named: dict[str, dict[str, Wanted]] = defaultdict(dict)
    numbered: dict[str, dict[int, Wanted]] = defaultdict(dict)
    cases = []
    for wanted in files:
        match = _NUMBERED.match(wanted.name)
        if (ending := _ending(wanted.name, pairs)) is not None:
            case, name = ending
            named[case][name] = wanted
        elif match is not None:
            numbered[match[1]][int(match[2])] = wanted
        else:
            cases.append(_of_volumes(wanted, opening))
    for case, there in named.items():
        lacks = [name for _, name in pairs if name not in there]
        channels = [replace(there[name].image, name=name) for _, name in pairs if name in there]
        error = f"has no file of the channel {' and '.join(lacks)} beside {channels[0].path.name}" if lacks else ""
        cases.append(Wanted(case, join_channels(channels), False, error=error))
    most = max(map(len, numbered.values()), default=0)
    for case, by_number in numbered.items():
        short = len(by_number) < most
        images = _in_order({number: by_number[number].image for number in sorted(by_number)}, opening)
        has = ", ".join(f"_{number:04}" for number in sorted(by_number))
        error = f"has the channels {has} alone, and others have {most}" if short else ""
        cases.append(Wanted(case, join_channels(images), False, error=error))
    return cases


def _ending(name: str, pairs: Sequence[tuple[str, str]]) -> tuple[str, str] | None:
    """The case and the channel of a file by the end of its name; the longest ending counts."""
    folder, _, own = name.rpartition("/")
    for asked, channel in sorted(pairs, key=lambda pair: -len(pair[0])):
        if asked.isdecimal():
            continue
        if own.casefold() == asked.casefold() and folder:
            return folder, channel
        start = own[: -len(asked)]
        if own.casefold().endswith(asked.casefold()) and start[-1:] in ("_", "-", ".", " ") and start.strip("_-. "):
            return f"{folder}/{start[:-1]}" if folder else start[:-1], channel
    return None


def _of_volumes(wanted: Wanted, opening: DataOptions) -> Wanted:
    """A file that ends in no channel: its volumes are the channels, if it has several."""
    try:
        more = volumes_in(wanted.image.path)
    except UserError:  # is said of this image when it is read
        return wanted
    more = more[1:] if opening.frame is not None or opening.frame_table is not None else more
    if len(more) != 1:
        return wanted
    images = {number: replace(wanted.image, channel=number) for number in range(more[0])}
    return replace(wanted, image=join_channels(_in_order(images, opening)))


def _in_order(images: Mapping[int, ImageFile], opening: DataOptions) -> list[ImageFile]:
    """Numbered channels under the names that the user gives them, else under their numbers."""
    pairs = parse_channels(opening.channels)
    by_number = {int(asked): name for asked, name in pairs if asked.isdecimal() and int(asked) in images}
    if pairs and len(by_number) == len(pairs):
        return [replace(images[number], name=name) for number, name in by_number.items()]
    if len(pairs) == len(images) and not any("=" in entry for entry in opening.channels):
        return [replace(image, name=name) for image, (_, name) in zip(images.values(), pairs, strict=True)]
    return [replace(image, name=str(number), number=number) for number, image in images.items()]


def _of_studies(found: Sequence[Wanted], pairs: Sequence[tuple[str, str]], root: Path) -> list[Wanted]:
    studies: dict[str, list[tuple[Wanted, Series]]] = defaultdict(list)
    cases = []
    for wanted in found:
        try:
            listed = list_series(wanted.image.path)
            own = next(one for one in listed if wanted.image.series in (None, one.uid))
        except (UserError, StopIteration):  # is said of this image when it is read
            cases.append(wanted)
            continue
        studies[own.study or own.uid].append((wanted, own))
    names: set[str] = set()
    for members in studies.values():
        name = _common(members, root)
        if name in names:  # studies side by side in one folder
            name = members[0][0].name
        names.add(name)
        channels, errors = [], []
        for asked, channel in pairs:
            try:
                chosen = choose_series([series for _, series in members], asked)
            except UserError as error:
                errors.append(f"channel {channel}: {error}")
                continue
            image = next(wanted.image for wanted, series in members if series is chosen)
            channels.append(replace(image, series=chosen.uid, name=channel))
        why = f"{'; '.join(errors)}. Say which series it is: --channels NAME=DESCRIPTION,..." if errors else ""
        cases.append(Wanted(name, join_channels(channels or [members[0][0].image]), True, error=why))
    return cases


def _common(members: Sequence[tuple[Wanted, Series]], root: Path) -> str:
    """Name of a study: the folder that holds all its series."""
    folder = Path(os.path.commonpath([wanted.image.path.resolve() for wanted, _ in members]))
    if folder == root.resolve() or not folder.is_relative_to(root.resolve()):
        return folder.name
    return folder.relative_to(root.resolve()).as_posix()
