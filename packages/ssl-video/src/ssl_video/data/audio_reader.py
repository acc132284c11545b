"""Read the sound of a clip: mono, at 16 kHz, with exactly the requested length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from contrastive_core.errors import UserError
from ssl_video.data.video_index import decoded, index_video, is_default, open_file, seek, unknown_codec

_RATE = 16_000
_SLOWEST = 100  # samples per second; a frame with one sample per second would take gigabytes at 16 kHz
_LEAD = 0.2  # seconds decoded before the start, so that codec and resampler settle
_JITTER = 0.03  # seconds; timestamps that differ more from the number of samples so far mean a gap
_BACK = 0.5  # seconds; a clock that goes back further belongs to another recording


def read_audio(path: str | Path, start: float, duration: float, *, rate: int = _RATE) -> NDArray[np.float32] | None:
    """Read a part of a file as mono samples, full scale 1; None if the file has no sound track.

    Every sample is placed at the time that the file states for it: gaps, and times outside the track, are silent.

    Args:
        path: Path of the file.
        start: Start in seconds since the first video frame (since the first sample of a file without video).
        duration: Duration in seconds.
        rate: Samples per second of the result.

    Returns:
        float32 ``[round(duration * rate)]``, or None.

    Raises:
        UserError: The file cannot be read, or its sound is in an unknown codec.
    """
    return _read(path, start, duration, rate, search=True)


def _read(path: str | Path, start: float, duration: float, rate: int, *, search: bool) -> NDArray[np.float32] | None:
    with open_file(path, "its sound cannot be read") as container:
        streams = list(container.streams.audio)
        if not streams:
            return None
        candidates = [stream for stream in streams if stream.codec_context is not None]
        if not candidates:
            raise UserError(
                f"{path}: its sound is in the codec {unknown_codec(container, 'Audio')}, which this FFmpeg cannot "
                "decode; convert it, or leave out the view audio"
            )
        stream = max(candidates, key=is_default)
        base = float(stream.time_base or 0)
        if container.streams.video:
            index = index_video(path)
            far = [jump for jump in index.jumps if index.clock[jump] < index.clock[jump - 1] - _BACK]
            begin, recording = index.on_clock(start), sum(jump <= index.frames_at([start])[0] for jump in far)
            can_seek = not far
        else:
            begin, recording, can_seek = start + float(stream.start_time or 0) * base, 0, True
        if (
            search
            and can_seek
            and begin > _LEAD
            and base > 0
            and not seek(container, stream, int((begin - _LEAD) / base))
        ):
            return _read(path, start, duration, rate, search=False)
        track = _Track(round(duration * rate), begin, rate)
        before, current = -np.inf, 0
        for frame in decoded(container, stream):
            time = frame.time
            if time is not None:
                went_back = time < before - _BACK
                current += went_back
                if went_back and current > recording:
                    track.continue_at(time)  # the recording after the one in which the clip starts
                before = time
            if current >= recording:
                track.add(frame, time)
            if track.is_full:
                break
        return track.finish()


class _Track:
    """Samples of a clip, filled in from decoded frames by their times."""

    def __init__(self, samples: int, begin: float, rate: int) -> None:
        self._result = np.zeros(samples, np.float32)
        self._begin, self._rate = begin, rate
        self._resampler: Any = None
        self._kind: Any = None
        self._place = 0  # position of the next resampled sample
        self._next_time = begin  # time of the next frame if there is no gap

    @property
    def is_full(self) -> bool:
        """Whether the clip is complete."""
        return self._place >= len(self._result)

    def add(self, frame: Any, time: float | None) -> None:
        """Write the part of a frame that lies within the clip."""
        if frame.sample_rate < _SLOWEST:
            raise ValueError(f"it states {frame.sample_rate} samples per second, expected at least {_SLOWEST}")
        kind = frame.format.name, frame.layout.name, frame.sample_rate
        gap = time is not None and abs(time - self._next_time) > _JITTER
        if self._resampler is None or kind != self._kind or gap:
            self._flush()
            if time is not None:
                self._next_time = time
            self._place = round((self._next_time - self._begin) * self._rate)
            self._resampler, self._kind = av.AudioResampler(format="fltp", rate=self._rate), kind
        for block in self._resampler.resample(frame):
            self._put(block)
        self._next_time += frame.samples / frame.sample_rate

    def continue_at(self, time: float) -> None:
        """Continue although the clock jumps to another value."""
        self._begin += time - self._next_time
        self._next_time = time

    def finish(self) -> NDArray[np.float32]:
        """Return all samples."""
        self._flush()
        return self._result

    def _flush(self) -> None:
        if self._resampler is not None:
            for block in self._resampler.resample(None):
                self._put(block)
            self._resampler = None

    def _put(self, block: Any) -> None:
        samples = block.to_ndarray().mean(axis=0)  # FFmpeg's own mix to mono is 3 dB louder
        place = self._place
        low, high = max(0, place), min(len(self._result), place + len(samples))
        if low < high:
            self._result[low:high] = samples[low - place : high - place]
        self._place += len(samples)
