"""Optical flow methods: OpenCV's DIS, Farneback and TV-L1, and torchvision's RAFT with weights from a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from contrastive_core.errors import UserError

FlowMethod = Callable[[Tensor, Tensor], Tensor]
"""Frames, and the frame after each, uint8 ``[P, 3, H, W]`` -> displacements in pixels, float32 ``[P, 2, H, W]``."""

BOUND_SHARE = 20 / 256
"""Largest displacement in a flow picture, as a share of the short side of the frame."""

NAMES = ("dis", "dis_fast", "dis_ultrafast", "farneback", "tvl1", "raft:FILE")
_PRESETS = {
    "dis": "DISOPTICAL_FLOW_PRESET_MEDIUM",
    "dis_fast": "DISOPTICAL_FLOW_PRESET_FAST",
    "dis_ultrafast": "DISOPTICAL_FLOW_PRESET_ULTRAFAST",
}
_GRAY = (0.299, 0.587, 0.114)
_RAFT_SIDE = 128
_OPENCV_SIDE = 16

Gray = NDArray[np.uint8]


def flow_method(name: str) -> FlowMethod:
    """Return a method by name: ``dis``, ``dis_fast``, ``dis_ultrafast``, ``farneback``, ``tvl1`` or ``raft:FILE``.

    A RAFT file is a state dictionary of torchvision's ``raft_small`` or ``raft_large``, as .safetensors or .pth. Below
    about 100 pixels, OpenCV has no coarse scale for ``dis_fast``, which is then slower than ``dis``.

    Raises:
        UserError: The method is unknown, or a library that it needs is not installed.
    """
    if name.startswith("raft:"):
        return _raft(name.removeprefix("raft:"))
    if name in _PRESETS:
        cv2 = _opencv(name)
        return _on_gray(cv2, lambda: cv2.DISOpticalFlow_create(getattr(cv2, _PRESETS[name])).calc)
    if name == "farneback":
        cv2 = _opencv(name)
        return _on_gray(cv2, lambda: _farneback(cv2))
    if name == "tvl1":
        cv2 = _opencv(name)
        if not hasattr(cv2, "optflow"):
            raise UserError(
                "the flow method tvl1 needs OpenCV's contrib build, which is not installed here; replace "
                "opencv-python-headless by opencv-contrib-python-headless (never both), or use dis or farneback"
            )
        return _on_gray(cv2, lambda: cv2.optflow.DualTVL1OpticalFlow_create().calc)
    raise UserError(f"unknown flow method {name!r}; expected one of {', '.join(NAMES)}")


def _opencv(name: str) -> Any:
    try:
        import cv2  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise UserError(
            f"the flow method {name!r} needs OpenCV, which is not installed here ({error}); "
            "pip install 'ssl-video[flow]', or leave out the view 'flow'"
        ) from error
    return cv2


def _farneback(cv2: Any) -> Callable[[Gray, Gray, None], Any]:
    def calc(before: Gray, after: Gray, _: None) -> Any:
        return cv2.calcOpticalFlowFarneback(before, after, None, 0.5, 3, 15, 3, 5, 1.2, 0)

    return calc


def _on_gray(cv2: Any, make: Callable[[], Callable[[Gray, Gray, None], Any]]) -> FlowMethod:
    def flow(before: Tensor, after: Tensor) -> Tensor:
        height, width = before.shape[-2:]
        # DIS fails or returns nothing useful for smaller frames, so these are padded by repeating the border.
        pad = (0, max(0, _OPENCV_SIDE - width), 0, max(0, _OPENCV_SIDE - height))
        with _one_thread(cv2):
            calc = make()
            # None: DIS would start its search at the displacements in a given output array.
            displacements = np.empty((len(before), 2, height, width), np.float32)
            for into, a, b in zip(displacements, _gray(before, pad), _gray(after, pad), strict=True):
                into[:] = calc(a, b, None)[:height, :width].transpose(2, 0, 1)
        return torch.from_numpy(displacements).to(before.device)

    return flow


_lock = Lock()
_inside: list[int] = []
"""Number of OpenCV's threads before each of the calls that are running now."""


@contextmanager
def _one_thread(cv2: Any) -> Iterator[None]:
    # DIS cuts a picture into one stripe per thread and searches for matches within each, so its result would depend on
    # the number of threads, and thus on the machine. OpenCV has one number for all callers.
    with _lock:
        _inside.append(_inside[0] if _inside else cv2.getNumThreads())
        cv2.setNumThreads(1)
    try:
        yield
    finally:
        with _lock:
            threads = _inside.pop()
            if not _inside:
                cv2.setNumThreads(threads)


def _gray(frames: Tensor, pad: tuple[int, int, int, int]) -> Gray:
    red, green, blue = (channel * weight for channel, weight in zip(frames.cpu().unbind(1), _GRAY, strict=True))
    gray = red.add_(green).add_(blue).round_()
    if any(pad):
        gray = F.pad(gray[:, None], pad, mode="replicate")[:, 0]
    return gray.to(torch.uint8).numpy()


@lru_cache(maxsize=2)
def _raft(file: str) -> FlowMethod:
    from torchvision.models.optical_flow import raft_large, raft_small  # noqa: PLC0415 - heavy

    from contrastive_core.training.weights import read_state_dict  # noqa: PLC0415

    state = read_state_dict(Path(file))
    for build in (raft_small, raft_large):
        network: nn.Module = build(weights=None)
        if network.state_dict().keys() == state.keys():
            network.load_state_dict(state)
            return _raft_flow(network.eval())
    raise UserError(
        f"{file}: its {len(state)} tensors are not those of torchvision's raft_small or raft_large; expected a state "
        "dictionary of one of them"
    )


def _raft_flow(network: nn.Module) -> FlowMethod:
    @torch.no_grad()
    def flow(before: Tensor, after: Tensor) -> Tensor:
        network.to(before.device)
        height, width = before.shape[-2:]
        # RAFT takes sides of at least 128 that are multiples of 8.
        grow = max(1.0, _RAFT_SIDE / min(height, width))
        size = [8 * round(side * grow / 8 + 0.499) for side in (height, width)]
        a, b = (
            F.interpolate(x.to(torch.float32) / 127.5 - 1, size=size, mode="bilinear", align_corners=False)
            for x in (before, after)
        )
        displacements = network(a, b)[-1]
        displacements = F.interpolate(displacements, size=(height, width), mode="bilinear", align_corners=False)
        return torch.stack([displacements[:, 0] * (width / size[1]), displacements[:, 1] * (height / size[0])], 1)

    return flow
