"""Motion as pictures: the temporal gradient, and optical flow."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ssl_video.views.methods import BOUND_SHARE, FlowMethod, flow_method
from ssl_video.views.pictures import checked_pair

Third = Literal["magnitude", "zero", "mid"]


def temporal_gradient(clips: Tensor, following: Tensor | None = None, *, gain: float = 1.0) -> Tensor:
    """The change from each frame to the one after it, in colour, with its sign: ``(x_t - x_{t+1} + 255) / 2``.

    Nothing moves: 127.5 exactly. With `gain` g the picture is ``127.5 + g (x_t - x_{t+1}) / 2``, clipped to 0 to 255;
    changes are of low contrast.

    Args:
        clips: uint8 ``[..., T, 3, H, W]``.
        following: the frame after each of them, the same shape; None: the clip's frames follow each other, and the
            last repeats the change before it.
        gain: 1.0 loses nothing.

    Returns:
        Pictures, float32, the same shape, 0 to 255.

    Raises:
        ValueError: another shape or type, or a gain that is not positive.
    """
    if not gain > 0:
        raise ValueError(f"temporal_gradient got gain={gain}; expected a positive number")
    now, after = checked_pair(clips, following, "temporal_gradient")
    change = now.to(torch.float32) - after.to(torch.float32)
    if gain == 1.0:
        return (change + 255) / 2
    return (127.5 + gain * change / 2).clamp(0, 255)


def optical_flow(
    clips: Tensor,
    following: Tensor | None = None,
    *,
    method: str | FlowMethod = "dis",
    bound: float | None = None,
    third: Third = "magnitude",
) -> Tensor:
    """Where each pixel goes until the next frame, as a picture; see `displacement` and `flow_picture`."""
    return flow_picture(displacement(clips, following, method=method), bound=bound, third=third)


def displacement(clips: Tensor, following: Tensor | None = None, *, method: str | FlowMethod = "dis") -> Tensor:
    """Optical flow in pixels: what is at (x, y) in a frame is at (x + u, y + v) in the one after it.

    u is positive to the right, v downwards. Compute it on frames that are cropped, resized and mirrored already: then
    no vector needs to be turned.

    Args:
        clips: uint8 ``[..., T, 3, H, W]``.
        following: the frame after each of them; None: as in `temporal_gradient`.
        method: ``dis`` (also ``dis_fast``, ``dis_ultrafast``) and ``farneback`` of OpenCV, ``tvl1`` of its contrib
            build, ``raft:FILE`` with weights of torchvision's RAFT, or a function.

    Returns:
        float32 ``[..., T, 2, H, W]``.

    Raises:
        ValueError: another shape or type.
        UserError: the method is unknown, or what it needs is not installed.
    """
    now, after = checked_pair(clips, following, "optical flow")
    if isinstance(method, str):
        method = flow_method(method)
    height, width = now.shape[-2:]
    flat = method(now.reshape(-1, 3, height, width), after.reshape(-1, 3, height, width))
    return flat.reshape(*now.shape[:-3], 2, height, width)


def flow_picture(flow: Tensor, *, bound: float | None = None, third: Third = "magnitude") -> Tensor:
    """Displacements as a picture of three channels on a fixed scale, so that speed and rest keep their meaning.

        u' = 255 (clip(u, -b, b) + b) / (2 b), v' alike, m' = 255 min(sqrt(u^2 + v^2), b) / b

    Rest is (127.5, 127.5, 0).

    Args:
        flow: float ``[..., 2, H, W]`` in pixels.
        bound: b in pixels; None: 20 at a short side of 256, and in proportion.
        third: the third channel: ``magnitude`` m', ``zero`` or ``mid`` (127.5).

    Raises:
        ValueError: another shape, or a bound that is not positive.
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
    """Displacements ``[..., 2, H, W]`` of the clip seen in a mirror: columns reversed, and u of opposite sign."""
    mirrored = flow.flip(-1)
    return torch.cat([-mirrored[..., :1, :, :], mirrored[..., 1:, :, :]], dim=-3)


def resize_flow(flow: Tensor, size: tuple[int, int]) -> Tensor:
    """Displacements ``[N, 2, H, W]`` of clips resized to (height, width): in the pixels of the new size."""
    height, width = flow.shape[-2:]
    if (height, width) == size:
        return flow
    resized = F.interpolate(flow, size=size, mode="bilinear", antialias=True)
    return resized * resized.new_tensor([size[1] / width, size[0] / height]).view(2, 1, 1)
