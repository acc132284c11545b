"""A set of videos with their classes."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from contrastive_core.errors import UserError
from contrastive_core.training.names import check_labels

SUFFIXES = frozenset(
    f".{ending}"
    for ending in (
        *("3g2", "3gp", "asf", "avi", "divx", "dv", "f4v", "flv", "gif", "h264", "hevc", "ivf", "m2ts", "m2v", "m4v"),
        *("mjpeg", "mjpg", "mkv", "mov", "mp4", "mpe", "mpeg", "mpg", "mts", "mxf", "nut", "ogm", "ogv", "qt", "rm"),
        *("rmvb", "ts", "vob", "webm", "wmv", "y4m"),
    )
)
"""Endings of files that are taken for videos."""

PARTS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validate": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}
"""Names of folders and column values -> the part of the data that they mean."""


_BLOCK = 1 << 16


def content_mark(path: Path) -> str:
    """A short hash of a file's content: of its size and of its first, middle and last 64 kB.

    It tells the videos of any data set apart, whatever they are called and wherever they lie.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            digest = hashlib.blake2s(str(size).encode(), digest_size=8)
            for begin in sorted({0, max(0, size // 2 - _BLOCK // 2), max(0, size - _BLOCK)}):
                file.seek(begin)
                digest.update(file.read(_BLOCK))
    except OSError as error:
        raise UserError(f"{path}: cannot be opened ({error.strerror}); expected a video file") from error
    return digest.hexdigest()


@dataclass(frozen=True)
class Video:
    """One video.

    Attributes:
        key: its name within the data, as split files list it: the path below the data's folder, with slashes.
        path: of the file.
        label: its class; None if unknown.
        group: what it must not be separated from by a split; None: nothing.
        part: the part of the data that it belongs to by its folder or list: ``train``, ``validation``, ``test``, or
            another name that the list gives; None: not stated.
    """

    key: str
    path: Path
    label: str | None = None
    group: str | None = None
    part: str | None = None


class VideoSet:
    """Videos in the order of their keys, and the names of the classes.

    Args:
        name: what messages call it.
        videos: with keys of their own.
        classes: in the order of their numbers; None: those of the labels, sorted (as numbers if all are).
        notes: what was found and is not in the set, in sentences.

    Raises:
        UserError: no videos, or two with the same key.
    """

    def __init__(
        self,
        name: str,
        videos: Iterable[Video],
        *,
        classes: Sequence[str] | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        self.name, self.notes = name, tuple(notes)
        self.videos = tuple(sorted(videos, key=lambda video: video.key))
        if not self.videos:
            others = "".join(f" ({note})" for note in self.notes)
            raise UserError(f"{name}: found no videos{others}; expected files ending in {', '.join(sorted(SUFFIXES))}")
        check_labels((video.key for video in self.videos), what="video", source=name)
        self._places = {video.key: place for place, video in enumerate(self.videos)}
        if len(self._places) < len(self.videos):
            keys = [video.key for video in self.videos]
            twice = next(a for a, b in itertools.pairwise(keys) if a == b)
            raise UserError(f"{name}: lists {twice} twice; expected every video once")
        self.classes = tuple(
            _in_order({video.label for video in self.videos if video.label}) if classes is None else classes
        )
        check_labels(self.classes, what="class", source=name)

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
        """Where the video of that key is, or the only one whose key ends so, or whose key this name ends with.

        Where all videos lie in one folder, the file name alone identifies a video of a list that names class folders.
        None: nowhere.
        """
        if name in self._places:
            return self._places[name]
        if not hasattr(self, "_by_end"):
            self._by_end: dict[str, int | None] = {}
            for place, video in enumerate(self.videos):
                parts = video.key.split("/")
                for first in range(1, len(parts)):
                    end = "/".join(parts[first:])
                    self._by_end[end] = None if end in self._by_end else place
            self._is_flat = len({video.key.rpartition("/")[0] for video in self.videos}) == 1
        if name not in self._by_end:
            for first in range(1, name.count("/")):
                place_of_end = self._places.get("/".join(name.split("/")[first:]))
                if place_of_end is not None:
                    return place_of_end
            if self._is_flat:
                name = name.rpartition("/")[2]
                return self._places.get(name, self._by_end.get(name))
        return self._by_end.get(name)

    def subset(self, places: Iterable[int], *, name: str | None = None) -> VideoSet:
        """Some of the videos, with the same classes."""
        return VideoSet(name or self.name, (self.videos[place] for place in places), classes=self.classes)


def _in_order(labels: set[str]) -> list[str]:
    if all(label.isdecimal() for label in labels):
        return sorted(labels, key=lambda label: (int(label), label))
    return sorted(labels)
