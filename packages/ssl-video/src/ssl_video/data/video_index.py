"""Index the frames of a video file: presentation times, picture size and orientation."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import av
import av.logging
import numpy as np
from av.sidedata.sidedata import Type as SideDataType
from numpy.typing import NDArray

from contrastive_core.errors import UserError
from contrastive_core.training.crashes import native_reader
from contrastive_core.training.files import check_regular

_TOLERANCE = 1e-3  # seconds: Matroska rounds the times of frames to milliseconds
_ATTACHED_PICTURE = 0x400  # AV_DISPOSITION_ATTACHED_PIC
_DEFAULT = 0x1  # AV_DISPOSITION_DEFAULT
_USUAL_RATE = 30.0
_LARGEST = 15360 * 8640  # pixels of a frame: 16K
_BROADCAST = frozenset({"mpegts", "mpeg", "vob"})
_STATE_DURATION = frozenset({"mov", "matroska", "avi"})
"""Containers that state their duration in front, so that it tells whether the end of a file is missing."""
_CUT_SHARE, _CUT_SECONDS = 0.1, 0.2  # of the stated duration, and seconds: smaller parts may be missing in good files
_LONGEST_PAUSE = 10.0  # seconds; FFmpeg's dts_delta_threshold
_VERIFIED = 500  # frames decoded to find out whether the stated times are in decoding order
_PLACEHOLDER = 16  # bytes; a packet of MPEG-4 without a picture takes 1 to 8
_FAKE_SHARE = 0.05  # share of frames that go back in time above which the timestamps are in decoding order

Seconds = NDArray[np.float64]


class Orientation(NamedTuple):
    """How to turn a stored picture for display: transposed first, then mirrored."""

    transpose: bool = False
    mirror: bool = False
    """Exchange left and right."""
    upend: bool = False
    """Exchange top and bottom."""

    @classmethod
    def of_matrix(cls, matrix: bytes) -> Orientation:
        """Read a display matrix: nine int32, of which a, b, c, d map (x, y) to (a x + c y, b x + d y).

        Angles are rounded to the nearest multiple of 90 degrees; `tilt_of_matrix` is what that leaves out.
        """
        a, b, c, d = _linear_part(matrix)
        if abs(a) + abs(d) >= abs(b) + abs(c):
            return cls(False, a < 0, d < 0)
        return cls(True, c < 0, b < 0)


def tilt_of_matrix(matrix: bytes) -> float:
    """Return the angle in degrees, 0 to 45, between a display matrix and the nearest multiple of 90 degrees."""
    a, b, c, d = (abs(value) for value in _linear_part(matrix))
    return math.degrees(math.atan2(min(a + d, b + c), max(a + d, b + c)))


def _linear_part(matrix: bytes) -> tuple[int, int, int, int]:
    a, b, _, c, d = (int(value) for value in np.frombuffer(matrix[:36], np.int32)[:5])
    return a, b, c, d


@dataclass(frozen=True)
class VideoIndex:
    """The frames of a video in display order.

    Attributes:
        times: Time of each frame in seconds since the first frame, ascending, float64 ``[F]``.
        ticks: The same in the file's own units. Empty if the file states no usable times: frames are then found by
            decoding from the start and counting.
        duration: Duration in seconds, including the last frame.
        width: Width in pixels, as displayed.
        height: Height in pixels, as displayed.
        codec: Name of the codec.
        has_audio: Whether there is a sound track.
        stream: Number of the video stream in the file.
        bits: Bits per colour value, as stored.
        orientation: How to turn stored pictures for display.
        clock: Time of each frame on the file's own clock in seconds, float64 ``[F]``; empty if it has none.
            It differs from `times` in its origin, and in its jumps.
        container: FFmpeg's name of the file format.
        interlaced: Whether pictures are stored as two fields.
        skipped: Number of pictures at the start that cannot be decoded because the file was cut between key frames.
        jumps: Numbers of the frames at which the file's clock goes back, as in joined streams.
        matrix: Number of the colour matrix as the file states it (ITU-T H.273): 1 for BT.709, 2 for none.
        tilt: Angle in degrees between the stated rotation and `orientation`, which is a multiple of 90 degrees.
        stated: Duration in seconds that the file states, if its video and all its other streams end clearly before: the
            file was cut. 0 otherwise.
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
    matrix: int = 2
    tilt: float = 0.0
    stated: float = 0.0

    def __len__(self) -> int:
        return len(self.times)

    @property
    def is_variable(self) -> bool:
        """Whether frame durations differ by more than rounding."""
        gaps = np.diff(self.times)
        return len(gaps) > 1 and float(gaps.max() - gaps.min()) > max(0.002, 0.1 * float(np.median(gaps)))

    @property
    def stored_size(self) -> tuple[int, int]:
        """Width and height of a picture before it is turned for display."""
        return (self.height, self.width) if self.orientation.transpose else (self.width, self.height)

    def frames_at(self, times: list[float]) -> list[int]:
        """Return the frame shown at each of these times; the first or last frame outside the video."""
        indices = np.searchsorted(self.times, np.asarray(times) + _TOLERANCE, side="right") - 1
        places: list[int] = indices.clip(0, len(self) - 1).tolist()
        return places

    def on_clock(self, time: float) -> float:
        """Convert a time since the first frame to the file's own clock, in seconds."""
        if not len(self.clock):
            return time
        frame = self.frames_at([time])[0]
        return float(self.clock[frame]) + time - float(self.times[frame])

    def number(self, tick: int | None, count: int) -> int | None:
        """Return the number of a decoded frame by its time, or by the count of frames before it; None if not listed."""
        if not len(self.ticks):
            return count if count < len(self) else None
        return None if tick is None else self._numbers.get(tick)

    @functools.cached_property
    def _numbers(self) -> dict[int, int]:
        """Number of the frame at each tick; the first one if ticks are equal."""
        ticks = self.ticks.tolist()
        return dict(zip(reversed(ticks), reversed(range(len(ticks))), strict=True))


def index_video(path: str | Path) -> VideoIndex:
    """Index a video. The result is cached until the file changes.

    The times come from the packets, and only the first frame is decoded. If the packets do not state when their frames
    are shown, all frames are decoded, once. This is the case if there are no times, if times repeat or go back (joined
    streams), or if they are in decoding order (H.264 with B-frames in AVI; detected from the first 500 frames).

    Raises:
        UserError: There is no such file, no video in it, or none that can be decoded.
    """
    try:
        state = os.stat(path)  # noqa: PTH116 - twice as fast as Path.stat, and called for every clip
    except OSError as error:
        raise UserError(f"{path}: cannot be opened ({error.strerror}); expected a video file") from error
    return _index(str(path), state.st_mtime_ns, state.st_size)


@contextmanager
def open_file(path: str | Path, what: str) -> Iterator[Any]:
    """Open a file with PyAV and close it again; every error inside becomes a `UserError` that names the file.

    PyAV raises many kinds of errors for unusual files, and one file must not stop the work on all others.

    Raises:
        UserError: Reading fails for any reason.
    """
    try:
        if not check_regular(path, what="a video file"):
            raise UserError(f"{path}: is empty; expected a video file")
        # "file:": a colon in a name does not make it a protocol. Metadata may be in any encoding, and are not used.
        with native_reader(path), av.open(f"file:{path}", metadata_errors="replace") as container:
            yield container
    except UserError:
        raise
    except Exception as error:
        text = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UserError(f"{path}: {what} ({str(text).splitlines()[0][:200]})") from error


@contextmanager
def open_video(path: str | Path) -> Iterator[tuple[Any, Any]]:
    """Open a file; yields PyAV's container and the video stream that players show.

    Raises:
        UserError: There is no video that can be decoded, or reading fails.
    """
    with open_file(path, "cannot be read as a video") as container:
        stream = _video_stream(container, path)
        width, height = stream.codec_context.width, stream.codec_context.height
        if width * height > _LARGEST:
            raise UserError(
                f"{path}: its frames have {width}x{height} pixels; expected at most {_LARGEST:,}. The file is damaged; "
                "convert it again"
            )
        # In some codecs, each frame states its own size.
        stream.codec_context.options = {"max_pixels": str(_LARGEST)}
        # Loading is already parallel over clips; with one thread, the first frame also arrives soonest.
        stream.codec_context.thread_count = 1
        yield container, stream


def seek(container: Any, stream: Any, ticks: int) -> bool:
    """Go to the last key frame up to a time in ticks.

    Returns:
        Whether it worked: some formats cannot be searched, and FLV not for a time before its first sound.
    """
    try:
        container.seek(ticks, stream=stream, backward=True)
    except (av.error.FFmpegError, OverflowError):
        return False
    return True


def decoded(container: Any, stream: Any) -> Iterator[Any]:
    """Yield all frames that can be decoded, in decoder order; damaged packets are skipped, as in the ffmpeg program.

    Missing frames are reported by the caller that needs them.
    """
    for packet in _packets(container, stream):
        yield from _frames(packet)


def _packets(container: Any, stream: Any) -> Iterator[Any]:
    """Yield all packets, up to the end or the point where reading fails; the last one is empty."""
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
    """Replacement for the empty last packet of a truncated file."""

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
    """Return the stream that players show: decodable, not a cover picture, the default one or else the largest."""
    streams = list(container.streams.video)
    videos = [stream for stream in streams if not int(getattr(stream, "disposition", 0)) & _ATTACHED_PICTURE]
    if not videos:
        contents = "a cover picture and no video" if streams else "no video stream"
        raise UserError(f"{path}: found {contents}; expected a video file")
    candidates = [stream for stream in videos if stream.codec_context is not None]
    if not candidates:
        raise UserError(
            f"{path}: its video is in the codec {unknown_codec(container, 'Video')}, which this FFmpeg cannot decode "
            "(encrypted, or too new); convert it to H.264, or remove it"
        )
    return max(
        candidates, key=lambda stream: (is_default(stream), stream.codec_context.width * stream.codec_context.height)
    )


def unknown_codec(container: Any, kind: Literal["Video", "Audio"]) -> str:
    """Return the code that a file states for the codec of its first undecodable stream, such as ``drmi``."""
    level = av.logging.get_level()
    av.logging.set_level(av.logging.INFO)  # PyAV describes a file through the log
    try:
        description = container.dumps_format()
    finally:
        av.logging.set_level(level)
    match = re.search(rf"{kind}: none \((.{{1,40}}?) / 0x", description)
    return repr(match[1]) if match else "of an unknown name"


def is_default(stream: Any) -> bool:
    """Whether a file marks a stream as the one to play."""
    return bool(int(getattr(stream, "disposition", 0)) & _DEFAULT)


class _PacketTimes(NamedTuple):
    """Timestamps of a packet that holds a picture."""

    pts: int | None
    dts: int | None


@functools.lru_cache(maxsize=20_000)
def _index(path: str, mtime: int, size: int) -> VideoIndex:
    index = _build_index(path)
    if index.stated and _ends_before(index.duration, index.stated):
        with open_video(path) as (container, _):
            if _ends_before(_end(container), index.stated):
                return index
    return dataclasses.replace(index, stated=0.0)


def _stated_duration(container: Any, stream: Any) -> float:
    """Return the duration of the video that a file states, in seconds; 0 if it states none."""
    name = container.format.name
    if not set(name.split(",")) & _STATE_DURATION:
        return 0.0
    if name == "avi":  # FFmpeg shortens the duration of a file that was cut, but not its number of frames
        return float(stream.frames * stream.time_base)
    of_stream = math.inf if not stream.duration else float(stream.duration * stream.time_base)
    of_file = math.inf if not container.duration else container.duration / av.time_base
    shorter = min(of_stream, of_file)  # an edit list shortens one of them
    return shorter if shorter < math.inf else 0.0


def _ends_before(end: float, duration: float) -> bool:
    return end < (1 - _CUT_SHARE) * duration and duration - end > _CUT_SECONDS


def _end(container: Any) -> float:
    """Return the end of the last packet of any stream in seconds, on the file's clock, which may start after 0."""
    last = 0.0
    try:
        for packet in container.demux():
            if packet.pts is not None and packet.size:
                last = max(last, float((packet.pts + (packet.duration or 0)) * packet.time_base))
    except av.error.FFmpegError:  # the file ends within a packet
        pass
    return last


def _build_index(path: str) -> VideoIndex:
    packets: list[_PacketTimes] = []
    first: Any = None
    last_duration, smallest = 0, sys.maxsize
    with open_video(path) as (container, stream):
        for packet in _packets(container, stream):
            if packet.size and not packet.is_discard and not _is_invisible(packet, stream):
                packets.append(_PacketTimes(packet.pts, packet.dts))
                last_duration, smallest = packet.duration or last_duration, min(smallest, packet.size)
            if first is None:
                first = next(iter(_frames(packet)), None)
        if not packets:
            raise UserError(f"{path}: found a video stream without frames; the file is damaged or empty")
        if first is None:
            raise UserError(f"{path}: none of its {len(packets)} frames can be decoded; the file is damaged")
        orientation, tilt = _orientation(first)
        display_size = (first.height, first.width) if orientation.transpose else (first.width, first.height)
        index = VideoIndex(
            times=np.zeros(0),
            ticks=np.zeros(0, np.int64),
            duration=0.0,
            width=display_size[0],
            height=display_size[1],
            codec=stream.codec_context.name,
            has_audio=bool(container.streams.audio),
            stream=stream.index,
            bits=max((component.bits for component in first.format.components), default=8),
            orientation=orientation,
            container=container.format.name,
            interlaced=bool(getattr(first, "interlaced_frame", False)),
            matrix=int(first.colorspace),
            tilt=tilt,
            stated=_stated_duration(container, stream),
        )
        base = float(stream.time_base or 0)
        rate = float(stream.guessed_rate or stream.average_rate or _USUAL_RATE)
        begin = first.pts
        reorders = bool(stream.codec_context.has_b_frames)
    if base > 0 and begin is not None and _tell_times(packets):
        ticks = np.sort(np.array([entry.pts for entry in packets], dtype=np.int64))
        # Xvid packs two pictures into a packet, and a packet without one follows: the times are in no order at all.
        is_packed = index.codec == "mpeg4" and smallest <= _PLACEHOLDER
        if not reorders or (_is_reordered(packets) and not is_packed) or not _is_decoding_order(path):
            ticks = _without_lost(path, ticks, begin, base) if reorders else ticks
            return _with_times(index, ticks[ticks >= begin], base, last_duration, skipped=int((ticks < begin).sum()))
    with open_video(path) as (container, stream):
        order = [frame.pts for frame in decoded(container, stream)]
    ticks = np.array([tick for tick in order if tick is not None], dtype=np.int64)
    if len(ticks) == len(order) and base > 0:
        steps = np.diff(ticks)
        if (steps > 0).all():
            return _with_times(index, ticks, base, last_duration, skipped=max(0, len(packets) - len(order)))
        if (steps >= 0).all() and (steps > 0).any():
            return _with_repeats(index, ticks, base)
        if _goes_back([entry.dts for entry in packets]) or (steps <= 0).mean() <= _FAKE_SHARE:
            return _with_jumps(index, ticks, base, rate)
    times = np.arange(len(order)) / rate
    return dataclasses.replace(index, times=times, duration=float(times[-1]) + 1 / rate)


def _with_times(
    index: VideoIndex, ticks: NDArray[np.int64], base: float, last_duration: int, *, skipped: int
) -> VideoIndex:
    """Complete the index of a file whose frames have ascending times."""
    steps = np.diff(ticks) * base
    if set(index.container.split(",")) & _BROADCAST:
        # In a broadcast, a clock that jumps ahead means another recording, not a pause, as in the ffmpeg program.
        steps = np.where(steps > _LONGEST_PAUSE, np.median(steps) if len(steps) else 0.0, steps)
    times: Seconds = np.concatenate([[0.0], np.cumsum(steps)])
    last_step = last_duration * base or (float(np.median(steps)) if len(steps) else 1 / _USUAL_RATE)
    return dataclasses.replace(
        index,
        times=times,
        ticks=ticks,
        clock=ticks.astype(np.float64) * base,
        duration=float(times[-1]) + last_step,
        skipped=skipped,
    )


def _with_repeats(index: VideoIndex, ticks: NDArray[np.int64], base: float) -> VideoIndex:
    """Complete the index of a file with more frames than times, such as 2,000 per second in Matroska's milliseconds.

    Frames with the same time are spread evenly up to the next time.
    """
    distinct, first = np.unique(ticks, return_index=True)
    usual = (distinct[-1] - distinct[0]) / first[-1]
    places, moments = [*first, len(ticks)], [*distinct, distinct[-1] + usual * (len(ticks) - first[-1])]
    *times, end = ((np.interp(np.arange(len(ticks) + 1), places, moments) - distinct[0]) * base).tolist()
    clock = ticks.astype(np.float64) * base
    return dataclasses.replace(index, times=np.array(times), duration=float(end), clock=clock)


def _with_jumps(index: VideoIndex, ticks: NDArray[np.int64], base: float, rate: float) -> VideoIndex:
    """Complete the index of joined streams: each continues where the one before it ends."""
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


def _tell_times(packets: list[_PacketTimes]) -> bool:
    """Whether every packet has a time of its own, and none goes back."""
    times = {entry.pts for entry in packets if entry.pts is not None}
    return len(times) == len(packets) and not _goes_back([entry.dts for entry in packets])


def _is_reordered(packets: list[_PacketTimes]) -> bool:
    """Whether the order of display differs from the order in the file."""
    return _goes_back([entry.pts for entry in packets])


def _is_decoding_order(path: str) -> bool:
    """Whether the stated times are not those of the frames, as in containers that only count packets (AVI).

    If so, the frames go back in time again and again in the order in which the decoder returns them.
    """
    with open_video(path) as (container, stream):
        frames = itertools.islice(decoded(container, stream), _VERIFIED)
        order = [frame.pts for frame in frames if frame.pts is not None]
    return len(order) > 1 and bool((np.diff(order) <= 0).mean() > _FAKE_SHARE)


def _without_lost(path: str, ticks: NDArray[np.int64], begin: int, base: float) -> NDArray[np.int64]:
    """Remove the frames of a cut file that refer to missing ones, if they are stated at the time of the first frame.

    The ffmpeg program writes them a tick after it where their own times would be earlier.
    """
    close = ticks[(ticks > begin) & (ticks < begin + _TOLERANCE / base)]
    if not len(close):
        return ticks
    with open_video(path) as (container, stream):
        second = next((frame.pts for frame in decoded(container, stream) if frame.pts not in (None, begin)), begin)
    return ticks[~(np.isin(ticks, close) & (ticks < second))]


def _goes_back(ticks: list[int | None]) -> bool:
    values = [tick for tick in ticks if tick is not None]
    return any(b < a for a, b in itertools.pairwise(values))


def _is_invisible(packet: Any, stream: Any) -> bool:
    """Whether a packet of VP8 holds a reference picture that is not shown; WebM and AVI list it like any other."""
    return stream.codec_context.name in ("vp8", "libvpx") and not bytes(packet)[0] & 0x10


def _orientation(frame: Any) -> tuple[Orientation, float]:
    """Return the orientation that a frame states, and the angle in degrees that it leaves out."""
    try:
        entries = frame.side_data
    except ValueError:  # PyAV cannot list data without a name in its table, such as EXIF and the views of spatial video
        placeholder: Any = object.__new__(SideDataType)
        placeholder._name_, placeholder._value_ = "UNNAMED", -1
        SideDataType._missing_ = classmethod(lambda _, value: placeholder)  # type: ignore[method-assign,assignment]
        entries = frame.side_data
    for data in entries:
        if data.type.name == "DISPLAYMATRIX":
            return Orientation.of_matrix(bytes(data)), tilt_of_matrix(bytes(data))
    return Orientation(), 0.0
