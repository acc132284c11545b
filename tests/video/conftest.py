"""Fixtures of the video tests: small video files, encoded here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

Write = Callable[..., Path]


@pytest.fixture
def write_video(tmp_path: Path) -> Write:
    """`write_video("a/b.mkv", frames)` encodes uint8 [F, H, W, 3]; without loss as FFV1 in .mkv or .nut (whose
    times are exact), else as H.264.

    `ticks` in 1/600 s give every frame a time of its own; `tone` adds a sine of that many hertz.
    """

    def write(
        name: str,
        frames: np.ndarray,
        *,
        rate: int = 30,
        ticks: Sequence[int] | None = None,
        gop: int = 12,
        tone: float | None = None,
        tone_rate: int = 44100,
        layout: str = "stereo",
    ) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lossless = path.suffix in (".mkv", ".nut")
        with av.open(str(path), "w") as container:
            stream = container.add_stream("ffv1" if lossless else "libx264", rate=rate)
            stream.height, stream.width = frames.shape[1:3]
            stream.pix_fmt = "bgr0" if lossless else "yuv420p"
            stream.gop_size = gop
            stream.time_base = Fraction(1, 600)
            stream.codec_context.time_base = Fraction(1, 600)
            sound = None
            if tone is not None:
                sound = container.add_stream("pcm_s16le" if lossless else "aac", rate=tone_rate)
                sound.layout = layout
            for number, picture in enumerate(frames):
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
                frame.time_base = Fraction(1, 600)
                frame.pts = 600 * number // rate if ticks is None else ticks[number]
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
            if sound is not None:
                samples = round(len(frames) / rate * tone_rate)
                wave = np.sin(2 * np.pi * tone * np.arange(samples) / tone_rate) * 10000
                channels = 2 if layout == "stereo" else 1
                for first in range(0, samples, 1024):
                    part = np.repeat(wave[first : first + 1024].astype(np.int16), channels)[None]
                    frame = av.AudioFrame.from_ndarray(part, format="s16", layout=layout)
                    frame.sample_rate, frame.pts, frame.time_base = tone_rate, first, Fraction(1, tone_rate)
                    container.mux(sound.encode(frame))
                container.mux(sound.encode(None))
        return path

    return write


@pytest.fixture
def numbered() -> Callable[..., np.ndarray]:
    """`numbered(5)` returns frames [5, 16, 24, 3] of noise; frame n has grey value 8 n in a corner of 4 x 4 pixels."""

    def make(frames: int, *, height: int = 16, width: int = 24, seed: int = 0) -> np.ndarray:
        made = np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)
        made[:, :4, :4] = (8 * np.arange(frames) % 256).astype(np.uint8)[:, None, None, None]
        return made

    return make
