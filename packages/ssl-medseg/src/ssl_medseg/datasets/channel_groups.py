"""Group the files or DICOM series of a folder into multi-channel cases."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from contrastive_core.errors import UserError
from ssl_medseg.datasets.channels import choose_series, fit_channels, parse_channels, split_ending, split_number
from ssl_medseg.datasets.options import DataOptions
from ssl_medseg.io.dicom import Series, list_series
from ssl_medseg.io.read import volumes_in
from ssl_medseg.io.volume import ImageFile, join_channels


@dataclass(frozen=True)
class InputImage:
    """An image to segment.

    Attributes:
        name: Name of its mask, a relative path without extension.
        image: Location of the image.
        is_dicom: Whether it is a DICOM series.
        label: Label of the case in a data set, which a mask must not overwrite.
        error: Reason why it cannot be segmented, if that is known before reading it.
    """

    name: str
    image: ImageFile
    is_dicom: bool
    label: Path | None = None
    error: str = ""


def group_channels(
    inputs: Sequence[InputImage], names: Sequence[str], opening: DataOptions, *, root: Path, numbers: Sequence[int] = ()
) -> list[InputImage]:
    """Group the images of a folder into cases with the channels of a model.

    Files are grouped by the ends of their names (``case_T2`` and ``case_ADC``, ``case_0000`` and ``case_0001``) or by
    their folder (``case/T2`` and ``case/ADC``); the volumes of a 4-D file are the channels of one case. DICOM series
    are grouped by study and selected by their description. `DataOptions.channels` maps names of the data to names of
    channels, as in ``ADC=dADC``, and names unnamed channels.

    Args:
        inputs: All files and series.
        names: Channels of the model, in order. With a single one, images are left unchanged unless channels are chosen.
        opening: Options for opening the data.
        root: Folder that the names of cases are relative to.
        numbers: Numbers of the channels in the training data, if they were numbered.

    Returns:
        Cases, sorted by name. Cases that lack a channel have an error.
    """
    if len(names) < 2 and not opening.channels:
        return list(inputs)
    pairs = parse_channels(opening.channels) or [(name, name) for name in names]
    series = [source for source in inputs if source.is_dicom]
    files = [source for source in inputs if not source.is_dicom]
    cases = [*_of_files(files, pairs, opening), *_of_studies(series, pairs, root)]
    return sorted((_fitted(case, names, numbers) for case in cases), key=lambda case: case.name)


def _fitted(case: InputImage, names: Sequence[str], numbers: Sequence[int]) -> InputImage:
    if case.error or not names:
        return case
    try:
        return replace(case, image=fit_channels(case.image, names, numbers))
    except UserError as error:
        return replace(case, error=str(error))


def _of_files(files: Sequence[InputImage], pairs: Sequence[tuple[str, str]], opening: DataOptions) -> list[InputImage]:
    files_by_name: dict[str, dict[str, InputImage]] = defaultdict(dict)
    files_by_number: dict[str, dict[int, InputImage]] = defaultdict(dict)
    cases = []
    for source in files:
        if (ending := split_ending(source.name, pairs)) is not None:
            case, name = ending
            files_by_name[case][name] = source
        elif (number := split_number(source.name)) is not None:
            files_by_number[number[0]][number[1]] = source
        else:
            cases.append(_of_volumes(source, opening))
    for case, by_name in files_by_name.items():
        lacks = [name for _, name in pairs if name not in by_name]
        channels = [replace(by_name[name].image, name=name) for _, name in pairs if name in by_name]
        error = f"has no file for channel {' and '.join(lacks)}, only {channels[0].path.name}" if lacks else ""
        cases.append(InputImage(case, join_channels(channels), False, error=error))
    most = max(map(len, files_by_number.values()), default=0)
    for case, by_number in files_by_number.items():
        short = len(by_number) < most
        images = _in_order({number: by_number[number].image for number in sorted(by_number)}, opening)
        has = ", ".join(f"_{number:04}" for number in sorted(by_number))
        error = f"has only the channels {has}, while other cases have {most} channels" if short else ""
        cases.append(InputImage(case, join_channels(images), False, error=error))
    return cases


def _of_volumes(source: InputImage, opening: DataOptions) -> InputImage:
    """Use the volumes of a 4-D file as channels; files with a single volume are left unchanged."""
    try:
        more = volumes_in(source.image.path)
    except UserError:  # reported when the image is read
        return source
    more = more[1:] if opening.frame is not None or opening.frame_table is not None else more
    if len(more) != 1:
        return source
    images = {number: replace(source.image, channel=number) for number in range(more[0])}
    return replace(source, image=join_channels(_in_order(images, opening)))


def _in_order(images: Mapping[int, ImageFile], opening: DataOptions) -> list[ImageFile]:
    """Name numbered channels as the user asked, or by their numbers."""
    pairs = parse_channels(opening.channels)
    by_number = {int(key): name for key, name in pairs if key.isdecimal() and int(key) in images}
    if pairs and len(by_number) == len(pairs):
        return [replace(images[number], name=name) for number, name in by_number.items()]
    if len(pairs) == len(images) and not any("=" in entry for entry in opening.channels):
        return [replace(image, name=name) for image, (_, name) in zip(images.values(), pairs, strict=True)]
    return [replace(image, name=str(number), number=number) for number, image in images.items()]


def _of_studies(inputs: Sequence[InputImage], pairs: Sequence[tuple[str, str]], root: Path) -> list[InputImage]:
    studies: dict[str, list[tuple[InputImage, Series]]] = defaultdict(list)
    cases = []
    for source in inputs:
        try:
            available = list_series(source.image.path)
            own = next(one for one in available if source.image.series in (None, one.uid))
        except (UserError, StopIteration):  # reported when the image is read
            cases.append(source)
            continue
        studies[own.study or own.uid].append((source, own))
    counts = Counter(_common(members, root) for members in studies.values())
    for members in studies.values():
        name = _common(members, root)
        if counts[name] > 1:  # studies side by side in one folder, each named after its first series
            name = members[0][0].name
        channels, errors = [], []
        for key, channel in pairs:
            try:
                match = choose_series([series for _, series in members], key)
            except UserError as error:
                errors.append(f"channel {channel}: {error}")
                continue
            image = next(source.image for source, series in members if series is match)
            channels.append(replace(image, series=match.uid, name=channel))
        reason = f"{'; '.join(errors)}. Select the series with --channels NAME=DESCRIPTION,..." if errors else ""
        cases.append(InputImage(name, join_channels(channels or [members[0][0].image]), True, error=reason))
    return cases


def _common(members: Sequence[tuple[InputImage, Series]], root: Path) -> str:
    """Return the name of a study: the common folder of all its series."""
    folder = Path(os.path.commonpath([source.image.path.resolve() for source, _ in members]))
    if folder == root.resolve() or not folder.is_relative_to(root.resolve()):
        return folder.name
    return folder.relative_to(root.resolve()).as_posix()
