"""Read the official lists of data sets: UCF-101, HMDB-51, Kinetics, and names one a line."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from contrastive_core.errors import UserError
from ssl_video.data.videos import VideoSet

_HMDB = re.compile(r"(?P<label>.+)_test_split(?P<split>\d)\.txt")


class OfficialList(NamedTuple):
    """Places in the data of the videos that a list names."""

    places: list[int]
    """To learn from, or simply listed."""
    test: list[int]
    """To test on; only in HMDB-51's lists, which hold both."""


def read_list(path: Path, videos: VideoSet) -> OfficialList:
    """Find the videos that an official list names.

    ``trainlist01.txt``: ``Class/video.avi`` and a number a line (the number is not looked at). HMDB-51: a folder of
    ``<class>_test_split1.txt`` with ``video.avi 1`` (train), ``2`` (test) or ``0`` (neither); of several splits in it
    the first, or name one of its files. Kinetics: CSV with ``youtube_id``, ``time_start`` and ``time_end``; videos that
    are not there are left out, as many have gone.

    Raises:
        UserError: no such list, none of its videos in the data, or, but for Kinetics, some that are missing.
    """
    if path.is_dir() or _HMDB.fullmatch(path.name):
        return _hmdb(path, videos)
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected an official list of videos")
    if path.suffix.lower() == ".csv":
        names = [name for name in _kinetics(path) if videos.place(name) is not None]
    else:
        text = path.read_text(encoding="utf-8")
        names = [re.sub(r"\s+-?\d+$", "", line.strip()) for line in text.splitlines() if line.strip()]
    return OfficialList(_places(names, path, videos), [])


def _hmdb(path: Path, videos: VideoSet) -> OfficialList:
    folder = path if path.is_dir() else path.parent
    found = [(file, match) for file in sorted(folder.iterdir()) if (match := _HMDB.fullmatch(file.name))]
    if not found:
        raise UserError(f"{path}: found no files such as brush_hair_test_split1.txt; expected HMDB-51's lists")
    named = _HMDB.fullmatch(path.name)
    split = named["split"] if named else min(match["split"] for _, match in found)
    kinds: dict[str, list[str]] = {"1": [], "2": [], "0": []}
    for file, match in found:
        if match["split"] == split:
            for line in file.read_text(encoding="utf-8").splitlines():
                name, _, kind = line.strip().rpartition(" ")
                if kind not in kinds:
                    raise UserError(f"{file}: found the line {line!r}; expected `video.avi 0`, 1 or 2")
                kinds[kind].append(f"{match['label']}/{name.strip()}")
    return OfficialList(_places(kinds["1"], path, videos), _places(kinds["2"], path, videos))


def _kinetics(file: Path) -> Iterator[str]:
    with file.open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            try:
                start, end = int(float(row["time_start"])), int(float(row["time_end"]))
                yield f"{row['youtube_id']}_{start:06d}_{end:06d}.mp4"
            except (KeyError, TypeError, ValueError) as error:
                raise UserError(f"{file}: expected Kinetics' columns youtube_id, time_start, time_end") from error


def _places(names: list[str], path: Path, videos: VideoSet) -> list[int]:
    places = [videos.place(name) for name in names]
    missing = [name for name, place in zip(names, places, strict=True) if place is None]
    if missing or not places:
        some = ", ".join(missing[:3]) or "the list is empty"
        raise UserError(
            f"{path}: {len(missing)} of its {len(names)} videos are not in {videos.name}, or not by one name ({some}); "
            f"videos are called {videos[0].key} there"
        )
    return [place for place in places if place is not None]
