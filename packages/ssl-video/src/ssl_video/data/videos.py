"""A set of videos with their classes."""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from unicodedata import normalize

import torch
from torch import Tensor

from contrastive_core.errors import UserError
from contrastive_core.text import some_of
from contrastive_core.training.files import sha256
from contrastive_core.training.names import check_labels
from contrastive_core.training.split_names import canonical_split

SUFFIXES = frozenset(
    f".{suffix}"
    for suffix in (
        *("3g2", "3gp", "asf", "avi", "divx", "dv", "f4v", "flv", "gif", "h264", "hevc", "ivf", "m2ts", "m2v", "m4v"),
        *("mjpeg", "mjpg", "mkv", "mov", "mp4", "mpe", "mpeg", "mpg", "mts", "mxf", "nut", "ogm", "ogv", "qt", "rm"),
        *("rmvb", "ts", "vob", "webm", "wmv", "y4m"),
    )
)
"""Suffixes of video files."""


PARTS = ("train", "validation", "test")
"""The parts of a data set."""


def canonical_part(name: str) -> str:
    """Normalise the name of a part of the data: ``train``, ``validation`` or ``test``; other names are unchanged."""
    split = canonical_split(name)
    return "validation" if split == "val" else split


_BLOCK = 1 << 16


def content_mark(path: Path) -> str:
    """Return a short hash of a file's size and of its first, middle and last 64 kB.

    It distinguishes the videos of any data set, whatever their names and folders.

    Raises:
        UserError: The file cannot be read.
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


def digest_of(path: str | Path) -> str:
    """Return the SHA-256 hash of a file, cached until its time or size changes.

    Raises:
        UserError: It cannot be read.
    """
    try:
        now = os.stat(path)  # noqa: PTH116 - as in `index_video`
        return _digest(str(path), now.st_mtime_ns, now.st_size)
    except OSError as error:
        raise UserError(f"{path}: cannot be opened ({error.strerror}); expected a file") from error


@functools.lru_cache(maxsize=300_000)
def _digest(path: str, mtime: int, size: int) -> str:
    return sha256(Path(path))


@dataclass(frozen=True)
class Video:
    """One video.

    Attributes:
        key: Name within the data, as split files list it: the path below the data's folder, with slashes.
        path: Path of the file.
        label: Class; None if unknown.
        group: Group of videos that a split keeps together; None: the video is independent of all others.
        part: Part of the data that its folder or list states: ``train``, ``validation``, ``test``, or another name in
            the list; None: not stated.
    """

    key: str
    path: Path
    label: str | None = None
    group: str | None = None
    part: str | None = None


def distinct_contents(videos: Sequence[Video]) -> list[str]:
    """Return a text for the content of each video, the same for identical files.

    Only files of the same size are read. A file that cannot be opened differs from all others.
    """
    sizes = [_size(video.path) for video in videos]
    count = Counter(sizes)
    return [
        _content(video) if size and count[size] > 1 else f"/{video.key}"
        for video, size in zip(videos, sizes, strict=True)
    ]


def _content(video: Video) -> str:
    try:
        return content_mark(video.path)
    except UserError:
        return f"/{video.key}"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


class VideoSet:
    """Videos sorted by their keys, and the names of the classes.

    Args:
        name: Name of the set in messages.
        videos: Videos with distinct keys.
        classes: Class names in the order of their numbers; None: the labels, sorted (as numbers if all are).
        notes: Sentences on what was found but is not in the set.

    Raises:
        UserError: There are no videos, or two with the same key.
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
            note_text = "".join(f" ({note})" for note in self.notes)
            suffixes = ", ".join(sorted(SUFFIXES))
            raise UserError(f"{name}: found no videos{note_text}; expected files with one of the suffixes {suffixes}")
        check_labels((video.key for video in self.videos), what="video", source=name)
        # Lists and file systems may write accents differently.
        self._places = {normalize("NFC", video.key): place for place, video in enumerate(self.videos)}
        if len(self._places) < len(self.videos):
            keys = sorted(normalize("NFC", video.key) for video in self.videos)
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
        """Return the class numbers, int64 ``[N]``.

        Raises:
            UserError: A video has no label, or a label that is not a class.
        """
        number = {name: place for place, name in enumerate(self.classes)}
        for video in self.videos:
            if video.label not in number:
                raise UserError(f"{video.path}: its class is {video.label!r}; expected one of {some_of(self.classes)}")
        return torch.tensor([number[str(video.label)] for video in self.videos], dtype=torch.int64)

    def place(self, name: str) -> int | None:
        """Return the position of a video by its key, or by a unique ending of a key or of the name.

        ``Diving/v_1.avi`` finds the key ``videos/Diving/v_1.avi``, and the other way round. If all videos lie in one
        folder, the file name is enough to find a video of a list that names class folders. None: not found.
        """
        name = normalize("NFC", name)
        if name in self._places:
            return self._places[name]
        if not hasattr(self, "_by_end"):
            self._by_end: dict[str, int | None] = {}
            for place, video in enumerate(self.videos):
                parts = normalize("NFC", video.key).split("/")
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
        """Return the videos at these positions as a set with the same classes."""
        return VideoSet(name or self.name, (self.videos[place] for place in places), classes=self.classes)


_DIGITS = 18  # more are no number, and Python refuses to convert thousands


def _in_order(labels: set[str]) -> list[str]:
    if all(label.isdecimal() and len(label) <= _DIGITS for label in labels):
        return sorted(labels, key=lambda label: (int(label), label))
    return sorted(labels)
