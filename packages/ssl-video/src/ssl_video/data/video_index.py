"""Index the frames of a video file: presentation times, picture size and orientation."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from numpy.typing import NDArray

from contrastive_core.errors import UserError

_TOLERANCE = 1e-3  # seconds: Matroska rounds the times of frames to milliseconds
_ATTACHED_PICTURE = 0x400  # AV_DISPOSITION_ATTACHED_PIC
_DEFAULT = 0x1  # AV_DISPOSITION_DEFAULT
_USUAL_RATE = 30.0
_BROADCAST = frozenset({"mpegts", "mpeg", "vob"})
_LONGEST_PAUSE = 10.0  # seconds; FFmpeg's dts_delta_threshold
_VERIFIED = 500  # frames that are decoded to see whether times are those of decoding
_FAKE_SHARE = 0.05  # of frames that go back in time, above which timestamps are taken for decoding order

Seconds = NDArray[np.float64]


class Orientation(NamedTuple):
    """How a stored picture is turned for display: transposed first, then mirrored."""

    transpose: bool = False
    mirror: bool = False
    """Left and right are exchanged."""
    upend: bool = False
    """Top and bottom are exchanged."""

    @classmethod
    def of_matrix(cls, matrix: bytes) -> Orientation:
        """The orientation of a display matrix: nine int32, of which a, b, c, d map (x, y) to (a x + c y, b x + d y).

        Other angles than multiples of 90 degrees become the nearest multiple.
        """
        a, b, _, c, d = (int(value) for value in np.frombuffer(matrix[:36], np.int32)[:5])
        if abs(a) + abs(d) >= abs(b) + abs(c):
            return cls(False, a < 0, d < 0)
        return cls(True, c < 0, b < 0)


@dataclass(frozen=True)
class VideoIndex:
    """The frames of a video in the order in which they are shown.

    Attributes:
        times: seconds since the first frame, ascending, float64 ``[F]``.
        ticks: the same in the file's own units. Empty if the file states no usable times: then a frame is found by
            decoding from the start and counting.
        duration: seconds, including the last frame.
        width: in pixels, as displayed.
        height: in pixels, as displayed.
        codec: name of the codec.
        has_audio: whether there is a sound track.
        stream: number of the video stream in the file.
        bits: bits of a colour value, as stored.
        orientation: how stored pictures are turned for display.
        clock: times of the frames on the file's own clock in seconds, float64 ``[F]``; empty if it has none.
            It differs from `times` by where it starts, and where it jumps.
        container: FFmpeg's name of the file format.
        interlaced: whether pictures are stored as two fields.
        skipped: pictures at the start that cannot be decoded because the file was cut between key frames.
        jumps: numbers of the frames at which the file's clock goes back, as in joined streams.
    """

    times: Seconds
    ticks: NDArray[np.int64]
    duration: float
    width: int
    height: int
    codec: str
    has_audio: bool
    stream: int = 0
    bits: int = 8
    orientation: Orientation = Orientation()  # noqa: RUF009 - immutable
    clock: Seconds = field(default_factory=lambda: np.zeros(0))
    container: str = ""
    interlaced: bool = False
    skipped: int = 0
    jumps: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.times)

    @property
    def is_variable(self) -> bool:
        """Whether frames are shown for different lengths of time, beyond rounding."""
        gaps = np.diff(self.times)
        return len(gaps) > 1 and float(gaps.max() - gaps.min()) > max(0.002, 0.1 * float(np.median(gaps)))

    @property
    def stored_size(self) -> tuple[int, int]:
        """Width and height of a picture before it is turned for display."""
        return (self.height, self.width) if self.orientation.transpose else (self.width, self.height)

    def frames_at(self, times: list[float]) -> list[int]:
        """The frame that is on the screen at each of these times; before the first and after the last one, that one."""
        found = np.searchsorted(self.times, np.asarray(times) + _TOLERANCE, side="right") - 1
        return [int(i) for i in found.clip(0, len(self) - 1)]

    def on_clock(self, time: float) -> float:
        """A time since the first frame on the file's own clock, in seconds."""
        if not len(self.clock):
            return time
        frame = self.frames_at([time])[0]
        return float(self.clock[frame]) + time - float(self.times[frame])

    def number(self, tick: int | None, count: int) -> int | None:
        """The number of a decoded frame: by its time, or by how many were decoded before it; None if not listed."""
        if not len(self.ticks):
            return count if count < len(self) else None
        return None if tick is None else self._numbers.get(tick)

    @functools.cached_property
    def _numbers(self) -> dict[int, int]:
        """The number of the frame of each tick; of equal ticks the first."""
        ticks = self.ticks.tolist()
        return dict(zip(reversed(ticks), reversed(range(len(ticks))), strict=True))


def index_video(path: str | Path) -> VideoIndex:
    """Index a video. Remembered for unchanged files.

    The times come from the packets, and only the first frame is decoded. All frames are decoded, once, where the
    packets do not tell when their frames are shown: no times, times that repeat or go back (joined streams), or the
    decoding order in place of times (H.264 with B-frames in AVI; seen from the first 500 frames).

    Raises:
        UserError: no such file, no video in it, or none that can be decoded.
    """
    try:
        state = os.stat(path)  # noqa: PTH116 - half the time of Path.stat, for every clip
    except OSError as error:
        raise UserError(f"{path}: cannot be opened ({error.strerror}); expected a video file") from error
    return _index(str(path), state.st_mtime_ns, state.st_size)


@contextmanager
def open_file(path: str | Path, what: str) -> Iterator[Any]:
    """Open a file with PyAV and close it again; every error inside becomes the file's own.

    PyAV has many kinds of errors for unusual files, and one file must not end the work on all others.

    Raises:
        UserError: reading fails in any way.
    """
    try:
        # "file:": a name with a colon is no protocol. Metadata may be in any encoding, and are not looked at.
        with av.open(f"file:{path}", metadata_errors="replace") as container:
            yield container
    except UserError:
        raise
    except Exception as error:
        text = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UserError(f"{path}: {what} ({str(text).splitlines()[0][:200]})") from error


@contextmanager
def open_video(path: str | Path) -> Iterator[tuple[Any, Any]]:
    """Open a file; gives PyAV's container and the video stream that players show.

    Raises:
        UserError: there is no video that can be decoded, or reading fails.
    """
    with open_file(path, "cannot be read as a video") as container:
        stream = _video_stream(container, path)
        # Loading is parallel over clips already; one thread also gives the first frame soonest.
        stream.codec_context.thread_count = 1
        yield container, stream


def decoded(container: Any, stream: Any) -> Iterator[Any]:
    """All frames that can be decoded, in the decoder's order; damaged packets are skipped, as the ffmpeg program does.

    Frames that are missing are reported by the caller who needs them.
    """
    for packet in _packets(container, stream):
        yield from _frames(packet)


def _packets(container: Any, stream: Any) -> Iterator[Any]:
    """All packets, up to the end or to where the file cannot be read further; the last one is empty."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except av.error.FFmpegError:
            yield _End(stream)
            return
        yield packet


class _End:
    """Takes the place of the empty packet at the end of a file that breaks off."""

    size, is_discard, pts, dts, duration = 0, False, None, None, 0

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def decode(self) -> Any:
        return self._stream.codec_context.decode(None)


def _frames(packet: Any) -> list[Any]:
    try:
        return list(packet.decode())
    except av.error.FFmpegError:
        return []


def _video_stream(container: Any, path: str | Path) -> Any:
    """The stream that players show: decodable, no cover picture, the default one, else the largest."""
    streams = list(container.streams.video)
    videos = [stream for stream in streams if not int(getattr(stream, "disposition", 0)) & _ATTACHED_PICTURE]
    if not videos:
        found = "a cover picture and no video" if streams else "no video stream"
        raise UserError(f"{path}: found {found}; expected a video file")
    known = [stream for stream in videos if stream.codec_context is not None]
    if not known:
        raise UserError(
            f"{path}: its video is in a codec that this FFmpeg cannot decode (encrypted, or too new); convert it to "
            "H.264, or remove it"
        )
    return max(known, key=lambda stream: (is_default(stream), stream.codec_context.width * stream.codec_context.height))


def is_default(stream: Any) -> bool:
    """Whether a file marks a stream as the one to play."""
    return bool(int(getattr(stream, "disposition", 0)) & _DEFAULT)


class _Listed(NamedTuple):
    """Of a packet that holds a picture."""

    pts: int | None
    dts: int | None


@functools.lru_cache(maxsize=20_000)
def _index(path: str, changed: int, size: int) -> VideoIndex:
    listed: list[_Listed] = []
    first: Any = None
    last_duration = 0
    with open_video(path) as (container, stream):
        for packet in _packets(container, stream):
            if packet.size and not packet.is_discard and not _is_invisible(packet, stream):
                listed.append(_Listed(packet.pts, packet.dts))
                last_duration = packet.duration or last_duration
            if first is None:
                first = next(iter(_frames(packet)), None)
        if not listed:
            raise UserError(f"{path}: found a video stream without frames; the file is damaged or empty")
        if first is None:
            raise UserError(f"{path}: none of its {len(listed)} frames can be decoded; the file is damaged")
        orientation = _orientation(first)
        size_shown = (first.height, first.width) if orientation.transpose else (first.width, first.height)
        index = VideoIndex(
            times=np.zeros(0),
            ticks=np.zeros(0, np.int64),
            duration=0.0,
            width=size_shown[0],
            height=size_shown[1],
            codec=stream.codec_context.name,
            has_audio=bool(container.streams.audio),
            stream=stream.index,
            bits=max((part.bits for part in first.format.components), default=8),
            orientation=orientation,
            container=container.format.name,
            interlaced=bool(getattr(first, "interlaced_frame", False)),
        )
        base = float(stream.time_base or 0)
        rate = float(stream.guessed_rate or stream.average_rate or _USUAL_RATE)
        begin = first.pts
        reorders = bool(stream.codec_context.has_b_frames)
    if base > 0 and begin is not None and _tell_times(listed):
        known = np.sort(np.array([entry.pts for entry in listed], dtype=np.int64))
        if not reorders or _is_reordered(listed) or not _is_decoding_order(path):
            return _timed(index, known[known >= begin], base, last_duration, skipped=int((known < begin).sum()))
    with open_video(path) as (container, stream):
        order = [frame.pts for frame in decoded(container, stream)]
    known = np.array([tick for tick in order if tick is not None], dtype=np.int64)
    if len(known) == len(order) and base > 0:
        steps = np.diff(known)
        if (steps > 0).all():
            return _timed(index, known, base, last_duration, skipped=max(0, len(listed) - len(order)))
        if _goes_back([entry.dts for entry in listed]) or (steps <= 0).mean() <= _FAKE_SHARE:
            return _joined(index, known, base, rate)
    times = np.arange(len(order)) / rate
    return dataclasses.replace(index, times=times, duration=float(times[-1]) + 1 / rate)


def _timed(index: VideoIndex, ticks: NDArray[np.int64], base: float, last_duration: int, *, skipped: int) -> VideoIndex:
    """The index of a file whose frames have ascending times."""
    steps = np.diff(ticks) * base
    if set(index.container.split(",")) & _BROADCAST:
        # A clock that jumps ahead there tells of another recording, as the ffmpeg program takes it, not of a pause.
        steps = np.where(steps > _LONGEST_PAUSE, np.median(steps) if len(steps) else 0.0, steps)
    times: Seconds = np.concatenate([[0.0], np.cumsum(steps)])
    shown = last_duration * base or (float(np.median(steps)) if len(steps) else 1 / _USUAL_RATE)
    return dataclasses.replace(
        index,
        times=times,
        ticks=ticks,
        clock=ticks.astype(np.float64) * base,
        duration=float(times[-1]) + shown,
        skipped=skipped,
    )


def _joined(index: VideoIndex, ticks: NDArray[np.int64], base: float, rate: float) -> VideoIndex:
    """The index of streams put behind one another: each goes on where the one before it ends."""
    steps = np.diff(ticks)
    usual = float(np.median(steps[steps > 0])) if (steps > 0).any() else 1 / (rate * base)
    times = np.concatenate([[0.0], np.cumsum(np.where(steps > 0, steps, usual))]) * base
    return dataclasses.replace(
        index,
        times=times,
        duration=float(times[-1]) + usual * base,
        clock=ticks.astype(np.float64) * base,
        jumps=tuple(int(place) + 1 for place in np.flatnonzero(steps <= 0)),
    )


def _tell_times(listed: list[_Listed]) -> bool:
    """Whether every packet states a time of its own, and none goes back."""
    known = {entry.pts for entry in listed if entry.pts is not None}
    return len(known) == len(listed) and not _goes_back([entry.dts for entry in listed])


def _is_reordered(listed: list[_Listed]) -> bool:
    """Whether some frames are shown in another order than that of the file."""
    return _goes_back([entry.pts for entry in listed])


def _is_decoding_order(path: str) -> bool:
    """Whether the stated times only count packets, as in containers without times of their own (AVI).

    Then the frames that the decoder puts in order go back in time again and again.
    """
    with open_video(path) as (container, stream):
        frames = itertools.islice(decoded(container, stream), _VERIFIED)
        order = [frame.pts for frame in frames if frame.pts is not None]
    return len(order) > 1 and bool((np.diff(order) <= 0).mean() > _FAKE_SHARE)


def _goes_back(ticks: list[int | None]) -> bool:
    known = [tick for tick in ticks if tick is not None]
    return any(b < a for a, b in itertools.pairwise(known))


def _is_invisible(packet: Any, stream: Any) -> bool:
    """Whether a packet of VP8 holds a reference picture that is not shown; WebM and AVI list it as any other."""
    return stream.codec_context.name in ("vp8", "libvpx") and not bytes(packet)[0] & 0x10


def _orientation(frame: Any) -> Orientation:
    for data in frame.side_data:
        if data.type.name == "DISPLAYMATRIX":
            return Orientation.of_matrix(bytes(data))
    return Orientation()
