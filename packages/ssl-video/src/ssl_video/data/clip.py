"""Define clips: which frames of a video they take, and batches of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from torch import Tensor

from contrastive_core.errors import UserError
from contrastive_core.rng import derive, uniform_number

if TYPE_CHECKING:
    from ssl_video.data.videos import VideoSet


@dataclass(frozen=True)
class ClipSpec:
    """Which frames of a video make a clip.

    Attributes:
        frames: Number of frames T.
        stride: Distance between two frames, in frames of a video of `fps`.
        fps: Nominal frames per second; 8 frames at stride 8 and 30 fps are 2.13 seconds of any video.
        index_rule: ``stride`` for frames 0, s, 2 s, ... of the window of T s frames; ``linspace`` for frames spread
            from its first to its last, as PyTorchVideo's ``uniform_temporal_subsample`` takes them.
    """

    frames: int = 8
    stride: float = 8
    fps: float = 30
    index_rule: Literal["stride", "linspace"] = "stride"

    def __post_init__(self) -> None:
        if self.frames < 1 or not self.stride > 0 or not self.fps > 0:
            raise UserError(
                f"clip.frames is {self.frames}, clip.stride {self.stride} and clip.fps {self.fps}; expected at least "
                "one frame and positive numbers"
            )
        if self.index_rule not in ("stride", "linspace"):
            raise UserError(f"clip.index_rule is {self.index_rule!r}; expected stride or linspace")

    @property
    def duration(self) -> float:
        """Length of the window in seconds."""
        return self.frames * self.stride / self.fps

    def times(self, start: float = 0.0) -> list[float]:
        """The moments of the frames in seconds.

        >>> [round(30 * t) for t in ClipSpec().times()]
        [0, 8, 16, 24, 32, 40, 48, 56]
        >>> [round(30 * t) for t in ClipSpec(index_rule="linspace").times()]
        [0, 9, 18, 27, 36, 45, 54, 63]
        """
        if self.index_rule == "stride":
            places = [i * self.stride for i in range(self.frames)]
        else:
            last = self.frames * self.stride - 1
            places = [float(int(i * last / max(1, self.frames - 1))) for i in range(self.frames)]
        return [start + place / self.fps for place in places]


def clip_start(duration: float, spec: ClipSpec, *, seed: int, id: int) -> float:  # noqa: A002 - the field's name
    """Draw the start of a clip, uniformly over those that fit, as a function of (seed, id); 0 if none fits."""
    room = max(0.0, duration - spec.duration)
    return uniform_number(derive(seed, "clip"), id) * room


def clip_starts(duration: float, spec: ClipSpec, clips: int, *, to_the_end: bool = False) -> list[float]:
    """Starts of the clips that a video is tested on: ``room * i / clips``, as in SlowFast and PyTorchVideo.

    Args:
        duration: Duration of the video in seconds.
        spec: Frames of a clip.
        clips: Number of clips. One alone is in the middle.
        to_the_end: Spread them to the very end instead, ``room * i / (clips - 1)``.
    """
    room = max(0.0, duration - spec.duration)
    if clips == 1:
        return [room / 2]
    return [room * i / (clips - 1 if to_the_end else clips) for i in range(clips)]


@dataclass(frozen=True)
class Clips:
    """A batch of N clips as read from files.

    Attributes:
        frames: uint8 ``[N, T, 3, H, W]``.
        following: the frame after each of them in the video, the same shape; None where no view needs them.
        audio: float32 ``[N, S]``, mono at 16 kHz; None where no view needs it.
        has_audio: bool ``[N]``: which clips have sound at all; None: all.
        flow: displacements to the frame after each, float32 ``[N, T, 2, h, w]`` in pixels of that size, which need not
            be that of the frames; None: to be computed where a view needs them.
    """

    frames: Tensor
    following: Tensor | None = None
    audio: Tensor | None = None
    has_audio: Tensor | None = None
    flow: Tensor | None = None

    def __len__(self) -> int:
        return len(self.frames)


class Sample(NamedTuple):
    """A clip, and of which video it is: another one than asked for where that one cannot be read."""

    clip: Clips
    video: int


class ClipSource(Protocol):
    """What training reads clips from: `ClipDataset`, or frames that a user keeps in another form."""

    @property
    def videos(self) -> VideoSet:
        """The videos, with their classes."""

    def __len__(self) -> int:
        """Number of videos."""

    def clip(self, index: int, *, seed: int) -> Sample:
        """Return the clip of a video that the seed chooses: a function of both."""
