"""Augment clips: random crops and flips, strong augmentation of each view, reordered frames, and test crops.

All frames of a clip get the same augmentation; clips, steps and views are drawn independently. Strong augmentation is
RandAugment followed by one square cutout. The strengths of the operations are those of PyTorchVideo's RandAugment at
level 10 (strength 1): colours +-0.9, rotation 30 degrees, shear 0.3, translation 0.45 of the side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as V

from contrastive_core.errors import UserError
from contrastive_core.rng import derive, uniform
from ssl_video.data.clip import Clips
from ssl_video.data.reader import resize_short
from ssl_video.optical_flow.methods import FlowMethod
from ssl_video.views import NEUTRAL, check_views, make_views, mirror_flow, resize_flow

__all__ = [
    "OPERATIONS",
    "SETS",
    "TEMPORAL",
    "ClipAugment",
    "StrongOptions",
    "WeakOptions",
    "center_clip",
    "join_clips",
    "reorder_clip",
    "spread_crops",
    "strong_augment",
    "weak_crop",
]


@dataclass(frozen=True)
class WeakOptions:
    """Weak augmentation: resize, random crop, flip.

    Attributes:
        min_scale: Smallest short side after resizing, as a multiple of the side of the crop.
        max_scale: Largest short side after resizing; the short side is drawn uniformly from `min_scale` to `max_scale`.
        mirror: Probability of a horizontal flip; 0 if left and right matter.
    """

    min_scale: float = 256 / 224
    max_scale: float = 320 / 224
    mirror: float = 0.5

    def __post_init__(self) -> None:
        if not 1 <= self.min_scale <= self.max_scale:
            raise UserError(
                f"weak.min_scale is {self.min_scale} and weak.max_scale {self.max_scale}; expected "
                "1 <= min_scale <= max_scale"
            )
        if not 0 <= self.mirror <= 1:
            raise UserError(f"weak.mirror is {self.mirror}; expected a probability")


def weak_crop(
    clips: Clips | Sequence[Clips],
    *,
    size: int,
    seed: int,
    ids: Tensor,
    options: WeakOptions = WeakOptions(),
) -> Clips:
    """Resize, crop at random and mirror clips, with the same draws for all frames of a clip.

    The draws of a clip are a function of (seed, its id).

    Args:
        clips: A batch, or a sequence of batches of one clip each if their sizes differ.
        size: Side of the square crop in pixels.
        seed: Seed of this step (and view, if views are cropped differently).
        ids: Numbers of the clips, int64 ``[N]``.
        options: Options of resizing and flip.
    """
    draws = uniform(derive(seed, "weak"), ids, 4).tolist()
    cuts = []
    for clip, (scale, down, across, mirror) in zip(_each(clips), draws, strict=True):
        short = round(size * (options.min_scale + scale * (options.max_scale - options.min_scale)))
        cut = _resize(clip, max(short, size))
        height, width = cut.frames.shape[-2:]
        cut = _window(cut, int(down * (height - size + 1)), int(across * (width - size + 1)), size)
        cuts.append(_mirror(cut) if mirror < options.mirror else cut)
    return _rebuilt(clips, cuts)


def center_clip(clips: Clips | Sequence[Clips], *, size: int) -> Clips:
    """Resize clips to a short side of `size` and return the middle."""
    return spread_crops(clips, size=size, crops=1)[0]


def spread_crops(clips: Clips | Sequence[Clips], *, size: int, crops: int = 3) -> list[Clips]:
    """Resize clips to a short side of `size`, and return square crops evenly spaced along the long side.

    One crop is the middle; three are left (or top), middle and right (or bottom).
    """
    cuts_by_crop: list[list[_Cut]] = [[] for _ in range(crops)]
    for clip in _each(clips):
        cut = _resize(clip, size)
        height, width = cut.frames.shape[-2:]
        for number, into in enumerate(cuts_by_crop):
            place = 0.5 if crops == 1 else number / (crops - 1)
            into.append(_window(cut, round(place * (height - size)), round(place * (width - size)), size))
    return [_rebuilt(clips, cuts) for cuts in cuts_by_crop]


class _Cut(NamedTuple):
    """Frames of one clip, concatenated with the frames after them, ``[T or 2 T, 3, H, W]``; and its stored flow."""

    frames: Tensor
    flow: Tensor | None


def _each(clips: Clips | Sequence[Clips]) -> Iterator[Clips]:
    if not isinstance(clips, Clips):
        yield from clips
        return
    for n in range(len(clips)):
        row = slice(n, n + 1)
        yield Clips(
            clips.frames[row],
            None if clips.following is None else clips.following[row],
            None if clips.audio is None else clips.audio[row],
            None if clips.has_audio is None else clips.has_audio[row],
            None if clips.flow is None else clips.flow[row],
        )


def _resize(clip: Clips, short: int) -> _Cut:
    frames = clip.frames[0] if clip.following is None else torch.cat([clip.frames[0], clip.following[0]])
    frames = resize_short(frames, short)
    return _Cut(frames, None if clip.flow is None else resize_flow(clip.flow[0], (frames.shape[-2], frames.shape[-1])))


def _window(cut: _Cut, top: int, left: int, size: int) -> _Cut:
    window = (..., slice(top, top + size), slice(left, left + size))
    return _Cut(cut.frames[window], None if cut.flow is None else cut.flow[window])


def _mirror(cut: _Cut) -> _Cut:
    return _Cut(cut.frames.flip(-1), None if cut.flow is None else mirror_flow(cut.flow))


def join_clips(clips: Sequence[Clips]) -> Clips:
    """Concatenate clips of one size to a batch."""

    def together(tensors: list[Tensor | None]) -> Tensor | None:
        there = [tensor for tensor in tensors if tensor is not None]
        return torch.cat(there) if there else None

    return Clips(
        torch.cat([clip.frames for clip in clips]),
        together([clip.following for clip in clips]),
        together([clip.audio for clip in clips]),
        together([clip.has_audio for clip in clips]),
        together([clip.flow for clip in clips]),
    )


def _rebuilt(clips: Clips | Sequence[Clips], cuts: Sequence[_Cut]) -> Clips:
    """Combine cropped frames into a batch, with the sound of their clips."""
    each = list(_each(clips))
    frames = torch.stack([cut.frames for cut in cuts])
    flow = [cut.flow for cut in cuts if cut.flow is not None]
    following = None
    if each[0].following is not None:
        frames, following = frames.chunk(2, dim=1)
    audio = [clip.audio for clip in each if clip.audio is not None]
    has_audio = [clip.has_audio for clip in each if clip.has_audio is not None]
    return Clips(
        frames,
        following,
        torch.cat(audio) if audio else None,
        torch.cat(has_audio) if has_audio else None,
        torch.stack(flow) if flow else None,
    )


_PER_OPERATION = 4
Temporal = Literal["reverse", "shuffle", "warp", "speed"]
TEMPORAL: tuple[Temporal, ...] = get_args(Temporal)
"""Operations on the order of the frames."""
REORDERING: tuple[Temporal, ...] = ("reverse", "shuffle")
"""Operations after which time does not run forwards."""
_SEGMENTS = 4


@dataclass(frozen=True)
class StrongOptions:
    """Strong augmentation on top of the weak one: some operations of RandAugment and one square cutout.

    The defaults gave the best results on ten classes of UCF-101; ``--recipe paper`` uses the full range.

    Attributes:
        num_ops: Number of operations drawn per view.
        probability: Probability that each drawn operation is applied.
        magnitude: Largest strength, from 1 to 10, where 10 is the full range; strengths are drawn uniformly from 1 to
            this value.
        cutout: Side of the square cutout, as a share of the side of the crop; 0 for none.
        rgb_ops: Operations on frames: ``full``, ``geometric`` (position only), ``colour`` (values only), ``none``.
        motion_ops: Operations on flow and temporal gradient, with the choices of `rgb_ops`.
        audio_ops: Operations on spectrograms, with the choices of `rgb_ops`.
        temporal: Operations on the order of frames; one of them is drawn per clip and applied to all its views:
            ``reverse``; ``shuffle`` for neighbouring frames; ``warp`` for 2 or 4 frames, each repeated; ``speed`` for
            half to twice the speed. Name the classes that direction defines with ``pseudo.directed``.
        temporal_probability: Probability that the frames of a clip are reordered.
    """

    num_ops: int = 1
    probability: float = 0.5
    magnitude: int = 5
    cutout: float = 0.3
    rgb_ops: Literal["full", "geometric", "colour", "none"] = "full"
    motion_ops: Literal["full", "geometric", "colour", "none"] = "geometric"
    audio_ops: Literal["full", "geometric", "colour", "none"] = "none"
    temporal: tuple[Temporal, ...] = ()
    temporal_probability: float = 0.5

    def __post_init__(self) -> None:
        if not set(self.temporal) <= set(TEMPORAL) or not 0 <= self.temporal_probability <= 1:
            raise UserError(
                f"strong.temporal is {', '.join(self.temporal) or 'empty'} with probability "
                f"{self.temporal_probability}; expected some of {', '.join(TEMPORAL)}, and a probability from 0 to 1"
            )
        if (
            self.num_ops < 0
            or not 0 <= self.probability <= 1
            or not 1 <= self.magnitude <= 10
            or not 0 <= self.cutout < 1
        ):
            raise UserError(
                f"strong augmentation got num_ops={self.num_ops}, probability={self.probability}, "
                f"magnitude={self.magnitude}, cutout={self.cutout}; expected num_ops >= 0, a probability, a magnitude "
                "from 1 to 10 and 0 <= cutout < 1"
            )

    def set_for(self, view: str) -> str:
        """Return the name of the set of operations for a view."""
        return {"rgb": self.rgb_ops, "audio": self.audio_ops}.get(view, self.motion_ops)


def reorder_clip(clip: Clips, operation: Temporal, draws: Sequence[float]) -> Clips:
    """Reorder the frames of a clip, each together with the frame after it.

    ``reverse`` plays the clip backwards: the frame after each frame takes its place, and stored flow changes its sign,
    which approximates the flow of the reversed video. ``shuffle`` permutes the frames within each quarter of the clip.
    ``warp`` keeps 2 or 4 frames and repeats each. ``speed`` moves the times of the frames from or towards the middle by
    a factor from 1/2 to 2, and repeats the first and last frame beyond the ends. ``reverse`` also plays the sound
    backwards; the others leave it unchanged.

    Args:
        clip: One clip or a batch with the same change for all, T frames.
        operation: One of `TEMPORAL`.
        draws: T + 1 uniform numbers.

    Reference: Huang et al., "SeFAR: Semi-supervised Fine-grained Action Recognition", AAAI 2025 (order); Xing et al.,
    "SVFormer", CVPR 2023 (warp). The number of segments and the range of speeds are our choice.
    """
    frames = clip.frames.shape[1]
    random, more = torch.tensor(draws[:frames], dtype=torch.float32), draws[frames]
    steps = torch.arange(frames)
    if operation == "reverse":
        return Clips(
            (clip.frames if clip.following is None else clip.following).flip(1),
            None if clip.following is None else clip.frames.flip(1),
            None if clip.audio is None else clip.audio.flip(1),
            clip.has_audio,
            None if clip.flow is None else -clip.flow.flip(1),
        )
    if operation == "shuffle":
        order = (steps * min(_SEGMENTS, max(1, frames // 2)) // frames + random).argsort()
    elif operation == "warp":
        distinct = min(2 if more < 0.5 else 4, frames)
        order = random.argsort()[:distinct].sort().values[steps * distinct // frames]
    else:
        middle = (frames - 1) / 2
        order = (middle + (steps - middle) * 2 ** (2 * more - 1)).round().long().clamp(0, frames - 1)
    return Clips(
        clip.frames[:, order],
        None if clip.following is None else clip.following[:, order],
        clip.audio,
        clip.has_audio,
        None if clip.flow is None else clip.flow[:, order],
    )


def strong_augment(
    pictures: Tensor,
    *,
    view: str,
    seed: int,
    ids: Tensor,
    options: StrongOptions = StrongOptions(),
) -> Tensor:
    """Return strongly augmented copies of the pictures of one view.

    The draws of a clip are a function of (seed, its id, view), and the same for all its frames. Empty areas are filled
    with `views.NEUTRAL`.

    Args:
        pictures: Weakly augmented pictures, float ``[N, T, 3, H, W]``, 0 to 255.
        view: Name of their view.
        seed: Seed of this step.
        ids: Numbers of the clips, int64 ``[N]``.
        options: Operations and their strength.

    Returns:
        Pictures, float32, the same shape.
    """
    names = SETS[options.set_for(view)]
    draws = uniform(derive(seed, "strong", view), ids, 2 + _PER_OPERATION * options.num_ops).tolist()
    fill = [value / 255 for value in NEUTRAL[view]]
    empty = pictures.new_tensor(fill, dtype=torch.float32).view(3, 1, 1)
    copies = torch.empty_like(pictures, dtype=torch.float32)
    for clip, draw, out in zip(pictures, draws, copies, strict=True):
        result = torch.div(clip, 255, out=out)
        for first in range(2, len(draw), _PER_OPERATION):
            which, apply, level, sign = draw[first : first + _PER_OPERATION]
            if names and apply < options.probability:
                strength = (1 + int(level * options.magnitude)) / 10 * (1 if sign < 0.5 else -1)
                result = OPERATIONS[names[int(which * len(names))]](result, strength, fill)
        torch.clamp(result, 0, 1, out=out)
        _cut(out, draw[0], draw[1], options.cutout, empty)
        out.mul_(255)
    return copies


def _cut(pictures: Tensor, across: float, down: float, share: float, empty: Tensor) -> None:
    """Fill a square with a side of `share` of the short side, centred anywhere, in place."""
    height, width = pictures.shape[-2:]
    side = round(share * min(height, width))
    if not side:
        return
    top, left = round(down * height - side / 2), round(across * width - side / 2)
    hole = pictures[..., max(0, top) : max(0, top + side), max(0, left) : max(0, left + side)]
    hole[:] = empty


Operation = Callable[[Tensor, float, Sequence[float]], Tensor]
"""Pictures, strength in [-1, 1], fill value per channel -> pictures."""


def _affine(
    *, angle: float = 0.0, x: float = 0.0, y: float = 0.0, shear_x: float = 0.0, shear_y: float = 0.0
) -> Operation:
    def move(pictures: Tensor, strength: float, fill: Sequence[float]) -> Tensor:
        height, width = pictures.shape[-2:]
        offset = pictures.new_tensor(fill).view(3, 1, 1)
        # Shift the fill to 0, so that no border needs filling: torchvision's filling darkens the pixels on the edge.
        result: Tensor = V.affine(
            pictures - offset,
            angle=angle * strength,
            translate=[round(x * strength * width), round(y * strength * height)],
            scale=1.0,
            shear=[math.degrees(math.atan(shear_x * strength)), math.degrees(math.atan(shear_y * strength))],
            interpolation=InterpolationMode.BILINEAR,
        )
        return result + offset

    return move


def _adjust(change: Callable[[Tensor, float], Tensor]) -> Operation:
    return lambda pictures, strength, fill: change(pictures, 1 + 0.9 * strength)


OPERATIONS: Mapping[str, Operation] = MappingProxyType(
    {
        "rotate": _affine(angle=30),
        "shear_x": _affine(shear_x=0.3),
        "shear_y": _affine(shear_y=0.3),
        "translate_x": _affine(x=0.45),
        "translate_y": _affine(y=0.45),
        "brightness": _adjust(V.adjust_brightness),
        "contrast": _adjust(V.adjust_contrast),
        "saturation": _adjust(V.adjust_saturation),
        "sharpness": _adjust(V.adjust_sharpness),
        "posterize": lambda pictures, strength, fill: V.posterize(pictures, 8 - round(4 * abs(strength))),
        "solarize": lambda pictures, strength, fill: V.solarize(pictures, 1 - abs(strength)),
        "autocontrast": lambda pictures, strength, fill: V.autocontrast(pictures),
        "equalize": lambda pictures, strength, fill: V.equalize(pictures),
        "invert": lambda pictures, strength, fill: V.invert(pictures),
    }
)

_GEOMETRIC = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")

SETS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "full": tuple(OPERATIONS),
        "geometric": _GEOMETRIC,
        "colour": tuple(name for name in OPERATIONS if name not in _GEOMETRIC),
        "none": (),
    }
)
"""Sets of operations. Inverting, solarising or equalising a signed field (flow, temporal gradient) changes its meaning;
the operations of ``geometric`` do not."""


class ClipAugment:
    """Make the pictures that `MultiviewPseudoLabel` takes.

    Every draw is a function of (seed, id of the clip, view). Weak and strong pictures of a view share crop and flip.

    Args:
        size: Side of the crop in pixels.
        views: Names of the views.
        weak: Options of crop and flip.
        strong: Options of strong augmentation.
        shared_geometry: Crop all views of a clip in the same place; False: each view separately.
        flow: Flow method for the view ``flow``.
        tg_gain: Gain of the view ``tg``.

    Raises:
        ValueError: Views are unknown, or the size is below 1.
    """

    def __init__(
        self,
        size: int,
        *,
        views: Sequence[str] = ("rgb", "tg"),
        weak: WeakOptions = WeakOptions(),
        strong: StrongOptions = StrongOptions(),
        shared_geometry: bool = True,
        flow: str | FlowMethod = "dis",
        tg_gain: float = 1.0,
    ) -> None:
        if size < 1:
            raise ValueError(f"ClipAugment got size={size}; expected at least 1 pixel")
        self.size, self.views = size, check_views(views)
        self.weak_options, self.strong_options, self.shared_geometry = weak, strong, shared_geometry
        self.flow, self.tg_gain = flow, tg_gain

    def weak(self, clips: Clips | Sequence[Clips], *, seed: int, ids: Tensor) -> dict[str, Tensor]:
        """Return weakly augmented pictures by view, float32 ``[N, T, 3, size, size]``."""
        return self._pictures(self._crops(clips, seed, ids))

    def weak_and_strong(
        self, clips: Clips | Sequence[Clips], *, seed: int, ids: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return weakly augmented pictures, and strongly augmented ones of the same crops."""
        crops = self._crops(clips, seed, ids)
        weak = self._pictures(crops)
        sources = self._other_order(crops, weak, seed, ids) if self.strong_options.temporal else weak
        strong = {
            view: strong_augment(pictures, view=view, seed=seed, ids=ids, options=self.strong_options)
            for view, pictures in sources.items()
        }
        return weak, strong

    def reordered(self, *, seed: int, ids: Tensor) -> Tensor:
        """Return which strong clips have frames in another order than forwards, bool ``[N]``."""
        return torch.tensor([operation in REORDERING for operation in self._operations(seed, ids)], dtype=torch.bool)

    def plain(self, clips: Clips | Sequence[Clips], *, crops: int = 1) -> list[dict[str, Tensor]]:
        """Return test pictures: the middle, or several crops along the long side."""
        return [self._views(crop, self.views) for crop in spread_crops(clips, size=self.size, crops=crops)]

    def _crops(self, clips: Clips | Sequence[Clips], seed: int, ids: Tensor) -> list[tuple[Clips, Sequence[str]]]:
        """Return cropped clips, and the views to make from them."""
        if self.shared_geometry:
            return [(weak_crop(clips, size=self.size, seed=seed, ids=ids, options=self.weak_options), self.views)]
        return [
            (
                weak_crop(
                    clips, size=self.size, seed=derive(seed, "geometry", view), ids=ids, options=self.weak_options
                ),
                (view,),
            )
            for view in self.views
        ]

    def _pictures(self, crops: Sequence[tuple[Clips, Sequence[str]]]) -> dict[str, Tensor]:
        pictures: dict[str, Tensor] = {}
        for clips, views in crops:
            pictures |= self._views(clips, views)
        return pictures

    def _operations(self, seed: int, ids: Tensor) -> list[Temporal | None]:
        """Return the operation on the order of each clip's frames; None: no change."""
        operations, probability = self.strong_options.temporal, self.strong_options.temporal_probability
        draws = uniform(derive(seed, "temporal"), ids, 2).tolist()
        return [
            operations[int(which * len(operations))] if operations and apply < probability else None
            for apply, which in draws
        ]

    def _other_order(
        self, crops: Sequence[tuple[Clips, Sequence[str]]], weak: Mapping[str, Tensor], seed: int, ids: Tensor
    ) -> dict[str, Tensor]:
        """Return the weak pictures, recomputed for reordered clips: motion is measured in the new order."""
        operations = self._operations(seed, ids)
        places = [place for place, operation in enumerate(operations) if operation is not None]
        if not places:
            return dict(weak)
        result = {view: pictures.clone() for view, pictures in weak.items()}
        for clips, views in crops:
            draws = uniform(derive(seed, "order"), ids, clips.frames.shape[1] + 1).tolist()
            each = list(_each(clips))
            reordered_clips = [
                reorder_clip(each[place], operation, draws[place])
                for place, operation in enumerate(operations)
                if operation is not None
            ]
            for view, pictures in self._views(join_clips(reordered_clips), views).items():
                result[view][places] = pictures
        return result

    def _views(self, clips: Clips, views: Sequence[str]) -> dict[str, Tensor]:
        return make_views(clips, views, flow=self.flow, tg_gain=self.tg_gain)
