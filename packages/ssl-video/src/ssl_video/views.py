"""Views of a clip: RGB frames, optical flow, temporal gradient and log-mel spectrogram, as pictures for one network.

A clip is uint8 ``[..., T, 3, H, W]``; a picture is float32 of the same shape on the scale 0 to 255. Motion is measured
between a frame and the next one of the video, not the next frame of the clip; pass the frames after as `following`.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from contrastive_core.errors import UserError
from ssl_video.data.clip import Clips
from ssl_video.optical_flow.methods import BOUND_SHARE, FlowMethod, flow_method

__all__ = [
    "NEUTRAL",
    "VIEWS",
    "Clips",
    "displacement",
    "flow_method",
    "flow_picture",
    "log_mel",
    "make_views",
    "mirror_flow",
    "normalize",
    "optical_flow",
    "resize_flow",
    "rgb",
    "temporal_gradient",
]


VIEWS = ("rgb", "flow", "tg", "audio")
"""Names of the views: frames, optical flow, temporal gradient and log-mel spectrogram."""

NEUTRAL: Mapping[str, tuple[float, float, float]] = MappingProxyType(
    {"rgb": (114.75,) * 3, "flow": (127.5, 127.5, 0.0), "tg": (127.5,) * 3, "audio": (0.0,) * 3}
)
"""Values of an empty picture of each view: mean grey, no motion, no change, silence."""

MEAN, STD = 0.45, 0.225
"""Normalisation of every view on the scale 0 to 1, with the values of SlowFast's configurations."""

Third = Literal["magnitude", "zero", "mid"]
RATE = 16_000
_FFT = 512
_HOP = 160
_FLOOR_DB = -80.0
_QUIET = 1e-10


def make_views(
    clips: Clips, views: Sequence[str] = ("rgb", "tg"), *, flow: str | FlowMethod = "dis", tg_gain: float = 1.0
) -> dict[str, Tensor]:
    """Make the pictures of the named views, float32 ``[N, T, 3, H, W]`` each.

    Clips without sound (see `Clips.has_audio`) get a picture of silence.

    Args:
        clips: Cropped and resized clips.
        views: Views, from ``rgb``, ``flow``, ``tg``, ``audio``.
        flow: Optical flow method for clips without stored flow, see `displacement`.
        tg_gain: Gain of `temporal_gradient`.

    Raises:
        ValueError: A view is unknown, or clips lack the audio that a view needs.
        UserError: A library that a view needs is not installed.
    """
    pictures = {}
    for view in check_views(views):
        if view == "rgb":
            pictures[view] = rgb(clips.frames)
        elif view == "tg":
            pictures[view] = temporal_gradient(clips.frames, clips.following, gain=tg_gain)
        elif view == "flow" and clips.flow is not None:
            pictures[view] = flow_picture(clips.flow)
        elif view == "flow":
            pictures[view] = optical_flow(clips.frames, clips.following, method=flow)
        else:
            if clips.audio is None:
                raise ValueError("make_views got clips without audio for the view 'audio'; read them with audio=True")
            size = clips.frames.shape[-2], clips.frames.shape[-1]
            pictures[view] = log_mel(clips.audio, frames=clips.frames.shape[1], size=size)
    return pictures


def needs_following(views: Sequence[str], flow: object | None = None) -> bool:
    """Return whether these views need the frame after each frame; stored flow does not."""
    return "tg" in views or ("flow" in views and flow is None)


def check_views(views: Sequence[str]) -> tuple[str, ...]:
    """Return the views as a tuple.

    Raises:
        ValueError: There are no views, unknown ones, or duplicates.
    """
    if not views or not set(views) <= set(VIEWS) or len(set(views)) < len(views):
        raise ValueError(f"views are {', '.join(views) or 'none'}; expected some of {', '.join(VIEWS)}, each once")
    return tuple(views)


def rgb(clips: Tensor) -> Tensor:
    """Return the frames as a picture: uint8 ``[..., T, 3, H, W]`` -> float32 of the same shape, 0 to 255.

    Raises:
        ValueError: The shape or type is wrong.
    """
    return checked(clips, "rgb").to(torch.float32)


def normalize(pictures: Tensor, *, mean: float | Sequence[float] = MEAN, std: float | Sequence[float] = STD) -> Tensor:
    """Normalise pictures for the network: ``(x / 255 - mean) / std``, ``[N, T, 3, H, W]`` -> ``[N, 3, T, H, W]``.

    Args:
        pictures: Pictures on the scale 0 to 255.
        mean: Mean on the scale 0 to 1: a number, or one per channel.
        std: Standard deviation on the scale 0 to 1: a number, or one per channel.
    """
    scaled = pictures.transpose(-4, -3) / 255
    centre, spread = (
        value if isinstance(value, float | int) else scaled.new_tensor(list(value)).view(-1, 1, 1, 1)
        for value in (mean, std)
    )
    return ((scaled - centre) / spread).contiguous()


def check_normalization(mean: float | Sequence[float], std: float | Sequence[float]) -> None:
    """Check the arguments of `normalize`.

    Raises:
        ValueError: They are not one number or three, or on the scale 0 to 255.
    """
    centre, spread = ([x] if isinstance(x, float | int) else list(x) for x in (mean, std))
    are_counts_right = len(centre) in (1, 3) and len(spread) in (1, 3)
    if not are_counts_right or not all(0 <= x <= 1 for x in centre) or not all(0 < x <= 1 for x in spread):
        raise ValueError(
            f"mean is {mean} and std {std}; expected one number or three each, on the scale 0 to 1 and std above 0. "
            "Divide numbers on the scale 0 to 255 by 255"
        )


def checked(clips: Tensor, what: str) -> Tensor:
    """Check that clips are uint8 ``[..., T, 3, H, W]``, and return them.

    Raises:
        ValueError: The shape or type is wrong.
    """
    if clips.dtype != torch.uint8 or clips.ndim < 4 or clips.shape[-3] != 3:
        raise ValueError(
            f"{what} got {clips.dtype} {tuple(clips.shape)}; expected uint8 clips [..., T, 3, H, W], frames before "
            "channels"
        )
    return clips


def checked_pair(clips: Tensor, following: Tensor | None, what: str) -> tuple[Tensor, Tensor]:
    """Return the clips and the frame after each of their frames.

    Without `following`, each frame of a clip is followed by the next one of the clip. The last frame has
    no successor; it is replaced by the pair (last but one, last), which repeats the change before it. A clip with a
    single frame is followed by itself.

    Raises:
        ValueError: The shape or type is wrong, or the two differ.
    """
    checked(clips, what)
    if following is not None:
        if following.shape != clips.shape or following.dtype != clips.dtype:
            raise ValueError(
                f"{what} got clips {tuple(clips.shape)} and following {following.dtype} {tuple(following.shape)}; "
                "expected the frame after each frame, in the same shape"
            )
        return clips, following
    frames = clips.shape[-4]
    first = torch.arange(frames, device=clips.device).clamp(max=max(0, frames - 2))
    second = (first + 1).clamp(max=frames - 1)
    return clips.index_select(-4, first), clips.index_select(-4, second)


def temporal_gradient(clips: Tensor, following: Tensor | None = None, *, gain: float = 1.0) -> Tensor:
    """Compute the signed change from each frame to the next one, in colour: ``(x_t - x_{t+1} + 255) / 2``.

    The value is exactly 127.5 where nothing changes. With a `gain` g the picture is ``127.5 + g (x_t - x_{t+1}) / 2``,
    clipped to 0 to 255; most changes have low contrast, which a gain above 1 increases.

    Args:
        clips: Frames, uint8 ``[..., T, 3, H, W]``.
        following: Frame after each frame, of the same shape; None: each frame is followed by the next one of the clip,
            and the last one repeats the change before it.
        gain: Contrast; 1.0 clips nothing.

    Returns:
        Pictures, float32, the same shape, 0 to 255.

    Raises:
        ValueError: The shape or type is wrong, or the gain is not positive.
    """
    if not gain > 0:
        raise ValueError(f"temporal_gradient got gain={gain}; expected a positive number")
    now, after = checked_pair(clips, following, "temporal_gradient")
    change = now.to(torch.float32, copy=True).sub_(after)  # in place: a third of the time goes to new memory
    if gain == 1.0:
        return change.add_(255).div_(2)
    return (127.5 + gain * change / 2).clamp(0, 255)


def optical_flow(
    clips: Tensor,
    following: Tensor | None = None,
    *,
    method: str | FlowMethod = "dis",
    bound: float | None = None,
    third: Third = "magnitude",
) -> Tensor:
    """Compute optical flow as a picture, see `displacement` and `flow_picture`."""
    return flow_picture(displacement(clips, following, method=method), bound=bound, third=third)


def displacement(clips: Tensor, following: Tensor | None = None, *, method: str | FlowMethod = "dis") -> Tensor:
    """Compute optical flow in pixels: a point at (x, y) in a frame is at (x + u, y + v) in the next one.

    u is positive to the right, v downwards. Compute flow on frames that are already cropped, resized and mirrored, so
    that no vector needs to be transformed and the resolution is that of training.

    Args:
        clips: Frames, uint8 ``[..., T, 3, H, W]``.
        following: Frame after each frame; None: as in `temporal_gradient`.
        method: ``dis`` (also ``dis_fast``, ``dis_ultrafast``) and ``farneback`` from OpenCV, ``tvl1`` from its contrib
            build, ``raft:FILE`` with weights of torchvision's RAFT, or a function.

    Returns:
        Displacements, float32 ``[..., T, 2, H, W]``.

    Raises:
        ValueError: The shape or type is wrong.
        UserError: The method is unknown, or a library that it needs is not installed.
    """
    now, after = checked_pair(clips, following, "optical flow")
    if isinstance(method, str):
        method = flow_method(method)
    height, width = now.shape[-2:]
    flat = method(now.reshape(-1, 3, height, width), after.reshape(-1, 3, height, width))
    return flat.reshape(*now.shape[:-3], 2, height, width)


def flow_picture(flow: Tensor, *, bound: float | None = None, third: Third = "magnitude") -> Tensor:
    """Convert displacements to a picture of three channels on a fixed scale, which keeps speeds comparable.

        u' = 255 (clip(u, -b, b) + b) / (2 b), v' alike, m' = 255 min(sqrt(u^2 + v^2), b) / b

    No motion is (127.5, 127.5, 0).

    Args:
        flow: Displacements in pixels, float ``[..., 2, H, W]``.
        bound: b in pixels; None: 20 at a short side of 256, scaled in proportion.
        third: Third channel: ``magnitude`` m', ``zero`` or ``mid`` (127.5).

    Raises:
        ValueError: The shape is wrong, or the bound is not positive.
    """
    if flow.ndim < 3 or flow.shape[-3] != 2:
        raise ValueError(f"flow_picture got {tuple(flow.shape)}; expected displacements [..., 2, H, W]")
    b = BOUND_SHARE * min(flow.shape[-2:]) if bound is None else bound
    if not b > 0:
        raise ValueError(f"flow_picture got bound={bound}; expected a positive number of pixels")
    both = (flow.clamp(-b, b) + b) * (255 / (2 * b))
    if third == "magnitude":
        speed = flow.square().sum(dim=-3, keepdim=True).sqrt_()  # vector_norm takes ten times as long here
        last = speed.clamp_(max=b) * (255 / b)
    else:
        last = torch.full_like(both[..., :1, :, :], 0.0 if third == "zero" else 127.5)
    return torch.cat([both, last], dim=-3)


def mirror_flow(flow: Tensor) -> Tensor:
    """Mirror displacements ``[..., 2, H, W]``: reverse the columns and the sign of u."""
    reverse = flow.flip(-1)
    return torch.cat([-reverse[..., :1, :, :], reverse[..., 1:, :, :]], dim=-3)


def resize_flow(flow: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize displacements ``[N, 2, H, W]`` to (height, width), in pixels of the new size."""
    height, width = flow.shape[-2:]
    if (height, width) == size:
        return flow
    result = F.interpolate(flow, size=size, mode="bilinear", antialias=True)
    return result * result.new_tensor([size[1] / width, size[0] / height]).view(2, 1, 1)


def log_mel(audio: Tensor, *, frames: int, size: tuple[int, int]) -> Tensor:
    """Compute log-mel spectrograms as pictures: time from left to right, frequency upwards, three equal channels.

    The power of 80 mel bands (16 kHz, windows of 25 ms every 10 ms, FFT of 512) is expressed in dB below the clip's
    loudest point, cut off at -80 and scaled to 0 to 255. Time is divided into `frames` equal pieces, each resized to
    `size`. A silent clip is all 0. These are common values for speech and sound, and our choice.

    Args:
        audio: Mono samples at 16 kHz of the clip's whole duration, float ``[..., S]``.
        frames: Number of frames T of the other views.
        size: Height and width of a picture.

    Returns:
        Pictures, float32 ``[..., T, 3, H, W]``, 0 to 255.

    Raises:
        ValueError: There are too few samples for `frames` pieces.
        UserError: torchaudio is not installed.
    """
    samples = audio.shape[-1]
    times = samples // _HOP + 1
    if times < frames or samples <= _FFT // 2:  # the ends are padded by half a window, by reflection
        raise ValueError(
            f"log_mel got {samples} samples, {times} windows, for {frames} frames; expected at least a window ({_HOP} "
            f"samples) for each, and {_FFT // 2 + 1} samples in all"
        )
    spectrogram = _spectrogram(audio.device)(audio.reshape(-1, samples).to(torch.float32))
    peak = spectrogram.amax(dim=(-2, -1), keepdim=True)
    decibels = 10 * torch.log10(spectrogram.clamp(min=_QUIET) / peak.clamp(min=_QUIET))
    decibels = torch.where(peak > _QUIET, decibels, torch.full_like(decibels, _FLOOR_DB))
    loudness = (decibels.clamp(_FLOOR_DB, 0) / -_FLOOR_DB + 1) * 255
    edges = [round(i * times / frames) for i in range(frames + 1)]
    pieces = [
        F.interpolate(loudness[:, None, :, a:b].flip(-2), size=size, mode="bilinear", antialias=True)
        for a, b in itertools.pairwise(edges)
    ]
    pictures = torch.stack(pieces, dim=1).expand(-1, -1, 3, -1, -1)
    return pictures.reshape(*audio.shape[:-1], frames, 3, *size).contiguous()


@functools.cache
def _spectrogram(device: torch.device) -> Any:
    try:
        from torchaudio.transforms import MelSpectrogram  # noqa: PLC0415 - an extra
    except (ImportError, OSError) as error:
        raise UserError(
            f"the view 'audio' needs torchaudio, which is not installed here ({error}); "
            "pip install 'ssl-video[audio]', or leave the view out"
        ) from error
    transform = MelSpectrogram(sample_rate=RATE, n_fft=_FFT, win_length=400, hop_length=_HOP, n_mels=80, power=2.0)
    return transform.to(device)
