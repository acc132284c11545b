"""Find labelled videos in folders and lists."""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from contrastive_core.errors import UserError

SUFFIXES = frozenset(
    {".3gp", ".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".ts", ".webm", ".wmv"}
)


@dataclass(frozen=True)
class Video:
    """One video.

    Attributes:
        key: its name within the data, as split files list it: the path below the data's folder, with slashes.
        path: of the file.
        label: its class; None if unknown.
        group: what it must not be separated from by a split; None: nothing.
    """

    key: str
    path: Path
    label: str | None = None
    group: str | None = None


class VideoSet:
    """Videos in the order of their keys, and the names of the classes.

    Args:
        name: what messages call it.
        videos: with keys of their own.
        classes: in the order of their numbers; None: those of the labels, sorted.

    Raises:
        UserError: no videos, or two with the same key.
    """

    def __init__(self, name: str, videos: Iterable[Video], *, classes: Sequence[str] | None = None) -> None:
        self.name = name
        self.videos = tuple(sorted(videos, key=lambda video: video.key))
        if not self.videos:
            raise UserError(f"{name}: found no videos; expected files ending in {', '.join(sorted(SUFFIXES))}")
        self._places = {video.key: place for place, video in enumerate(self.videos)}
        if len(self._places) < len(self.videos):
            keys = [video.key for video in self.videos]
            twice = next(a for a, b in itertools.pairwise(keys) if a == b)
            raise UserError(f"{name}: lists {twice} twice; expected every video once")
        found = sorted({video.label for video in self.videos if video.label is not None})
        self.classes = tuple(found if classes is None else classes)

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: int) -> Video:
        return self.videos[index]

    def labels(self) -> Tensor:
        """Class numbers int64 ``[N]``.

        Raises:
            UserError: a video has no label, or one that is no class.
        """
        number = {name: place for place, name in enumerate(self.classes)}
        for video in self.videos:
            if video.label not in number:
                raise UserError(
                    f"{video.path}: its class is {video.label!r}; expected one of {', '.join(self.classes[:5])}"
                    f"{', ...' if len(self.classes) > 5 else ''}"
                )
        return torch.tensor([number[str(video.label)] for video in self.videos], dtype=torch.int64)

    def place(self, name: str) -> int | None:
        """Where the video of that key is, or of that file name where it is enough to tell them apart; None: nowhere."""
        if name in self._places:
            return self._places[name]
        if not hasattr(self, "_by_end"):
            self._by_end: dict[str, int | None] = {}
            for place, video in enumerate(self.videos):
                parts = video.key.split("/")
                for first in range(1, len(parts)):
                    end = "/".join(parts[first:])
                    self._by_end[end] = None if end in self._by_end else place
        return self._by_end.get(name)

    def subset(self, places: Iterable[int], *, name: str | None = None) -> VideoSet:
        """Some of the videos, with the same classes."""
        return VideoSet(name or self.name, (self.videos[place] for place in places), classes=self.classes)


_SPLITS = ("train", "val", "valid", "validation", "test")
_UCF_GROUP = re.compile(r"_(g\d+)_c\d+")


def open_videos(data: str | Path, *, split: str | None = None) -> VideoSet:
    """Find the videos of a data set; no file is opened.

    ====================================  ===================================================================
    a folder                              ``<class>/*`` (UCF-101, HMDB-51, Kinetics), or ``train/<class>/*`` and
                                          ``val`` or ``test`` beside it; the class is the folder's name
    a CSV file with the column path       paths relative to the file; ``class`` or ``label``, ``split`` and ``group``
                                          if there are such columns
    Kinetics' CSV (youtube_id, ...)       videos ``<class>/<id>_000010_000020.mp4`` or ``<id>_000010_000020.mp4``
                                          below the file's folder; those that are not there are left out
    a text file, ``path label`` a line    as SlowFast and PyTorchVideo take them; paths relative to the file
    ====================================  ===================================================================

    Groups that a split must not part are read from a column, or from names such as UCF-101's ``v_Diving_g03_c02``.

    Args:
        data: the folder or file.
        split: only this part of it; None: all of it.

    Raises:
        UserError: nothing there, no videos, a list that cannot be read, or no such split.
    """
    place = Path(data).expanduser()
    if place.is_dir():
        videos = list(_in_folder(place, split))
    elif not place.is_file():
        raise UserError(f"{place}: no such file or folder; expected a folder of videos or a list of them")
    elif place.suffix.lower() == ".csv":
        videos = list(_in_csv(place, split))
    else:
        if split is not None:
            raise UserError(f"{place}: a list of lines `path label` has no splits; got split {split!r}")
        videos = list(_in_lines(place))
    if not videos and split is not None:
        raise UserError(f"{place}: found no videos of split {split!r}")
    return VideoSet(str(data), videos)


def group_of(key: str) -> str | None:
    """The group in the name of a UCF-101 clip: ``Diving/g03`` of ``Diving/v_Diving_g03_c02.avi``; None of others."""
    found = _UCF_GROUP.search(Path(key).name)
    return f"{Path(key).parent.name}/{found[1]}" if found else None


def _in_folder(root: Path, split: str | None) -> Iterator[Video]:
    parts = [entry.name for entry in sorted(root.iterdir()) if entry.is_dir()]
    has_splits = bool(parts) and set(parts) <= set(_SPLITS)
    if split is not None and not has_splits:
        raise UserError(f"{root}: its folders are classes, not splits; got split {split!r}, expected none")
    if split is not None and split not in parts:
        raise UserError(f"{root}: found the splits {', '.join(parts)}; got {split!r}")
    for path in sorted(root.rglob("*")):
        key = path.relative_to(root).as_posix()
        below = key.split("/")
        if path.suffix.lower() not in SUFFIXES or not path.is_file() or any(part.startswith(".") for part in below):
            continue
        if split is not None and below[0] != split:
            continue
        classes = below[1:-1] if has_splits else below[:-1]
        yield Video(key, path, classes[0] if classes else None, group_of(key))


def _in_csv(file: Path, split: str | None) -> Iterator[Video]:
    rows = _rows(file)
    columns = set(rows[0]) if rows else set()
    if {"youtube_id", "time_start", "time_end"} <= columns:
        yield from _in_kinetics(file, rows, split)
        return
    if "path" not in columns:
        raise UserError(
            f"{file}: found the columns {', '.join(sorted(columns)) or 'of no rows'}; expected `path`, and `class` or "
            "`label` if there are labels"
        )
    label = "class" if "class" in columns else "label"
    for row in rows:
        if split is None or row.get("split") == split:
            path = Path(row["path"])
            key = path.as_posix()
            yield Video(key, file.parent / path, row.get(label) or None, row.get("group") or group_of(key))


def _in_kinetics(file: Path, rows: list[Mapping[str, str]], split: str | None) -> Iterator[Video]:
    for row in rows:
        if split is not None and row.get("split") != split:
            continue
        name = f"{row['youtube_id']}_{int(float(row['time_start'])):06d}_{int(float(row['time_end'])):06d}"
        label = row.get("label") or None
        for folder in (label, (label or "").replace(" ", "_"), row.get("split"), ""):
            found = [file.parent / (folder or "") / f"{name}{end}" for end in (".mp4", ".mkv", ".webm")]
            path = next((path for path in found if path.is_file()), None)
            if path is not None:
                yield Video(path.relative_to(file.parent).as_posix(), path, label, row["youtube_id"])
                break


def _in_lines(file: Path) -> Iterator[Video]:
    for number, line in enumerate(_text(file).splitlines(), start=1):
        if line.strip():
            name, _, label = line.strip().rpartition(" ")
            if not name:
                raise UserError(f"{file}, line {number}: found {line.strip()!r}; expected `path label`")
            yield Video(Path(name).as_posix(), file.parent / name, label, group_of(name))


def _rows(file: Path) -> list[Mapping[str, str]]:
    rows = list(csv.DictReader(_text(file).splitlines()))
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise UserError(f"{file}, line {number}: another number of columns than in the first line")
    return list(rows)


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read as text ({error})") from error
