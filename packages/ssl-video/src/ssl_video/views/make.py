"""All views of a batch of clips at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from torch import Tensor

from ssl_video.data.sampling import Clips
from ssl_video.views.audio import log_mel
from ssl_video.views.methods import FlowMethod
from ssl_video.views.motion import flow_picture, optical_flow, temporal_gradient
from ssl_video.views.pictures import rgb

VIEWS = ("rgb", "flow", "tg", "audio")
"""Names of the views: frames, optical flow, temporal gradient, log-mel spectrogram."""

NEUTRAL: Mapping[str, tuple[float, float, float]] = MappingProxyType(
    {"rgb": (114.75,) * 3, "flow": (127.5, 127.5, 0.0), "tg": (127.5,) * 3, "audio": (0.0,) * 3}
)
"""What a picture of each view shows where there is nothing: the mean grey, rest, no change, silence."""


def make_views(
    clips: Clips, views: Sequence[str] = ("rgb", "tg"), *, flow: str | FlowMethod = "dis", tg_gain: float = 1.0
) -> dict[str, Tensor]:
    """Pictures of the named views, float32 ``[N, T, 3, H, W]`` each.

    The picture of a clip without sound is silence; which clips those are is `Clips.has_audio`.

    Args:
        clips: cropped and resized already.
        views: some of ``rgb``, ``flow``, ``tg``, ``audio``.
        flow: the method, see `displacement`, for clips that bring no flow along.
        tg_gain: see `temporal_gradient`.

    Raises:
        ValueError: an unknown view, or audio of clips that were read without.
        UserError: what a view needs is not installed.
    """
    made = {}
    for view in check_views(views):
        if view == "rgb":
            made[view] = rgb(clips.frames)
        elif view == "tg":
            made[view] = temporal_gradient(clips.frames, clips.following, gain=tg_gain)
        elif view == "flow" and clips.flow is not None:
            made[view] = flow_picture(clips.flow)
        elif view == "flow":
            made[view] = optical_flow(clips.frames, clips.following, method=flow)
        else:
            if clips.audio is None:
                raise ValueError("make_views got clips without audio for the view 'audio'; read them with audio")
            size = clips.frames.shape[-2], clips.frames.shape[-1]
            made[view] = log_mel(clips.audio, frames=clips.frames.shape[1], size=size)
    return made


def needs_following(views: Sequence[str], flow: object | None = None) -> bool:
    """Whether these views need the frame after each; flow that is stored does not."""
    return "tg" in views or ("flow" in views and flow is None)


def check_views(views: Sequence[str]) -> tuple[str, ...]:
    """The views, if there are such.

    Raises:
        ValueError: none, an unknown one, or one twice.
    """
    if not views or not set(views) <= set(VIEWS) or len(set(views)) < len(views):
        raise ValueError(f"views are {', '.join(views) or 'none'}; expected some of {', '.join(VIEWS)}, each once")
    return tuple(views)
