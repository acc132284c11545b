"""Appearance, and what every view has in common: the scale of a picture and how the network takes it."""

from __future__ import annotations

import torch
from torch import Tensor

MEAN, STD = 0.45, 0.225
"""Of every view, on the scale 0 to 1: the values of SlowFast's recipes."""


def rgb(clips: Tensor) -> Tensor:
    """The frames themselves: uint8 ``[..., T, 3, H, W]`` -> float32 of the same shape, 0 to 255.

    Raises:
        ValueError: another shape or type.
    """
    return checked(clips, "rgb").to(torch.float32)


def normalize(pictures: Tensor, *, mean: float = MEAN, std: float = STD) -> Tensor:
    """Pictures as the network takes them: ``(x / 255 - mean) / std``, ``[N, T, 3, H, W]`` -> ``[N, 3, T, H, W]``."""
    return ((pictures.transpose(-4, -3) / 255 - mean) / std).contiguous()


def checked(clips: Tensor, what: str) -> Tensor:
    """The clips, if they are clips.

    Raises:
        ValueError: another shape or type.
    """
    if clips.dtype != torch.uint8 or clips.ndim < 4 or clips.shape[-3] != 3:
        raise ValueError(
            f"{what} got {clips.dtype} {tuple(clips.shape)}; expected uint8 clips [..., T, 3, H, W], frames before "
            "channels"
        )
    return clips


def checked_pair(clips: Tensor, following: Tensor | None, what: str) -> tuple[Tensor, Tensor]:
    """The clips and the frame after each of theirs.

    Without `following` the frames of a clip follow each other; the last, after which there is none, repeats the change
    before it, so the pair (last but one, last) stands for it. A clip of one frame follows itself.

    Raises:
        ValueError: another shape or type, or two that differ.
    """
    checked(clips, what)
    if following is not None:
        if following.shape != clips.shape or following.dtype != clips.dtype:
            raise ValueError(
                f"{what} got clips {tuple(clips.shape)} and following {following.dtype} {tuple(following.shape)}; "
                "expected for each frame the one after it, in the same shape"
            )
        return clips, following
    frames = clips.shape[-4]
    first = torch.arange(frames, device=clips.device).clamp(max=max(0, frames - 2))
    second = (first + 1).clamp(max=frames - 1)
    return clips.index_select(-4, first), clips.index_select(-4, second)
