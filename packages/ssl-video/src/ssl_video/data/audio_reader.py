"""Read the sound of a clip: mono, at 16 kHz, exactly as long as asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from contrastive_core.errors import UserError
from ssl_video.data.video_index import decoded, index_video, is_default, open_file

_RATE = 16_000
_LEAD = 0.2  # seconds decoded before the start, so that codec and resampler have settled
_JITTER = 0.03  # seconds by which stated times may differ from the count of samples without a gap
_BACK = 0.5  # seconds; a clock that goes back by more belongs to another recording


def read_audio(path: str | Path, start: float, duration: float, *, rate: int = _RATE) -> NDArray[np.float32] | None:
    """Mono samples in [-1, 1] of a part of a file, float32 ``[round(duration * rate)]``; None without a sound track.

    Every sample is at the moment that the file states for it: gaps and what the track does not cover are silent.

    Args:
        path: of the file.
        start: seconds since the first video frame (since the first sample of a file without video).
        duration: seconds.
        rate: samples per second of the result.

    Raises:
        UserError: the file cannot be read, or its sound is in an unknown codec.
    """
    with open_file(path, "its sound cannot be read") as container:
        streams = list(container.streams.audio)
        if not streams:
            return None
        known = [stream for stream in streams if stream.codec_context is not None]
        if not known:
            raise UserError(f"{path}: its sound is in a codec that this FFmpeg cannot decode; leave the view audio out")
        stream = max(known, key=is_default)
        base = float(stream.time_base or 0)
        if container.streams.video:
            index = index_video(path)
            far = [jump for jump in index.jumps if index.clock[jump] < index.clock[jump - 1] - _BACK]
            begin, part = index.on_clock(start), sum(jump <= index.frames_at([start])[0] for jump in far)
            can_seek = not far
        else:
            begin, part, can_seek = start + float(stream.start_time or 0) * base, 0, True
        if can_seek and begin > _LEAD and base > 0:
            container.seek(int((begin - _LEAD) / base), stream=stream, backward=True)
        track = _Track(round(duration * rate), begin, rate)
        before, passed = -np.inf, 0
        for frame in decoded(container, stream):
            time = frame.time
            if time is not None:
                went_back = time < before - _BACK
                passed += went_back
                if went_back and passed > part:
                    track.continue_at(time)  # the next recording follows the one that the clip began in
                before = time
            if passed >= part:
                track.add(frame, time)
            if track.is_full:
                break
        return track.finish()


class _Track:
    """Samples of a clip, filled from decoded frames by their times."""

    def __init__(self, samples: int, begin: float, rate: int) -> None:
        self._result = np.zeros(samples, np.float32)
        self._begin, self._rate = begin, rate
        self._resampler: Any = None
        self._kind: Any = None
        self._place = 0  # of the next resampled sample
        self._due = begin  # when the next frame is due if there is no gap

    @property
    def is_full(self) -> bool:
        """Whether later frames have no place any more."""
        return self._place >= len(self._result)

    def add(self, frame: Any, time: float | None) -> None:
        """Write a frame to its place, as far as it has one."""
        kind = frame.format.name, frame.layout.name, frame.sample_rate
        gap = time is not None and abs(time - self._due) > _JITTER
        if self._resampler is None or kind != self._kind or gap:
            self._flush()
            if time is not None:
                self._due = time
            self._place = round((self._due - self._begin) * self._rate)
            self._resampler, self._kind = av.AudioResampler(format="fltp", rate=self._rate), kind
        for part in self._resampler.resample(frame):
            self._put(part)
        self._due += frame.samples / frame.sample_rate

    def continue_at(self, time: float) -> None:
        """Let the clock go on from another value."""
        self._begin += time - self._due
        self._due = time

    def finish(self) -> NDArray[np.float32]:
        """All samples."""
        self._flush()
        return self._result

    def _flush(self) -> None:
        if self._resampler is not None:
            for part in self._resampler.resample(None):
                self._put(part)
            self._resampler = None

    def _put(self, part: Any) -> None:
        samples = part.to_ndarray().mean(axis=0)  # FFmpeg's own mixing to mono is louder by 3 dB
        place = self._place
        low, high = max(0, place), min(len(self._result), place + len(samples))
        if low < high:
            self._result[low:high] = samples[low - place : high - place]
        self._place += len(samples)
