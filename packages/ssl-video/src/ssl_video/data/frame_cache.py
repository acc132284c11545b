"""Keep the decoded frames of videos on disk, so that training decodes every video once.

A folder holds one file per video, named by the hash of its content and the version of the decoder, so that frames of a
changed video are never used. A file is an array uint8 ``[F, 3, H, W]`` in NumPy's format, and complete as soon as it
has its name. Any of them can be deleted at any time.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from contrastive_core.errors import UserError
from contrastive_core.text import several, size
from contrastive_core.training.files import open_atomic, remove_stale_files
from ssl_video.data.reader import every_frame
from ssl_video.data.video_index import VideoIndex
from ssl_video.data.videos import VideoSet, digest_of

_VERSION = 1
"""Version of the stored frames; raising it invalidates them."""

GB = 1_000_000_000
_NAME = re.compile(r"[0-9a-f]{32}\.npy|\.[0-9a-f]{32}\.npy\.[0-9a-f]{8}\.tmp")
_SHARE = 20  # a video is stored if it takes at most this part of the limit
_RESERVE = 1 * GB  # bytes of the disk that are left free
_SCANS = 100  # the folder is measured again after this part of the limit has been written


class FrameCache:
    """Decoded frames of many videos in a folder, for any number of processes and runs.

    A video is decoded completely when its first clip is read, and stored if it takes at most 1/20 of the limit. When
    the limit is reached, or less than 1 GB of the disk is free, no more videos are stored; those are decoded for every
    clip, as without a cache. Frames are equal to those of `read_frames` in every bit; videos with frames that cannot be
    decoded, or that the decoder concealed, are not stored. Several processes may exceed the limit by 1 % each.

    Args:
        folder: Folder of the cache, created if missing.
        limit: Largest size of the folder in bytes.

    Raises:
        UserError: The folder cannot be written.
    """

    def __init__(self, folder: Path, *, limit: int = 20 * GB) -> None:
        self.folder, self.limit = folder, limit
        self._used_bytes, self._written_bytes = -1, 0
        self._rejects: set[Path] = set()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not os.access(folder, os.W_OK | os.X_OK):
                raise PermissionError(None, "no permission to write")
        except OSError as error:
            raise UserError(
                f"{folder}: cannot be used as a cache ({error.strerror}); expected a folder that can be written"
            ) from error
        remove_stale_files(folder)

    def file(self, path: str | Path) -> Path:
        """Return the path of the stored frames of a video, whether it exists or not.

        Raises:
            UserError: The video cannot be read.
        """
        return self.folder / _name(digest_of(path))

    def read(self, path: str | Path, index: VideoIndex, frames: Sequence[int]) -> NDArray[np.uint8] | None:
        """Return frames of a video, uint8 ``[T, 3, H, W]``, and store all of them first if there is space.

        Args:
            path: Path of the video.
            index: Index of the video.
            frames: Numbers of the frames, which may repeat.

        Returns:
            The frames; None if the video is not stored.

        Raises:
            UserError: The video cannot be read.
        """
        shape = (3, index.height, index.width)
        file = self.file(path)
        pictures = _read(file, len(index), shape, frames)
        if pictures is not None or file in self._rejects:
            return pictures
        if self._store(path, file, len(index), shape):
            pictures = _read(file, len(index), shape, frames)
        if pictures is None:
            self._rejects.add(file)
        return pictures

    def summary(self, videos: Iterable[VideoSet]) -> str:
        """Return a sentence on the size of the cache, and how many of these videos are not stored."""
        places = {video.path for video_set in videos for video in video_set.videos}
        missing = sum(not self._has(path) for path in places)
        text = f"cache {self.folder}: {size(self._measure())} of at most {size(self.limit)}"
        if not missing:
            return f"{text}, all {several(len(places), 'video')}"
        return (
            f"{text}; {missing} of {several(len(places), 'video')} not stored: they were not read, are damaged, take "
            f"more than {size(self.limit // _SHARE)} each, or did not fit"
        )

    def _has(self, path: Path) -> bool:
        try:
            return self.file(path).is_file()
        except UserError:
            return False

    def _store(self, path: str | Path, file: Path, count: int, shape: tuple[int, ...]) -> bool:
        space = count * int(np.prod(shape))
        if space > self.limit // _SHARE or not self._has_space(space):
            return False
        try:
            with open_atomic(file) as out:
                out.write(_header(count, shape))
                for picture in every_frame(path, intact=True):
                    out.write(np.ascontiguousarray(picture.transpose(2, 0, 1)).data)
        except UserError:  # the frames that can be decoded are read as without a cache
            return False
        except OSError:  # the disk is full, or the folder has gone
            self._used_bytes = self.limit
            return False
        self._used_bytes += space
        self._written_bytes += space
        return True

    def _has_space(self, space: int) -> bool:
        if self._used_bytes < 0 or self._written_bytes > self.limit // _SCANS:
            self._used_bytes, self._written_bytes = self._measure(), 0
        try:
            free = shutil.disk_usage(self.folder).free
        except OSError:
            return False
        return self._used_bytes + space <= self.limit and free - space >= _RESERVE

    def _measure(self) -> int:
        """Return the size of the stored frames, also of those that other processes write."""
        total = 0
        try:
            with os.scandir(self.folder) as entries:
                for entry in entries:
                    if not _NAME.fullmatch(entry.name):
                        continue
                    try:
                        total += entry.stat().st_size
                    except OSError:  # removed in the meantime
                        continue
        except OSError:
            return self.limit
        return total


@functools.lru_cache(maxsize=300_000)
def _name(digest: str) -> str:
    """Return the name of the file for a video with this hash."""
    key = json.dumps([_VERSION, av.__version__, digest])
    return f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npy"


@functools.lru_cache
def _header(count: int, shape: tuple[int, ...]) -> bytes:
    """Return the start of a file in NumPy's format."""
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {(count, *shape)}, }}"
    padding = -(len(text) + 11) % 64
    text = f"{text}{' ' * padding}\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def _read(file: Path, count: int, shape: tuple[int, ...], frames: Sequence[int]) -> NDArray[np.uint8] | None:
    """Read frames of a stored video; None if the file does not exist, or does not hold these frames."""
    header, each = _header(count, shape), int(np.prod(shape))
    pictures = np.empty((len(frames), *shape), np.uint8)
    try:
        with file.open("rb", buffering=0) as stream:
            if stream.seek(0, os.SEEK_END) != len(header) + count * each:
                return None
            stream.seek(0)
            if stream.read(len(header)) != header:
                return None
            for picture, number in zip(pictures, frames, strict=True):
                stream.seek(len(header) + number * each)
                if stream.readinto(picture.data) != each:
                    return None
    except OSError:
        return None
    return pictures
