"""Render the views that were drawn.

Large views are rendered one by one. Small ones are rendered in blocks that fit into the processor's cache while one
operation after the other works on them; on a GPU the block is the whole batch. The four colour operations come in an
order of their own in every image: before each of the four stages a block is re-arranged, which costs a copy, so that
images with the same operation lie side by side and each operation runs once, in place, over its run of images. Nothing
that happens to an image depends on the others of its block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssl_vision.augment.color import grayscale_, hue_shifts, hue_sixths_, scale_, shift_
from ssl_vision.augment.draws import Draws, Sizes
from ssl_vision.augment.resample import Blur, Padding, Taps, crop_planes, gaussian_kernel, unit_taps

ColourOp = Callable[[Tensor, Tensor], Tensor]


class MakeBoxes(Protocol):
    """Draws the boxes of random crops."""

    def __call__(self, height: Sizes, width: Sizes, *, seed: int, ids: Tensor) -> Sizes: ...


class MakeTaps(Protocol):
    """Says which rows make each row of a resized crop."""

    def __call__(self, length: Tensor, *, out: int, flip: Tensor | None = None) -> Taps: ...


@dataclass(frozen=True)
class Operations:
    """What `SimCLRAugment` needs to know about a library; colour operations work in place on planes [3, n, P]."""

    boxes: MakeBoxes
    taps: MakeTaps
    contrast: ColourOp
    saturation: ColourOp
    padding: Padding


NOTHING = 4  # in place of an operation, in images without jitter


class Stage(NamedTuple):
    """One re-arrangement, and what to do then."""

    move: NDArray[np.int64] | None
    """Which present slot each new slot takes its image from; None when all stay."""
    slot: NDArray[np.int64]
    """Which image of the block then lies in each slot."""
    runs: list[tuple[int, slice]]
    """Operation and slots of each run of images."""


def arrange(draws: Draws, block: slice) -> list[Stage]:
    """Four stages of jitter, and a fifth with no operation in which every image is back in its own slot."""
    stages = []
    order = np.where(draws.jitter[block], draws.order[block].T, NOTHING)
    home = slot = np.arange(order.shape[1])
    for operation in order:
        move = np.argsort(operation[slot], kind="stable")
        slot = slot[move]
        ends = np.bincount(operation, minlength=NOTHING).cumsum()[:NOTHING].tolist()
        runs = [(op, slice(a, b)) for op, (a, b) in enumerate(zip([0, *ends], ends, strict=False)) if b > a]
        stages.append(Stage(move=_unless_idle(move, home), slot=slot, runs=runs))
    stages.append(Stage(move=_unless_idle(np.argsort(slot), home), slot=home, runs=[]))
    return stages


def _unless_idle(move: NDArray[np.int64], home: NDArray[np.int64]) -> NDArray[np.int64] | None:
    return None if bool((move == home).all()) else move


SATURATION, HUE = 2, 3  # among the colour operations
_BLOCK_VALUES = 1 << 20  # float32 values of a block on the CPU: 4 MiB
_LARGE_VIEW = 1 << 16  # values of a view that needs no company to keep the processor busy


def render(
    images: Tensor | Sequence[Tensor],
    draws: Draws,
    *,
    size: int,
    ops: Operations,
    additive: bool = False,
    radius: int = 0,
) -> Tensor:
    """The views that `draws` describe.

    Args:
        images: uint8 or float images [N, C, H, W], or N images [C, H_i, W_i]. Saturation, hue and grey are operations
            on red, green and blue, and leave images of other than 3 channels as they are.
        draws: what happens to each.
        size: pixels a side of the views.
        ops: whose operations.
        additive: whether brightness is added.
        radius: taps of the blur on either side.

    Returns:
        float32 [N, C, size, size] in [0, 1].
    """
    n = len(images)
    device = images[0].device if n else torch.device("cpu")
    channels = images[0].shape[0] if n else 3
    out = torch.empty(n, channels, size, size, device=device)
    with torch.inference_mode():  # costs less per operation than no_grad; `out` stays an ordinary tensor
        work = _Work(images, draws, size=size, ops=ops, additive=additive, radius=radius, device=device)
        if device.type != "cpu":
            work.block(slice(0, n), out)
        elif channels * size**2 >= _LARGE_VIEW:
            for i in range(n):
                work.single(i, out[i : i + 1])
        else:
            most = max(1, _BLOCK_VALUES // (channels * size**2))
            for start in range(0, n, most):
                work.block(slice(start, min(start + most, n)), out[start : start + most])
    return out


def _send(numbers: Tensor | NDArray[Any], device: torch.device) -> Tensor:
    """A few numbers to the device, which the host need not wait for."""
    return torch.as_tensor(numbers).to(device, non_blocking=True)


class _Work:
    """What is prepared once for a batch, and the two ways to make its views."""

    def __init__(
        self,
        images: Tensor | Sequence[Tensor],
        draws: Draws,
        *,
        size: int,
        ops: Operations,
        additive: bool,
        radius: int,
        device: torch.device,
    ) -> None:
        self.images, self.draws, self.device = images, draws, device
        self.colour: tuple[ColourOp, ...] = (
            shift_ if additive else scale_,
            ops.contrast,
            ops.saturation,
            hue_sixths_,
        )
        amounts = torch.from_numpy(draws.amounts)[..., None]
        self.amounts = [_send(a, device) for a in (*amounts[:3], hue_shifts(amounts[3]))]  # [N, 1], hue [3, N, 1]
        n = len(draws.boxes)
        length = _send(draws.boxes[:, 2:].T.reshape(2 * n), device)  # heights, then widths
        flip = _send(np.concatenate((np.zeros_like(draws.flip), draws.flip)), device)
        taps = ops.taps(length, out=size, flip=flip)
        self.taps_y, self.taps_x = unit_taps(taps.pick(slice(0, n)), images), taps.pick(slice(n, None))
        self.blur: Blur | None = None
        if draws.blur.any():
            self.blur = Blur(size, size, radius=radius, padding=ops.padding, device=device)
            self.kernel = _send(gaussian_kernel(draws.sigma, radius=radius), device)

    def single(self, i: int, out: Tensor) -> None:
        """Make view i."""
        draws = self.draws
        here = slice(i, i + 1)
        planes = crop_planes(self.images[here], draws.boxes[here], self.taps_y.pick(here), self.taps_x.pick(here))
        x = planes.view(len(planes), 1, -1)
        if draws.jitter[i]:
            for number, op in enumerate(draws.order[i].tolist()):
                self._colour(op, x, self.amounts[op].narrow(-2, i, 1), first=number == 0)
        if draws.gray[i] and len(x) == 3:
            grayscale_(x)
        x.clamp_(0, 1)
        if draws.blur[i] and self.blur is not None:
            torch.clamp(self.blur(planes, self.kernel[here]), 0, 1, out=out)
        else:
            out.copy_(planes.permute(1, 0, 3, 2))

    def block(self, here: slice, out: Tensor) -> None:
        """Make views `here`."""
        draws, device = self.draws, self.device
        amounts = [amount[..., here, :] for amount in self.amounts]
        *colours, last = arrange(draws, here)
        planes = self._crop(here, colours[0])
        for number, stage in enumerate(colours):
            if number and stage.move is not None:
                planes = planes.index_select(1, _send(stage.move, device))
            x = planes.view(len(planes), len(out), -1)
            slot = _send(stage.slot, device)
            for op, run in stage.runs:
                self._colour(op, x[:, run], amounts[op].index_select(-2, slot[run]), first=number == 0)
        if last.move is not None:
            planes = planes.index_select(1, _send(last.move, device))
        gray, blurred = (_send(flags[here].nonzero()[0], device) for flags in (draws.gray, draws.blur))
        if len(gray) and len(planes) == 3:
            planes.index_copy_(1, gray, grayscale_(planes.index_select(1, gray)))
        planes.clamp_(0, 1)
        out.copy_(planes.permute(1, 0, 3, 2))
        if len(blurred) and self.blur is not None:
            out.index_copy_(0, blurred, self.blur(planes, self.kernel[here][blurred], which=blurred).clamp_(0, 1))

    def _colour(self, op: int, x: Tensor, amount: Tensor, *, first: bool) -> None:
        """One operation and the clip after it. Turning the hue only leaves [0, 1] where the crop had left it."""
        if len(x) == 3 or op < SATURATION:
            self.colour[op](x, amount)
        if first or op != HUE:
            x.clamp_(0, 1)

    def _crop(self, here: slice, first: Stage) -> Tensor:
        """Crops of the images `here`, in the order of their first stage."""
        images, boxes = self.images[here], self.draws.boxes[here]
        taps_y, taps_x = self.taps_y.pick(here), self.taps_x.pick(here)
        if first.move is None:
            return crop_planes(images, boxes, taps_y, taps_x)
        slot = _send(first.slot, self.device)
        return crop_planes(images, boxes[first.slot], taps_y.pick(slot), taps_x.pick(slot), which=first.slot)
