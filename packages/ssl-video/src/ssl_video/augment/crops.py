"""Crop clips: at random for training, the centre or several crops along the long side for testing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from contrastive_core.errors import UserError
from contrastive_core.rng import derive, uniform
from ssl_video.data.clip import Clips, resize_short
from ssl_video.views import mirror_flow, resize_flow


@dataclass(frozen=True)
class WeakOptions:
    """Weak augmentation: resize, random crop, flip.

    Attributes:
        smallest: Smallest short side after resizing, in sides of the crop.
        largest: Largest short side after resizing; drawn uniformly between the two.
        flip: Probability of a horizontal flip; 0 where left and right matter.
    """

    smallest: float = 256 / 224
    largest: float = 320 / 224
    flip: float = 0.5

    def __post_init__(self) -> None:
        if not 1 <= self.smallest <= self.largest:
            raise UserError(
                f"weak.smallest is {self.smallest} and weak.largest {self.largest}; expected 1 <= smallest <= largest"
            )
        if not 0 <= self.flip <= 1:
            raise UserError(f"weak.flip is {self.flip}; expected a share of the clips")


def weak_crop(
    clips: Clips | Sequence[Clips],
    *,
    size: int,
    seed: int,
    ids: Tensor,
    options: WeakOptions = WeakOptions(),
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
        cut = _resized(clip, max(short, size))
        height, width = cut.frames.shape[-2:]
        cut = _window(cut, int(down * (height - size + 1)), int(across * (width - size + 1)), size)
        done.append(_mirrored(cut) if mirror < options.flip else cut)
    return _rebuilt(clips, done)


def center_clip(clips: Clips | Sequence[Clips], *, size: int) -> Clips:
    """The middle of clips resized to a short side of `size`."""
    return spread_crops(clips, size=size, crops=1)[0]


def spread_crops(clips: Clips | Sequence[Clips], *, size: int, crops: int = 3) -> list[Clips]:
    """Square crops of `size` spread evenly along the long side of clips resized to a short side of `size`.

    One crop is the middle; three are left (or top), middle and right (or bottom).
    """
    done: list[list[_Cut]] = [[] for _ in range(crops)]
    for clip in _each(clips):
        cut = _resized(clip, size)
        height, width = cut.frames.shape[-2:]
        for number, into in enumerate(done):
            place = 0.5 if crops == 1 else number / (crops - 1)
            into.append(_window(cut, round(place * (height - size)), round(place * (width - size)), size))
    return [_rebuilt(clips, cuts) for cuts in done]


class _Cut(NamedTuple):
    """Of one clip: frames and what follows them, one behind the other, ``[T or 2 T, 3, H, W]``; stored flow."""

    frames: Tensor
    flow: Tensor | None


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
            None if clips.flow is None else clips.flow[part],
        )


def _resized(clip: Clips, short: int) -> _Cut:
    frames = clip.frames[0] if clip.following is None else torch.cat([clip.frames[0], clip.following[0]])
    frames = resize_short(frames, short)
    return _Cut(frames, None if clip.flow is None else resize_flow(clip.flow[0], (frames.shape[-2], frames.shape[-1])))


def _window(cut: _Cut, top: int, left: int, size: int) -> _Cut:
    part = (..., slice(top, top + size), slice(left, left + size))
    return _Cut(cut.frames[part], None if cut.flow is None else cut.flow[part])


def _mirrored(cut: _Cut) -> _Cut:
    return _Cut(cut.frames.flip(-1), None if cut.flow is None else mirror_flow(cut.flow))


def _rebuilt(clips: Clips | Sequence[Clips], cuts: Sequence[_Cut]) -> Clips:
    """The cropped frames as a batch, with the sound of the clips they are of."""
    each = list(_each(clips))
    stacked = torch.stack([cut.frames for cut in cuts])
    flow = [cut.flow for cut in cuts if cut.flow is not None]
    following = None
    if each[0].following is not None:
        stacked, following = stacked.chunk(2, dim=1)
    audio = [clip.audio for clip in each if clip.audio is not None]
    known = [clip.has_audio for clip in each if clip.has_audio is not None]
    return Clips(
        stacked,
        following,
        torch.cat(audio) if audio else None,
        torch.cat(known) if known else None,
        torch.stack(flow) if flow else None,
    )
