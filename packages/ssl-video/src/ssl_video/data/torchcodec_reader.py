"""Frames by torchcodec, which can take less time than PyAV for large pictures; the same frames to the bit.

torchcodec (the extra ``torchcodec``) loads the FFmpeg libraries of the system, version 4 to 9.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from contrastive_core.errors import UserError

ReaderName = Literal["pyav", "torchcodec"]


def decode(path: str | Path, frames: list[int], *, stream: int, total: int) -> dict[int, NDArray[np.uint8]] | None:
    """Frames of a video by their number, uint8 ``[H, W, 3]`` each.

    Args:
        path: of the file.
        frames: which, ascending.
        stream: number of the video stream in the file.
        total: how many frames it has.

    Returns:
        The frames; None where torchcodec cannot read them, or counts another number, so that PyAV decides.

    Raises:
        UserError: torchcodec is not installed, or cannot be loaded.
    """
    try:
        decoder = _decoder()(str(path), stream_index=stream, dimension_order="NHWC", num_ffmpeg_threads=1)
        if len(decoder) != total:
            return None
        pictures: NDArray[np.uint8] = decoder.get_frames_at(frames).data.numpy()
    except (RuntimeError, ValueError, IndexError):
        return None
    return dict(zip(frames, pictures, strict=True))


def check_reader(reader: ReaderName) -> None:
    """See to it that this reader can be used here.

    Raises:
        UserError: torchcodec is asked for and is not installed, or cannot be loaded.
    """
    if reader == "torchcodec":
        _decoder()


def _decoder() -> Any:
    try:
        from torchcodec.decoders import VideoDecoder  # noqa: PLC0415 - an extra
    except (ImportError, RuntimeError, OSError) as error:  # RuntimeError: no FFmpeg, or another torch
        raise UserError(
            f"reader is torchcodec, which cannot be loaded here ({str(error).splitlines()[0]}); pip install "
            "'ssl-video[torchcodec]', in a version for this torch, and the system's FFmpeg (apt-get install ffmpeg); "
            "or leave reader at pyav, which brings its own"
        ) from error
    return VideoDecoder
