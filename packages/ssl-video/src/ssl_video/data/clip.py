"""Define clips: the frames that they take from a video, and batches of clips."""

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
    """Number and spacing of the frames that a clip takes from a video.

    Attributes:
        frames: Number of frames T.
        stride: Distance between two frames, in frames of a video with `fps` frames per second.
        fps: Nominal frames per second; 8 frames at stride 8 and 30 fps are 2.13 seconds of any video.
        index_rule: ``stride`` for frames 0, s, 2 s, ... of the window of T s frames; ``linspace`` for frames spread
            evenly from its first to its last, as PyTorchVideo's ``uniform_temporal_subsample`` takes them.
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
        """Return the times of the frames in seconds.

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
    """Draw the start of a clip uniformly from those that fit, as a function of (seed, id); 0 if none fits."""
    room = max(0.0, duration - spec.duration)
    return uniform_number(derive(seed, "clip"), id) * room


def clip_starts(duration: float, spec: ClipSpec, clips: int, *, to_the_end: bool = False) -> list[float]:
    """Return the starts of the clips that test a video: ``room * i / clips``, as in SlowFast and PyTorchVideo.

    Args:
        duration: Duration of the video in seconds.
        spec: Frames of a clip.
        clips: Number of clips. A single clip is taken from the middle.
        to_the_end: Spread the clips up to the end of the video instead, ``room * i / (clips - 1)``.
    """
    room = max(0.0, duration - spec.duration)
    if clips == 1:
        return [room / 2]
    return [room * i / (clips - 1 if to_the_end else clips) for i in range(clips)]


@dataclass(frozen=True)
class Clips:
    """A batch of N clips as read from files.

    Attributes:
        frames: Frames, uint8 ``[N, T, 3, H, W]``.
        following: Frame after each frame in the video, of the same shape; None if no view needs it.
        audio: Sound, float32 ``[N, S]``, mono at 16 kHz; None if no view needs it.
        has_audio: Whether each clip has sound, bool ``[N]``; None: all have.
        flow: Displacements to the frame after each frame, float32 ``[N, T, 2, h, w]``, in pixels at their own
            resolution, which may differ from that of the frames; None: computed by the views that need them.
    """

    frames: Tensor
    following: Tensor | None = None
    audio: Tensor | None = None
    has_audio: Tensor | None = None
    flow: Tensor | None = None

    def __len__(self) -> int:
        return len(self.frames)


class Sample(NamedTuple):
    """A clip and the index of its video, which differs from the requested one if that is unreadable."""

    clip: Clips
    video: int


class ClipSource(Protocol):
    """Source of training clips: `ClipDataset`, or frames that a user stores in another form."""

    @property
    def videos(self) -> VideoSet:
        """Videos with their classes."""

    def __len__(self) -> int:
        """Number of videos."""

    def clip(self, index: int, *, seed: int) -> Sample:
        """Return the clip of a video that the seed selects, as a function of both."""
