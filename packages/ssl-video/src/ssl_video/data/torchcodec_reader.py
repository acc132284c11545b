"""Read frames with torchcodec, an optional decoder that can be faster than PyAV for large pictures.

torchcodec (the extra ``torchcodec``) loads the FFmpeg libraries of the system, version 4 to 9.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from contrastive_core.errors import UserError
from contrastive_core.training.crashes import native_reader
from ssl_video.data.video_index import Orientation, VideoIndex

ReaderName = Literal["pyav", "torchcodec"]
_CONTAINERS = frozenset({"matroska", "mov", "mp4", "webm"})
_CODECS = frozenset({"av1", "ffv1", "h264", "hevc", "libdav1d", "libvpx-vp9", "vp8", "vp9"})
_TOLERANCE = 1e-3  # seconds
_RGB = 0  # colour matrix that contradicts the YUV pictures of these codecs; the two readers treat it differently


def decode(path: str | Path, frames: list[int], index: VideoIndex) -> dict[int, NDArray[np.uint8]] | None:
    """Decode frames of a video, by their numbers, uint8 ``[H, W, 3]`` each.

    Args:
        path: Path of the file.
        frames: Numbers of the frames, ascending.
        index: Index of the video.

    Returns:
        The frames, identical to PyAV's to the bit. None where they would differ or torchcodec fails, so that PyAV reads
        them: containers other than MP4 and Matroska, codecs whose decoding is not bit-exact by specification (MPEG-4,
        Motion JPEG), more than 8 bits, interlaced, turned or mirrored pictures, files without usable times, another
        number of frames, and frames from other times than requested.

    Raises:
        UserError: torchcodec is not installed, or cannot be loaded.
    """
    create = _decoder()
    plain = index.bits == 8 and index.orientation == Orientation() and not index.interlaced and index.matrix != _RGB
    has_times = len(index.ticks) and not index.skipped
    if not (plain and has_times and index.codec in _CODECS and set(index.container.split(",")) & _CONTAINERS):
        return None
    try:
        with native_reader(path):
            decoder = create(str(path), stream_index=index.stream, dimension_order="NHWC", num_ffmpeg_threads=1)
            if len(decoder) != len(index):
                return None
            batch = decoder.get_frames_at(frames)
        pictures: NDArray[np.uint8] = batch.data.numpy()
        moments: NDArray[np.float64] = batch.pts_seconds.numpy()
    except (RuntimeError, ValueError, IndexError):
        return None
    late = np.abs(moments - index.clock[frames])
    if (late > _TOLERANCE).any() or pictures.shape[1:3] != (index.height, index.width):
        return None
    return dict(zip(frames, pictures, strict=True))


def check_reader(reader: ReaderName) -> None:
    """Check that a reader is available.

    Raises:
        UserError: torchcodec is requested but is not installed, or cannot be loaded.
    """
    if reader == "torchcodec":
        _decoder()


def _decoder() -> Any:
    try:
        from torchcodec.decoders import VideoDecoder  # noqa: PLC0415 - an extra
    except (ImportError, RuntimeError, OSError) as error:  # RuntimeError: no FFmpeg, or another torch
        raise UserError(
            f"reader is torchcodec, which cannot be loaded here ({str(error).splitlines()[0]}). Install it with pip "
            "install 'ssl-video[torchcodec]', in a version for this torch, and install FFmpeg (apt-get install "
            "ffmpeg); or use the reader pyav, which includes FFmpeg"
        ) from error
    return VideoDecoder
