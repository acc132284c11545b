"""Clips from video files by PyAV: the frames asked for and no others are converted to pictures."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import av
import numpy as np
import torch
from numpy.typing import NDArray

from contrastive_core.errors import UserError
from ssl_video.data import torchcodec_reader
from ssl_video.data.sampling import Clips, ClipSpec
from ssl_video.data.sound import read_audio
from ssl_video.data.torchcodec_reader import ReaderName

_TOLERANCE = 1e-3  # seconds: Matroska rounds the times of frames to milliseconds
Picture = NDArray[np.uint8]


class StoredFlow(Protocol):
    """Where displacements lie that were computed before, see `ssl_video.flow_cache`."""

    def read(self, path: str | Path, frames: list[int]) -> torch.Tensor:
        """From these frames of a video to the one after each, float32 ``[T, 2, h, w]``."""


@dataclass(frozen=True)
class VideoIndex:
    """When every frame of a video is shown.

    Attributes:
        times: seconds since the first frame, ascending, float64 ``[F]``.
        ticks: the same as the file counts them; empty if the file has no times of its own, and frames are counted.
        duration: seconds, with the last frame's.
        width: in pixels, as stored.
        height: in pixels, as stored.
        codec: name of the codec.
        has_audio: whether there is a sound track.
        stream: number of the video stream in the file.
        bits: of a colour value, as stored.
    """

    times: NDArray[np.float64]
    ticks: NDArray[np.int64]
    duration: float
    width: int
    height: int
    codec: str
    has_audio: bool
    stream: int = 0
    bits: int = 8

    def __len__(self) -> int:
        return len(self.times)

    @property
    def is_variable(self) -> bool:
        """Whether frames are shown for different lengths of time, beyond rounding."""
        gaps = np.diff(self.times)
        return len(gaps) > 1 and float(gaps.max() - gaps.min()) > max(0.002, 0.1 * float(np.median(gaps)))

    def frames_at(self, times: list[float]) -> list[int]:
        """The frame that is on the screen at each of these times; before the first and after the last one, that one."""
        found = np.searchsorted(self.times, np.asarray(times) + _TOLERANCE, side="right") - 1
        return [int(i) for i in found.clip(0, len(self) - 1)]


def index_video(path: str | Path) -> VideoIndex:
    """When every frame of a video is shown, from its packets: nothing is decoded. Remembered for unchanged files.

    Raises:
        UserError: no such file, or no video in it.
    """
    try:
        changed = Path(path).stat().st_mtime_ns
    except OSError as error:
        raise UserError(f"{path}: cannot be opened ({error.strerror}); expected a video file") from error
    return _index(str(path), changed)


def read_clip(
    path: str | Path,
    start: float,
    spec: ClipSpec,
    *,
    following: bool = False,
    audio: bool = False,
    flow: StoredFlow | None = None,
    reader: ReaderName = "pyav",
) -> Clips:
    """The clip of a video that begins at a time: a batch of one.

    A frame is the one on the screen at its moment, by the file's own times, so that variable frame rates need no other
    rule. What lies beyond the end of the video shows its last frame.

    Args:
        path: of the file.
        start: seconds since its first frame.
        spec: which frames.
        following: read for each frame the one after it too. A clip then ends one frame earlier, for the last frame of a
            video has none after it.
        audio: read the sound of the clip's duration too, silence where there is none; `has_audio` says so.
        flow: read the displacements to the frame after each of these from there, without the frame itself; the clip
            ends one frame earlier too.
        reader: ``pyav``, or ``torchcodec``, whose frames are the same; what it would give in other colours (more than 8
            bits) or does not understand is left to PyAV.

    Raises:
        UserError: the file cannot be read, or breaks off before a frame that is needed; torchcodec cannot be loaded.
    """
    index = index_video(path)
    wanted = index.frames_at(spec.times(start))
    after: list[int] = []
    if following or flow is not None:
        wanted = [min(frame, max(0, len(index) - 2)) for frame in wanted]
    if following:
        after = [min(frame + 1, len(index) - 1) for frame in wanted]
    needed = sorted({*wanted, *after})
    pictures = None
    if reader == "torchcodec" and index.bits == 8:
        pictures = torchcodec_reader.decode(path, needed, stream=index.stream, total=len(index))
    if pictures is None:
        pictures = read_frames(path, needed)
    samples, has_audio = None, None
    if audio:
        found = read_audio(path, start, spec.duration) if index.has_audio else None
        has_audio = torch.tensor([found is not None])
        samples = torch.zeros(1, round(spec.duration * 16000)) if found is None else torch.from_numpy(found)[None]
    return Clips(
        _stacked(pictures, wanted),
        _stacked(pictures, after) if following else None,
        samples,
        has_audio,
        None if flow is None else flow.read(path, wanted)[None],
    )


def read_frames(path: str | Path, frames: list[int]) -> dict[int, Picture]:
    """Frames of a video by their number, uint8 ``[H, W, 3]`` each.

    Decoding begins at the key frame before the first of them.

    Raises:
        UserError: the file cannot be read, or breaks off before one of them.
    """
    index = index_video(path)
    if len(index.ticks):
        by_tick = {int(index.ticks[frame]): frame for frame in frames}
        found = _by_ticks(path, by_tick, seek=True)
        if len(found) < len(frames):  # some files cannot be sought in
            found |= _by_ticks(path, by_tick, seek=False)
    else:
        found = _by_count(path, set(frames))
    missing = [frame for frame in frames if frame not in found]
    if missing:
        raise _lost(path, missing[0], index)
    return found


def every_frame(path: str | Path) -> Iterator[Picture]:
    """All frames of a video in their order, uint8 ``[H, W, 3]`` each, decoded one after the other.

    Raises:
        UserError: the file cannot be read, or a frame is missing.
    """
    index = index_video(path)
    count = 0
    with _open(path) as (container, stream):
        for frame in _decoded(container, stream):
            if count == len(index):
                return
            if len(index.ticks) and frame.pts != index.ticks[count]:
                continue  # not in the index, or after one that is lost
            yield _picture(frame)
            count += 1
    if count < len(index):
        raise _lost(path, count, index)


def _lost(path: str | Path, frame: int, index: VideoIndex) -> UserError:
    return UserError(
        f"{path}: frame {frame} of {len(index)} cannot be decoded; the file is damaged or breaks off. "
        "`ssl-video check` finds all such files"
    )


@functools.lru_cache(maxsize=20_000)
def _index(path: str, changed: int) -> VideoIndex:
    with _open(path) as (container, stream):
        ticks: list[int | None] = []
        last = 0
        for packet in container.demux(stream):
            if packet.size and not packet.is_discard:
                ticks.append(packet.pts if packet.pts is not None else packet.dts)
                last = packet.duration or last
        known = np.unique(np.array([tick for tick in ticks if tick is not None], dtype=np.int64))
        base = float(stream.time_base or 0)
        rate = float(stream.average_rate or stream.guessed_rate or 0)
        if not ticks:
            raise UserError(f"{path}: found a video stream without frames; the file is damaged or empty")
        if len(known) == len(ticks) and base > 0:
            times = (known - known[0]) * base
            shown = last * base or (float(np.median(np.diff(times))) if len(times) > 1 else 1 / (rate or 30))
        else:
            known = known[:0]
            times = np.arange(len(ticks)) / (rate or 30)
            shown = 1 / (rate or 30)
        stored = stream.codec_context.format  # None where no frame could tell: all that precedes a key frame is lost
        return VideoIndex(
            times=times,
            ticks=known,
            duration=float(times[-1]) + shown,
            width=stream.codec_context.width,
            height=stream.codec_context.height,
            codec=stream.codec_context.name,
            has_audio=bool(container.streams.audio),
            stream=stream.index,
            bits=max((part.bits for part in stored.components), default=8) if stored else 8,
        )


@contextmanager
def _open(path: str | Path) -> Iterator[tuple[Any, Any]]:
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise UserError(f"{path}: found no video stream; expected a video file")
            stream = container.streams.video[0]
            # Loading is parallel over clips already; one thread also gives the first frame soonest.
            stream.codec_context.thread_count = 1
            yield container, stream
    except av.error.FFmpegError as error:
        raise UserError(f"{path}: cannot be read as a video ({error.strerror})") from error


def _by_ticks(path: str | Path, wanted: dict[int, int], *, seek: bool) -> dict[int, Picture]:
    found: dict[int, Picture] = {}
    last = max(wanted)
    with _open(path) as (container, stream):
        if seek and min(wanted) > 0:
            container.seek(min(wanted), stream=stream, backward=True)
        for frame in _decoded(container, stream):
            if frame.pts in wanted:
                found[wanted[frame.pts]] = _picture(frame)
                if len(found) == len(wanted):
                    break
            if frame.pts is not None and frame.pts > last:
                break
    return found


def _by_count(path: str | Path, wanted: set[int]) -> dict[int, Picture]:
    found: dict[int, Picture] = {}
    with _open(path) as (container, stream):
        for number, frame in enumerate(_decoded(container, stream)):
            if number in wanted:
                found[number] = _picture(frame)
                if len(found) == len(wanted):
                    break
    return found


def _decoded(container: Any, stream: Any) -> Iterator[Any]:
    """Frames up to the end, or to where the file is broken; what is missing then is said by who needs it."""
    frames = container.decode(stream)
    while True:
        try:
            frame = next(frames)
        except (StopIteration, av.error.FFmpegError):
            return
        yield frame


def _picture(frame: Any) -> Picture:
    try:
        # One thread: PyAV's own choice is one for each core, and takes twenty times as long for a small frame.
        converted = frame.reformat(format="rgb24", threads=1)
    except TypeError:  # before PyAV 16 there is no choice
        converted = frame.reformat(format="rgb24")
    picture: Picture = converted.to_ndarray()
    turned = round(getattr(frame, "rotation", 0) / 90) % 4  # phones store what they film lying on its side
    return np.rot90(picture, turned) if turned else picture


def _stacked(pictures: dict[int, Picture], frames: list[int]) -> torch.Tensor:
    return torch.from_numpy(np.stack([pictures[frame] for frame in frames])).permute(0, 3, 1, 2).contiguous()[None]
