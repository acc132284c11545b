"""Generated videos of four classes that no single view can tell apart: two by what is seen, two by how it moves."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

CLASSES = ("blue", "falling", "red", "rising")
FRAMES, SIZE, RATE = 16, 32, 30
_HOLD = 4  # frames after which the picture is another one
_SQUARES, _HALF = 2, 4.5
_SPEED = 3  # pixels a frame
_COLOURS = {"blue": (0.3, 0.3, 1.0), "red": (1.0, 0.3, 0.3)}

Picture = NDArray[np.uint8]


def make_videos(folder: Path, *, per_class: int, seed: int = 0) -> Path:
    """Write videos ``<class>/000.mkv`` of 16 frames of 32 x 32 pixels at 30 a second, without loss.

    All show two squares. ``red`` and ``blue`` ones stand still, and differ in colour alone; ``rising`` and ``falling``
    ones are grey, and differ in direction alone. Every four frames they jump to new places, so that frames four apart
    say nothing of the direction. Frames alone, or motion alone, can be right in three of four clips.

    Args:
        folder: new or empty, or of an earlier call; files that are there stay.
        per_class: videos of each class.
        seed: every video is a function of it, its class and its number.
    """
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(per_class):
            path = folder / name / f"{number:03}.mkv"
            if not path.exists():
                _write(path, draw_video(name, np.random.default_rng([seed, label, number])))
    return folder


def draw_video(name: str, random: np.random.Generator) -> Picture:
    """The frames of a video of a class, uint8 ``[16, 32, 32, 3]``."""
    step = {"rising": -_SPEED, "falling": _SPEED}.get(name, 0)
    colour = np.array(_COLOURS.get(name, (0.6, 0.6, 0.6))) * random.uniform(0.7, 1.0)
    frames = []
    for _ in range(FRAMES // _HOLD):
        squares = random.uniform(0, SIZE, (_SQUARES, 2))
        moved = (squares + np.array([step * later, 0]) for later in range(_HOLD))
        frames += [_draw(centres) for centres in moved]
    bright = 30 + 220 * np.stack(frames)[..., None] * colour
    noise = random.normal(0, 3, (1, SIZE, SIZE, 3))  # the same in all frames: what stands still, stands still
    return (bright + noise).clip(0, 255).astype(np.uint8)


def _draw(centres: NDArray[np.float64]) -> NDArray[np.float64]:
    """Squares on a torus, 1 inside."""
    y, x = np.mgrid[:SIZE, :SIZE]
    down = np.abs((y - centres[:, 0, None, None] + SIZE / 2) % SIZE - SIZE / 2)
    across = np.abs((x - centres[:, 1, None, None] + SIZE / 2) % SIZE - SIZE / 2)
    drawn: NDArray[np.float64] = (np.maximum(down, across) < _HALF).any(axis=0).astype(np.float64)
    return drawn


def _write(path: Path, frames: Picture) -> None:
    new = path.with_name(f".{path.name}")
    with av.open(str(new), "w", format="matroska") as container:
        stream = container.add_stream("ffv1", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = SIZE, SIZE, "bgr0"
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    new.replace(path)
