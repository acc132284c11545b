"""A list of videos, some or all of them with labels."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
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
