"""Read clips and frames of video files with PyAV; a data set of clips.

Only the requested frames are converted to pictures. Pictures are turned for display, and resized on request.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
import math
import sys
import zlib
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import av
import av.filter
import av.logging
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from contrastive_core.errors import UserError
from contrastive_core.training.config import SkipOptions, allowed_bad, check_fields
from contrastive_core.training.documents import read_json_lines, reading
from contrastive_core.training.files import append_line
from ssl_video.data import torchcodec_reader
from ssl_video.data.audio_reader import read_audio
from ssl_video.data.clip import Clips, ClipSpec, Sample, clip_start
from ssl_video.data.torchcodec_reader import ReaderName, check_reader
from ssl_video.data.video_index import Orientation, VideoIndex, decoded, index_video, open_video, seek
from ssl_video.data.videos import VideoSet

_LEADS = (0.0, 3.0)  # seconds before a frame to look for its key frame, before decoding from the start
_REORDERED = 16  # frames: the most that H.264 and HEVC reorder
Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class ReadOptions:
    """How to read clips.

    Attributes:
        flow_cache: Output folder of `ssl-video flow`, for the view flow; by default flow is computed for every clip.
        reader: Decoder of the frames: pyav, or torchcodec (an extra), with the same frames and sometimes faster.
    """

    flow_cache: Path | None = None
    reader: ReaderName = "pyav"


@dataclass(frozen=True)
class TolerantReadOptions(SkipOptions, ReadOptions):
    """How to read clips, and how many videos may be unreadable."""


@dataclass(frozen=True)
class TrainingReadOptions(TolerantReadOptions):
    """How to read clips for training, where every video is read again and again.

    Attributes:
        cache: Folder for decoded frames, which several runs can share; by default every clip is decoded. A video takes
            3 bytes per pixel and frame, as much as 45 MB for 200 frames of 320x240 pixels.
        cache_size: Largest size of the folder `cache` in gigabytes; videos that do not fit, or take more than 1/20 of
            it, are decoded for every clip.
    """

    cache: Path | None = None
    cache_size: float = 20.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, "read", cache_size=(0 < self.cache_size < math.inf, "a number of gigabytes above 0"))


class StoredFrames(Protocol):
    """Source of decoded frames, see `ssl_video.data.frame_cache`."""

    def read(self, path: str | Path, index: VideoIndex, frames: Sequence[int]) -> Picture | None:
        """Return these frames of a video, uint8 ``[T, 3, H, W]``; None if they have to be decoded."""


class StoredFlow(Protocol):
    """Source of precomputed optical flow, see `ssl_video.optical_flow.cache`."""

    def read(self, path: str | Path, frames: list[int]) -> Tensor:
        """Return the displacements from these frames to the frame after each, float32 ``[T, 2, h, w]``."""


def read_clip(
    path: str | Path,
    start: float,
    spec: ClipSpec,
    *,
    following: bool = False,
    audio: bool = False,
    flow: StoredFlow | None = None,
    frames: StoredFrames | None = None,
    reader: ReaderName = "pyav",
) -> Clips:
    """Read the clip of a video that starts at a given time, as a batch of one.

    Each frame is the one shown at its time, by the file's own timestamps, so that variable frame rates need no special
    treatment. Times after the end of the video show its last frame.

    Args:
        path: Path of the file.
        start: Start in seconds since the first frame.
        spec: Frames of the clip.
        following: Also read the frame after each frame. The clip then ends one frame earlier, because no frame follows
            the last one of a video.
        audio: Also read the sound of the clip, silence if there is none; `Clips.has_audio` tells which.
        flow: Source of the displacements to the frame after each frame, which is then not read itself; the clip ends
            one frame earlier too.
        frames: Source of decoded frames, equal to those that are decoded here.
        reader: ``pyav``, or ``torchcodec``, whose frames are the same; files whose frames or colours would differ are
            read with PyAV, see `torchcodec_reader.decode`.

    Raises:
        UserError: The file cannot be read, or ends before a frame that is needed; torchcodec cannot be loaded.
    """
    index = index_video(path)
    if index.stated:
        _say_cut(str(path), round(index.duration, 2), round(index.stated, 2))
    frame_numbers = index.frames_at(spec.times(start))
    after: list[int] = []
    if following or flow is not None:
        frame_numbers = [min(frame, max(0, len(index) - 2)) for frame in frame_numbers]
    if following:
        after = [min(frame + 1, len(index) - 1) for frame in frame_numbers]
    pictures = None if frames is None else frames.read(path, index, [*frame_numbers, *after])
    if pictures is None:
        pictures = _decode(path, [*frame_numbers, *after], index, reader)
    clip = torch.from_numpy(pictures)[None]
    samples, has_audio = None, None
    if audio:
        sound = read_audio(path, start, spec.duration) if index.has_audio else None
        has_audio = torch.tensor([sound is not None])
        samples = torch.zeros(1, round(spec.duration * 16000)) if sound is None else torch.from_numpy(sound)[None]
    return Clips(
        clip[:, : len(frame_numbers)],
        clip[:, len(frame_numbers) :] if following else None,
        samples,
        has_audio,
        None if flow is None else flow.read(path, frame_numbers)[None],
    )


@functools.lru_cache(maxsize=10_000)
def _say_cut(path: str, duration: float, full_duration: float) -> None:
    """Report a file without its end, once."""
    worker = get_worker_info()
    if worker is None or worker.id == 0:  # every loader process reads every video sooner or later
        text = f"note: {path}: ends after {duration:g} s of the {full_duration:g} s that it states; the rest is missing"
        print(text, file=sys.stderr, flush=True)  # noqa: T201


def _decode(path: str | Path, frames: Sequence[int], index: VideoIndex, reader: ReaderName) -> Picture:
    """Decode frames of a video, which may repeat, uint8 ``[T, 3, H, W]``."""
    frame_numbers, pictures = sorted(set(frames)), None
    if reader == "torchcodec":
        pictures = torchcodec_reader.decode(path, frame_numbers, index)
    if pictures is None:
        pictures = read_frames(path, frame_numbers)
    return np.ascontiguousarray(np.stack([pictures[frame] for frame in frames]).transpose(0, 3, 1, 2))


def read_frames(path: str | Path, frames: list[int]) -> dict[int, Picture]:
    """Read frames of a video by their numbers, uint8 ``[H, W, 3]`` each, as displayed and all of one size.

    Decoding starts at the key frame before the first of them, or at the start of a file that is not seekable.

    Raises:
        UserError: The file cannot be read, or ends before one of them.
    """
    index = index_video(path)
    frame_numbers = set(frames)
    for lead in _LEADS if len(index.ticks) else ():
        pictures = _from_key_frame(path, index, frame_numbers, lead)
        if len(pictures) == len(frame_numbers):
            return pictures
    pictures = {}
    with contextlib.closing(_walk(path, index)) as walk:
        for number, frame in walk:
            if number in frame_numbers and number not in pictures:
                pictures[number] = _picture(frame, index, path)
                if len(pictures) == len(frame_numbers):
                    return pictures
    missing = min(frame_numbers - set(pictures))
    raise _missing_frame(path, missing, index)


def every_frame(path: str | Path, *, intact: bool = False) -> Iterator[Picture]:
    """Yield all frames of a video in order, uint8 ``[H, W, 3]`` each, as displayed and all of one size.

    Args:
        path: Path of the file.
        intact: Also raise an error for damaged frames that the decoder concealed.

    Raises:
        UserError: The file cannot be read, or a frame is missing.
    """
    index = index_video(path)
    next_number = 0
    early: dict[int, Picture] = {}  # from damaged streams, the decoder returns some frames in another order
    for number, frame in _walk(path, index):
        if len(early) > _REORDERED or (intact and frame.is_corrupt):
            break
        if number >= next_number:
            early.setdefault(number, _picture(frame, index, path))
        while next_number in early:
            yield early.pop(next_number)
            next_number += 1
    if next_number < len(index):
        raise _missing_frame(path, next_number, index)


class Decoding(NamedTuple):
    """Result of decoding a whole video.

    Attributes:
        missing: Numbers of the frames that cannot be decoded.
        concealed: Number of damaged frames that the decoder concealed.
        sizes: Width and height of the stored pictures, in order of appearance.
        complaint: First error that FFmpeg reported; empty if there was none.
        pictures: Text for the pictures, the same in other containers and with other sound; empty for few or equal ones.
    """

    missing: list[int]
    concealed: int
    sizes: list[tuple[int, int]]
    complaint: str
    pictures: str = ""


def decode_all(path: str | Path) -> Decoding:
    """Decode every frame of a video, with the frame numbers of `read_frames`, and convert one of each kind to RGB.

    Raises:
        UserError: The file cannot be read, or FFmpeg has no conversion for its colours.
    """
    index = index_video(path)
    there: set[int] = set()
    concealed, sizes, kinds, marks = 0, {}, set(), list[int]()
    with av.logging.Capture(local=True) as log:
        for number, frame in _walk(path, index):
            there.add(number)
            concealed += bool(frame.is_corrupt)
            marks.append(_mark(frame))
            sizes[frame.width, frame.height] = True
            kind = frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range
            if kind not in kinds:
                kinds.add(kind)
                _picture(frame, index, path)
    harmless = ("mmco", "co located POCs")  # reported where an open group of pictures was cut
    complaints = [text.strip() for level, _, text in log if level <= av.logging.ERROR and not text.startswith(harmless)]
    missing = [number for number in range(len(index)) if number not in there]
    pictures = hashlib.sha256(repr((list(sizes), marks)).encode()).hexdigest() if len(set(marks)) >= _TELLING else ""
    return Decoding(missing, concealed, list(sizes), complaints[0] if complaints else "", pictures)


_TELLING = 8
"""Number of different pictures that identify a video; black or still ones do not."""


def _mark(frame: Any) -> int:
    """Return a checksum of a part of a decoded picture, without the padding of its rows."""
    plane = frame.planes[0]
    rows = np.frombuffer(plane, np.uint8).reshape(-1, abs(plane.line_size))
    return zlib.crc32(rows[::8, : plane.width].tobytes())


def _missing_frame(path: str | Path, frame: int, index: VideoIndex) -> UserError:
    return UserError(
        f"{path}: frame {frame} of {len(index)} cannot be decoded; the file is damaged or truncated. "
        "`ssl-video check` finds all such files"
    )


def _walk(path: str | Path, index: VideoIndex) -> Generator[tuple[int, Any], None, None]:
    """Yield frames from the start of a file with their numbers."""
    with open_video(path) as (container, stream):
        for count, frame in enumerate(decoded(container, stream)):
            number = index.number(frame.pts, count)
            if number is not None:
                yield number, frame


def _from_key_frame(path: str | Path, index: VideoIndex, frame_numbers: set[int], lead: float) -> dict[int, Picture]:
    """Decode the wanted frames from the last key frame at least `lead` seconds before them; fewer if that fails."""
    pictures: dict[int, Picture] = {}
    first, last = int(index.ticks[min(frame_numbers)]), int(index.ticks[max(frame_numbers)])
    with open_video(path) as (container, stream):
        target = first - round(lead / float(stream.time_base))
        # AVI and MOV state a palette before the first picture: pictures after a seek would have no colours.
        if target <= index.ticks[0] or stream.codec_context.pix_fmt == "pal8":
            return {}
        if not seek(container, stream, target):
            return {}
        has_started = False
        for frame in decoded(container, stream):
            # Frames decoded or shown before the first key frame may lack the frames that they refer to.
            has_started = has_started or (bool(frame.key_frame) and frame.pts is not None and frame.pts <= first)
            if not has_started or (frame.pts is not None and frame.pts > last):
                break
            number = index.number(frame.pts, -1)
            if number in frame_numbers and number not in pictures:
                pictures[number] = _picture(frame, index, path)
                if len(pictures) == len(frame_numbers):
                    break
    return pictures


_DIRECT = frozenset({"yuv420p", "yuvj420p"})
"""Pixel formats that `reformat` converts to RGB to the same values as the ffmpeg program, and faster than a filter."""


_MATRICES = {
    8: "YCgCo",
    10: "BT.2020 with constant luminance",
    11: "SMPTE 2085",
    12: "from the primaries, non-constant luminance",
    13: "from the primaries, constant luminance",
    14: "ICtCp",
    15: "IPT-PQ-C2",
    16: "YCgCo-Re",
    17: "YCgCo-Ro",
}
"""Colour matrices of ITU-T H.273 that FFmpeg's scaler does not convert."""


def _picture(frame: Any, index: VideoIndex, path: str | Path) -> Picture:
    """Convert a frame to RGB as displayed; its size is scaled to that of the first, as in the ffmpeg program.

    Raises:
        UserError: FFmpeg has no conversion for its colours.
    """
    is_scaled = (frame.width, frame.height) != index.stored_size
    is_direct = not is_scaled and frame.format.name in _DIRECT and not getattr(frame, "interlaced_frame", False)
    try:
        picture = _reformat(frame) if is_direct else _filter(frame, *index.stored_size)
    except Exception as error:  # of many kinds, as in `open_file`
        text = getattr(error, "strerror", None) or str(error) or type(error).__name__
        matrix = int(frame.colorspace)
        name = _MATRICES.get(matrix)
        colours = f"colour matrix {matrix} ({name})" if name else f"colour matrix {matrix}"
        remedy = "to BT.709, for example with FFmpeg's filter zscale" if name else "to H.264 in yuv420p"
        raise UserError(
            f"{path}: its colours cannot be converted to RGB ({text}; pixel format {frame.format.name}, {colours}); "
            f"convert it {remedy}, or remove it"
        ) from error
    return _as_displayed(picture, index.orientation)


def _reformat(frame: Any) -> Picture:
    options = {"format": "rgb24", "interpolation": "BICUBIC"}
    try:
        # PyAV's default is one thread per core, which takes twenty times as long for a small frame.
        rgb = frame.reformat(**options, threads=1)
    except TypeError:  # before PyAV 16 the argument did not exist
        rgb = frame.reformat(**options)
    picture: Picture = rgb.to_ndarray()
    return picture


def _filter(frame: Any, width: int, height: int) -> Picture:
    """Convert a frame to RGB with the filter of the ffmpeg program.

    `reformat` places the colours of 4:2:0 pictures differently where it interpolates them: with more than 8 bits, in
    fields, and at another size.
    """
    graph = av.filter.Graph()
    with contextlib.suppress(AttributeError):  # an attribute of newer versions of PyAV
        graph.threads = 1
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base or Fraction(1, 1000)
    )
    last: Any = source
    for name, options in (("scale", f"{width}:{height}"), ("format", "rgb24"), ("buffersink", None)):
        node = graph.add(name, options)
        last.link_to(node)
        last = node
    graph.configure()
    source.push(frame)
    output: Any = last.pull()
    picture: Picture = output.to_ndarray()
    return picture


def _as_displayed(picture: Picture, orientation: Orientation) -> Picture:
    """Return the picture ``[H, W, 3]`` as displayed."""
    if orientation.transpose:
        picture = picture.swapaxes(0, 1)
    return picture[:: -1 if orientation.upend else 1, :: -1 if orientation.mirror else 1]


def resize_short(frames: Tensor, short: int) -> Tensor:
    """Resize frames ``[..., 3, H, W]`` to a short side of `short`."""
    size = short_size(frames.shape[-2], frames.shape[-1], short)
    if frames.shape[-2:] == size:
        return frames
    from torchvision.transforms.v2 import functional as V  # noqa: PLC0415 - heavy

    result: Tensor = V.resize(frames, list(size), antialias=True)
    return result


def short_size(height: int, width: int, short: int) -> tuple[int, int]:
    """Return the height and width of frames resized to a short side of `short`."""
    scale = short / min(height, width)
    return max(short, round(height * scale)), max(short, round(width * scale))


class ClipDataset(Dataset[Sample]):
    """One random clip of every video: a map-style data set, whose items are a function of (seed, index).

    ``dataset[index]`` has seed 0 and is therefore the same clip in every epoch; ``dataset.clip(index, seed=step)``, in
    a data set of your own, is another one in every step.

    An unreadable file is reported on standard error, recorded in `log` and replaced by the next readable video (of the
    same class if `by_class` is set), for as many files as `allowed_bad` allows; one more raises an error. The length of
    an epoch therefore stays the same, and the order does not depend on the number of workers.

    Args:
        videos: Videos.
        spec: Frames of a clip.
        following: See `read_clip`.
        audio: See `read_clip`.
        flow: See `read_clip`.
        frames: See `read_clip`.
        reader: See `read_clip`.
        max_bad: Share of the files that may be unreadable, ``0 <= max_bad < 1``.
        log: File for JSON lines with index, path and reason; None: no file.
        by_class: Replace an unreadable video by one of its own class.

    Raises:
        UserError: `max_bad` is out of range, or the reader is not available.
    """

    def __init__(
        self,
        videos: VideoSet,
        spec: ClipSpec,
        *,
        following: bool = False,
        audio: bool = False,
        flow: StoredFlow | None = None,
        frames: StoredFrames | None = None,
        reader: ReaderName = "pyav",
        max_bad: float = 0.0,
        log: Path | None = None,
        by_class: bool = False,
    ) -> None:
        check_reader(reader)
        self.videos, self.spec, self.following, self.audio, self.flow = videos, spec, following, audio, flow
        self.frames, self.reader = frames, reader
        self._bad_limit, self._log, self._by_class = allowed_bad(max_bad, len(videos)), log, by_class
        self._bad: set[int] = set()

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: int) -> Sample:
        return self.clip(index, seed=0)

    def clip(self, index: int, *, seed: int) -> Sample:
        """Return the clip of a video that the seed selects.

        Raises:
            UserError: More files than `max_bad` allows cannot be read.
        """
        for place in self._candidates(index):
            if place in self._bad:
                continue
            try:
                path = self.videos[place].path
                start = clip_start(index_video(path).duration, self.spec, seed=seed, id=index)
                clip = read_clip(
                    path,
                    start,
                    self.spec,
                    following=self.following,
                    audio=self.audio,
                    flow=self.flow,
                    frames=self.frames,
                    reader=self.reader,
                )
                return Sample(clip, place)
            except UserError as error:
                self._note(place, str(error))
        raise UserError(f"{self.videos.name}: no readable video can replace video {index}")

    def _candidates(self, index: int) -> itertools.filterfalse[int]:
        label = self.videos[index].label
        places = itertools.chain(range(index, len(self)), range(index))
        return itertools.filterfalse(lambda place: self._by_class and self.videos[place].label != label, places)

    def _note(self, index: int, reason: str) -> None:
        bad = self._logged_indices() | self._bad | {index}
        if len(bad) > self._bad_limit:
            raise UserError(
                f"{reason}\n{len(bad)} of {len(self)} videos cannot be read, and {self._bad_limit} may be skipped; "
                "`ssl-video check` lists all of them. Repair or remove them, or allow more (--max-bad)"
            )
        if self._log is not None and index not in self._logged_indices():
            record = {"index": index, "path": str(self.videos[index].path), "reason": reason}
            append_line(self._log, json.dumps(record))
        print(f"skipped: {reason}", file=sys.stderr, flush=True)  # noqa: T201
        self._bad.add(index)

    def _logged_indices(self) -> set[int]:
        if self._log is None or not self._log.is_file():
            return set()
        records = read_json_lines(self._log)
        with reading(self._log, "is damaged", "remove it"):
            return {int(record["index"]) for record in records}
