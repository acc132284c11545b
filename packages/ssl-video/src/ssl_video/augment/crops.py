"""Crops of clips: a random one to learn from, the centre or several along the long side to test on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as V

from contrastive_core.random import derive, uniform
from ssl_video.augment.options import WeakOptions
from ssl_video.views.make import Clips


def weak_crop(
    clips: Clips | Sequence[Clips],
    *,
    size: int,
    seed: int,
    ids: Tensor,
    options: WeakOptions = WeakOptions(),  # noqa: B008
) -> Clips:
    """Resize, crop at random and mirror half of the clips, all frames of a clip alike.

    What happens to a clip is a function of (seed, its id) alone.

    Args:
        clips: a batch, or a sequence of batches of one clip each where their sizes differ.
        size: side of the square crop.
        seed: of this step (and of this view, if views are to be cropped differently).
        ids: int64 ``[N]``, which clips.
        options: of the resizing and the flip.
    """
    draws = uniform(derive(seed, "weak"), ids, 4).tolist()
    done = []
    for clip, (scale, down, across, mirror) in zip(_each(clips), draws, strict=True):
        short = round(size * (options.smallest + scale * (options.largest - options.smallest)))
        frames = _resized(_both(clip), max(short, size))
        height, width = frames.shape[-2:]
        top, left = int(down * (height - size + 1)), int(across * (width - size + 1))
        frames = frames[..., top : top + size, left : left + size]
        done.append(frames.flip(-1) if mirror < options.flip else frames)
    return _rebuilt(clips, done)


def center_clip(clips: Clips | Sequence[Clips], *, size: int) -> Clips:
    """The middle of clips resized to a short side of `size`."""
    return spread_crops(clips, size=size, crops=1)[0]


def spread_crops(clips: Clips | Sequence[Clips], *, size: int, crops: int = 3) -> list[Clips]:
    """Square crops of `size` spread evenly along the long side of clips resized to a short side of `size`.

    One crop is the middle; three are left (or top), middle and right (or bottom).
    """
    done: list[list[Tensor]] = [[] for _ in range(crops)]
    for clip in _each(clips):
        frames = _resized(_both(clip), size)
        height, width = frames.shape[-2:]
        for number, into in enumerate(done):
            place = 0.5 if crops == 1 else number / (crops - 1)
            top, left = round(place * (height - size)), round(place * (width - size))
            into.append(frames[..., top : top + size, left : left + size])
    return [_rebuilt(clips, frames) for frames in done]


def _each(clips: Clips | Sequence[Clips]) -> Iterator[Clips]:
    if not isinstance(clips, Clips):
        yield from clips
        return
    for n in range(len(clips)):
        part = slice(n, n + 1)
        yield Clips(
            clips.frames[part],
            None if clips.following is None else clips.following[part],
            None if clips.audio is None else clips.audio[part],
            None if clips.has_audio is None else clips.has_audio[part],
        )


def _both(clip: Clips) -> Tensor:
    """Frames and what follows them, one behind the other: ``[T or 2 T, 3, H, W]``."""
    return clip.frames[0] if clip.following is None else torch.cat([clip.frames[0], clip.following[0]])


def _resized(frames: Tensor, short: int) -> Tensor:
    height, width = frames.shape[-2:]
    if min(height, width) == short:
        return frames
    scale = short / min(height, width)
    size = [max(short, round(side * scale)) for side in (height, width)]
    resized: Tensor = V.resize(frames, size, antialias=True)
    return resized


def _rebuilt(clips: Clips | Sequence[Clips], frames: Sequence[Tensor]) -> Clips:
    """The cropped frames as a batch, with the sound of the clips they are of."""
    each = list(_each(clips))
    stacked = torch.stack(list(frames))
    following = None
    if each[0].following is not None:
        stacked, following = stacked.chunk(2, dim=1)
    audio = [clip.audio for clip in each if clip.audio is not None]
    known = [clip.has_audio for clip in each if clip.has_audio is not None]
    return Clips(stacked, following, torch.cat(audio) if audio else None, torch.cat(known) if known else None)
