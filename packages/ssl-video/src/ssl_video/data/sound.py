"""The sound of a clip: mono, at 16 kHz, exactly as long as asked for."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from contrastive_core.errors import UserError

_RATE = 16_000
_LEAD = 0.2  # seconds decoded before the start, so that codec and resampler have settled


def read_audio(path: str | Path, start: float, duration: float, *, rate: int = _RATE) -> NDArray[np.float32] | None:
    """Mono samples in [-1, 1] of a part of a file, float32 ``[round(duration * rate)]``; None without a sound track.

    Args:
        path: of the file.
        start: seconds since the first video frame (since the first sample of a file without video).
        duration: seconds. What the track does not cover is silence.
        rate: samples per second of the result.

    Raises:
        UserError: the file cannot be read.
    """
    wanted = round(duration * rate)
    try:
        with av.open(str(path)) as container:
            if not container.streams.audio:
                return None
            stream = container.streams.audio[0]
            begin = start + _beginning(container)
            resampler = av.AudioResampler(format="fltp", rate=rate)
            base = float(stream.time_base or 0)
            if begin > _LEAD and base > 0:
                container.seek(int((begin - _LEAD) / base), stream=stream, backward=True)
            result = np.zeros(wanted, np.float32)
            place: int | None = None
            for frame in container.decode(stream):
                if place is None:
                    place = round(((frame.time if frame.time is not None else 0.0) - begin) * rate)
                for part in resampler.resample(frame):
                    place = _put(result, part, place)
                if place >= wanted:
                    return result
            for part in resampler.resample(None):
                place = _put(result, part, place or 0)
            return result
    except av.error.FFmpegError as error:
        raise UserError(f"{path}: its sound cannot be read ({error.strerror})") from error


def _beginning(container: av.container.InputContainer) -> float:
    """When the first video frame is shown, in the container's time."""
    streams = [*container.streams.video, *container.streams.audio]
    first = streams[0]
    return float((first.start_time or 0) * (first.time_base or 0))


def _put(result: NDArray[np.float32], part: av.AudioFrame, place: int) -> int:
    """Write samples where they belong, as far as they belong anywhere; the place after them."""
    samples = part.to_ndarray().mean(axis=0)  # FFmpeg's own mixing to mono is louder by 3 dB
    low, high = max(0, place), min(len(result), place + len(samples))
    if low < high:
        result[low:high] = samples[low - place : high - place]
    return place + len(samples)
