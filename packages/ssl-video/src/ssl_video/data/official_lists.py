"""Read the official lists of data sets: UCF-101, HMDB-51, Kinetics, and lists of names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from contrastive_core.errors import UserError
from contrastive_core.text import some_of
from contrastive_core.training.documents import read_text
from ssl_video.data.listing import kinetics_name, read_lines, read_table
from ssl_video.data.videos import VideoSet

_HMDB = re.compile(r"(?P<label>.+)_test_split(?P<split>\d)\.txt")


class OfficialList(NamedTuple):
    """Positions in the data of the videos that a list names."""

    places: list[int]
    """Training videos, or all listed ones."""
    test: list[int]
    """Test videos; only in HMDB-51's lists, which hold both parts."""
    classes: dict[int, str]
    """Position -> class that the list states: by name, or by the folder of the video."""


class _Entry(NamedTuple):
    name: str
    label: str | None


def read_list(path: Path, videos: VideoSet) -> OfficialList:
    """Find the videos that an official list names.

    ``trainlist01.txt``: lines with ``Class/video.avi`` and a number, which is ignored. HMDB-51: a folder of files
    ``<class>_test_split1.txt`` with lines ``video.avi 1`` (train), ``2`` (test) or ``0`` (neither); a folder with
    several splits gives the first, one of its files the split of that file. Kinetics: CSV with ``youtube_id``,
    ``time_start`` and ``time_end``; missing videos are left out, as many are no longer available. Other CSV files: a
    column ``path`` and an optional column ``class``.

    Raises:
        UserError: There is no such list, none of its videos are in the data, some are missing (not for Kinetics), or
            one is listed twice.
    """
    if path.is_dir() or _HMDB.fullmatch(path.name):
        return _hmdb(path, videos)
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected an official list of videos")
    table = read_table(path)
    if table is None:
        entries = [_of_line(name, label) for name, label in read_lines(path)]
    elif table and "youtube_id" in table[0]:
        pairs = [(kinetics_name(row), row.get("class")) for row in table]
        entries = [_Entry(f"{name}.mp4", label) for name, label in pairs if name is not None]
        entries = [entry for entry in entries if videos.place(entry.name) is not None]
    else:
        entries = [_Entry(row["path"], row.get("class") or None) for row in table]
    places = _places(entries, path, videos)
    return OfficialList(places, [], _classes(places, entries))


def _of_line(name: str, label: str | None) -> _Entry:
    folder = Path(name).parent.name
    is_number = label is None or re.fullmatch(r"-?\d+", label)
    return _Entry(name, (folder or None) if is_number else label)


def _hmdb(path: Path, videos: VideoSet) -> OfficialList:
    folder = path if path.is_dir() else path.parent
    files = [(file, match) for file in sorted(folder.iterdir()) if (match := _HMDB.fullmatch(file.name))]
    if not files:
        raise UserError(f"{path}: found no files such as brush_hair_test_split1.txt; expected HMDB-51's lists")
    name_match = _HMDB.fullmatch(path.name)
    split = name_match["split"] if name_match else min(match["split"] for _, match in files)
    kinds: dict[str, list[_Entry]] = {"1": [], "2": [], "0": []}
    for file, match in files:
        if match["split"] == split:
            for line in filter(str.strip, read_text(file, expected="HMDB-51's lists").split("\n")):
                name, _, kind = line.strip().rpartition(" ")
                if kind not in kinds:
                    raise UserError(f"{file}: found the line {line!r}; expected `video.avi 0`, 1 or 2")
                kinds[kind].append(_Entry(f"{match['label']}/{name.strip()}", match["label"]))
    train, test = (_places(kinds[kind], path, videos) for kind in ("1", "2"))
    return OfficialList(train, test, _classes(train, kinds["1"]) | _classes(test, kinds["2"]))


def _classes(places: Sequence[int], entries: Sequence[_Entry]) -> dict[int, str]:
    return {place: entry.label for place, entry in zip(places, entries, strict=True) if entry.label is not None}


def _places(entries: Sequence[_Entry], path: Path, videos: VideoSet) -> list[int]:
    places = [videos.place(entry.name) for entry in entries]
    missing = [entry.name for entry, place in zip(entries, places, strict=True) if place is None]
    if missing or not places:
        some = some_of(missing, 3) or "the list is empty"
        raise UserError(
            f"{path}: {len(missing)} of its {len(entries)} videos are missing or ambiguous in {videos.name} ({some}), "
            f"whose videos have names such as {videos[0].key}"
        )
    positions = [place for place in places if place is not None]
    twice = [videos[place].key for place, count in Counter(positions).items() if count > 1]
    if twice:
        raise UserError(f"{path}: lists {some_of(twice, 3)} more than once; expected every video once")
    return positions
