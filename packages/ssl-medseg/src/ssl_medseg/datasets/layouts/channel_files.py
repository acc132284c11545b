"""Group the images of a folder into cases if there is a file for each channel of a case."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from contrastive_core.app.checks import Finding, Item
from ssl_medseg.datasets.channels import choose_channels, parse_channels, split_ending, split_number
from ssl_medseg.datasets.options import DataOptions
from ssl_medseg.io.volume import ImageFile, join_channels


@dataclass(frozen=True)
class ChannelCase:
    """A case with a file per channel.

    Attributes:
        name: Name of the case.
        image: Image with its channels, in order.
        lacks: Channels that other cases have and this one lacks.
    """

    name: str
    image: ImageFile
    lacks: tuple[str, ...]


class ChannelFiles:
    """How the names of the images in a data set state case and channel.

    The channels are either numbered as in nnU-Net (``case_0000``, ``case_0001``), or named by `DataOptions.channels`:
    at the end of the file name (``case_T2``, ``case_ADC``) or as the name in a folder of the case (``case/T2``).

    Args:
        of_channel: How files name a channel -> name of the channel, in order.
        numbers: Name of the channel -> its number, if the channels are numbered.
        split: Splits the relative name of a file into the case and how it names the channel; None if it names none.
        options: Options for opening the data set.
    """

    def __init__(
        self,
        of_channel: Mapping[str, str],
        numbers: Mapping[str, int],
        split: Callable[[str], tuple[str, str] | None],
        options: DataOptions,
    ) -> None:
        self.names = list(of_channel.values())
        self._of_channel, self._numbers, self._split, self._options = of_channel, numbers, split, options

    def cases(self, pairs: Sequence[tuple[str, Path]]) -> tuple[list[ChannelCase], list[Path], list[Finding]]:
        """Group files into cases.

        Args:
            pairs: Relative names without extension, and files.

        Returns:
            The cases, the files of channels that are not used, and an error for every channel that a case has twice.
        """
        by_case: dict[str, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
        rest: list[tuple[str, Path]] = []
        for name, path in pairs:
            if (parts := self._split(name)) is None:
                rest.append((name, path))
            else:
                by_case[parts[0]][parts[1]].append(path)
        unused = [path for name, path in rest if _begins_with(name, by_case)]
        unused += [
            path
            for files in by_case.values()
            for key, paths in files.items()
            if key not in self._of_channel
            for path in paths
        ]
        cases = [self._case(name, files) for name, files in by_case.items()]
        cases += [
            ChannelCase(name, self._options.image(path, name=self.names[0]), tuple(self.names))
            for name, path in rest
            if path not in unused
        ]
        duplicates = [paths for files in by_case.values() for paths in files.values() if len(paths) > 1]
        title = "several files for the same channel of a case: keep one of each"
        items = [Item([path.name for path in paths]) for paths in duplicates]
        return cases, unused, [Finding("error", "several_images", title, items)] if duplicates else []

    def _case(self, name: str, files: Mapping[str, Sequence[Path]]) -> ChannelCase:
        images = [
            replace(self._options.image(files[key][0], name=channel), number=self._numbers.get(channel))
            for key, channel in self._of_channel.items()
            if key in files
        ]
        lacks = tuple(channel for key, channel in self._of_channel.items() if key not in files)
        other = next(iter(files.values()))[0]
        return ChannelCase(name, join_channels(images or [self._options.image(other, name=self.names[0])]), lacks)


def channel_files(
    images: Collection[str], labels: Collection[str], options: DataOptions, *, source: str
) -> ChannelFiles | None:
    """Return how the names of images state case and channel; None if every file is an image of its own.

    Args:
        images: Relative names of the images, without extension; those in a folder of a case contain a slash.
        labels: Names of the labels, without extension.
        options: Options for opening the data set.
        source: Name of the data set, for errors.

    Raises:
        UserError: `DataOptions.channels` names a channel that does not exist.
    """
    numbers = [(name, *parts) for name in images if "/" not in name and (parts := split_number(name)) is not None]
    # Labels tell whether a number is that of a channel: the label of the images 1_0000 and 1_0001 is 1.
    if {case for _, case, _ in numbers} & set(labels) and not {name for name, _, _ in numbers} & set(labels):
        available = {number: str(number) for number in sorted({number for _, _, number in numbers})}
        by_number = choose_channels(available, options.channels, named=False, source=source)
        of_channel = {str(number): name for number, name in by_number.items()}
        return ChannelFiles(of_channel, {name: number for number, name in by_number.items()}, _split_numbered, options)
    pairs = parse_channels(options.channels)
    endings = {name: ending for name in images if (ending := split_ending(name, pairs)) is not None}
    cases, channels = {case for case, _ in endings.values()}, {channel for _, channel in endings.values()}
    # A single ending, such as the T2 of all images, states a channel only if other files of these cases have none.
    is_one_of_several = any(_begins_with(name, cases) for name in images if name not in endings)
    if len(channels) < 2 and not is_one_of_several and not any("/" in name for name in endings):
        return None
    return ChannelFiles({name: name for _, name in pairs}, {}, lambda name: split_ending(name, pairs), options)


def continuations(label: str, images: Collection[str]) -> dict[str, str]:
    """Return the images whose names continue that of a label, with the ends of their names.

    >>> continuations("1", ["1_T2", "1/ADC", "10_T2"])
    {'1_T2': 'T2', '1/ADC': 'ADC'}
    """
    return {name: name[len(label) :].strip("_-. /") for name in images if _begins_with(name, {label})}


def _split_numbered(name: str) -> tuple[str, str] | None:
    parts = split_number(name)
    return None if parts is None else (parts[0], str(parts[1]))


def _begins_with(name: str, cases: Collection[str]) -> bool:
    ends = [place for place, letter in enumerate(name) if letter in "_-. /"]
    return any(name[:place] in cases for place in ends)
