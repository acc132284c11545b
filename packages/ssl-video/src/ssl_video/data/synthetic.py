"""Generate videos of four classes: two differ only in appearance, two only in motion."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from contrastive_core.training.files import atomic_path

CLASSES = ("blue", "falling", "red", "rising")
FRAMES, SIZE, RATE = 16, 32, 30
_HOLD = 4  # frames after which the bar jumps to a new place
_HALF = 3.5  # half the height of the bar in pixels
_SPEED = 5  # pixels per frame
_COLOURS = {"blue": (0.3, 0.3, 1.0), "red": (1.0, 0.3, 0.3)}

Picture = NDArray[np.uint8]


def make_videos(folder: Path, *, per_class: int, seed: int = 0) -> Path:
    """Write videos ``<class>/000.mkv`` of 16 frames of 32 x 32 pixels at 30 frames per second, losslessly.

    All show a bar across the picture. In ``red`` and ``blue`` videos it stands still, and they differ only in colour;
    in ``rising`` and ``falling`` ones it is grey, and they differ only in direction. Every four frames the bar jumps to
    a new place, so that frames four apart do not show the direction. A classifier that sees only single frames, or only
    motion, reaches an accuracy of at most three in four.

    Args:
        folder: A new or empty folder, or that of an earlier call, whose files are kept.
        per_class: Number of videos of each class.
        seed: Seed; every video is a function of it, of its class and of its number.
    """
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(per_class):
            path = folder / name / f"{number:03}.mkv"
            if not path.exists():
                _write(path, draw_video(name, np.random.default_rng([seed, label, number])))
    return folder


def draw_video(name: str, random: np.random.Generator) -> Picture:
    """Draw the frames of a video of a class, uint8 ``[16, 32, 32, 3]``."""
    step = {"rising": -_SPEED, "falling": _SPEED}.get(name, 0)
    colour = np.array(_COLOURS.get(name, (0.6, 0.6, 0.6))) * random.uniform(0.7, 1.0)
    frames = []
    for _ in range(FRAMES // _HOLD):
        height = random.uniform(0, SIZE)
        frames += [_draw(height + step * later) for later in range(_HOLD)]
    bright = 30 + 220 * np.stack(frames)[..., None] * colour
    noise = random.normal(0, 3, (1, SIZE, SIZE, 3))  # the same in all frames, so that noise adds no motion
    return (bright + noise).clip(0, 255).astype(np.uint8)


def _draw(height: float) -> NDArray[np.float64]:
    """Draw a bar centred at this height, 1 inside; it wraps around from the bottom to the top."""
    rows = np.arange(SIZE)
    inside = np.abs((rows - height + SIZE / 2) % SIZE - SIZE / 2) < _HALF
    return np.repeat(inside[:, None], SIZE, axis=1).astype(np.float64)


def _write(path: Path, frames: Picture) -> None:
    with atomic_path(path) as new, av.open(str(new), "w", format="matroska") as container:
        stream = container.add_stream("ffv1", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = SIZE, SIZE, "bgr0"
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
