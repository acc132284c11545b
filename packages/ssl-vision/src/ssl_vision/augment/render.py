"""Making the views that were drawn, block by block.

A block is as many images as fit into the processor's cache while one operation after the other works on them; on a
GPU it is the whole batch. Nothing that happens to an image depends on the others of its block.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ssl_vision.augment import planes as on
from ssl_vision.augment.arrange import BLUR, GRAY, GRAY_BLUR, NOTHING, Stage, arrange, stage_keys
from ssl_vision.augment.draws import Draws
from ssl_vision.augment.operations import ColourOp, MakeTaps, Operations
from ssl_vision.augment.resample import Blur, crop_planes
from ssl_vision.augment.taps import Taps

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
        images: uint8 or float images [N, 3, H, W], or N images [3, H_i, W_i].
        draws: what happens to each.
        size: pixels a side of the views.
        ops: whose operations.
        additive: whether brightness is added.
        radius: taps of the blur on either side.

    Returns:
        float32 [N, 3, size, size] in [0, 1].
    """
    device = images[0].device if len(images) else draws.boxes.device
    n = len(images)
    out = torch.empty(n, 3, size, size, device=device)
    colour = (on.shift_ if additive else on.scale_, ops.contrast, ops.saturation, on.hue_sixths_)
    amounts = [amount.to(device) for amount in (*draws.amounts[:3, :, None], on.hue_shifts(draws.amounts[3, :, None]))]
    keys = stage_keys(draws)
    sigma = draws.sigma.to(device)
    blur = Blur(size, size, radius=radius, padding=ops.padding, device=device) if bool(draws.blur.any()) else None
    taps_y, taps_x = _crop_taps(ops.taps, draws, size, device)
    on_cpu = device.type == "cpu"
    most = max(1, _BLOCK_VALUES // (3 * size**2)) if on_cpu else max(1, n)
    for start in range(0, n, most):
        here = slice(start, min(start + most, n))
        stages = arrange(keys[:, here], large=on_cpu and 3 * size**2 >= _LARGE_VIEW, device=device)
        planes = _crop(images[here], draws.boxes[here], taps_y.pick(here), taps_x.pick(here), first=stages[0])
        for number, stage in enumerate(stages[:4]):
            planes = _colour(planes, stage, [a[..., here, :] for a in amounts], colour, placed=number == 0)
        _finish(planes, stages[4], sigma[here], blur, out[here])
    return out


def _crop_taps(make: MakeTaps, draws: Draws, size: int, device: torch.device) -> tuple[Taps, Taps]:
    """The rows and the columns of every view, counted within its crop."""
    n = len(draws.boxes)
    length = draws.boxes[:, 2:].t().reshape(2 * n).to(device)  # heights, then widths
    flip = torch.cat((torch.zeros_like(draws.flip), draws.flip)).to(device)
    both = make(length, out=size, flip=flip)
    return both.pick(slice(0, n)), both.pick(slice(n, None))


def _crop(images: Tensor | Sequence[Tensor], boxes: Tensor, taps_y: Taps, taps_x: Taps, *, first: Stage) -> Tensor:
    """Crops of the images of a block, in the order of its first stage."""
    if first.move is None:
        return crop_planes(images, boxes, taps_y, taps_x)
    slot = first.slot
    images = images.index_select(0, slot) if isinstance(images, Tensor) else [images[i] for i in slot.tolist()]
    return crop_planes(images, boxes[slot.cpu()], taps_y.pick(slot), taps_x.pick(slot))


def _colour(
    planes: Tensor, stage: Stage, amounts: list[Tensor], colour: tuple[ColourOp, ...], *, placed: bool
) -> Tensor:
    """One colour operation, and the clip after it, on every image that is jittered."""
    if stage.move is not None and not placed:
        planes = planes.index_select(1, stage.move)
    x = planes.view(3, planes.shape[1], -1)
    for key, run in stage.runs:
        if key != NOTHING:
            amount = amounts[key]
            amount = amount[..., run, :] if stage.home else amount.index_select(-2, stage.slot[run])
            colour[key](x[:, run], amount).clamp_(0, 1)
    return planes


def _finish(planes: Tensor, stage: Stage, sigma: Tensor, blur: Blur | None, out: Tensor) -> None:
    """Take the colour away, blur, turn upright, and put the images where they belong."""
    if stage.move is not None:
        planes = planes.index_select(1, stage.move)
    result = out if stage.home else torch.empty_like(out)
    for key, run in stage.runs:
        if key in (GRAY, GRAY_BLUR):
            on.grayscale_(planes[:, run].flatten(2))
        planes[:, run].clamp_(0, 1)
        if key in (BLUR, GRAY_BLUR) and blur is not None:
            result[run] = blur(planes, sigma[run] if stage.home else sigma[stage.slot[run]], which=run).clamp_(0, 1)
        else:
            result[run].copy_(planes[:, run].permute(1, 0, 3, 2))
    if result is not out:
        torch.index_select(result, 0, stage.slot.argsort(), out=out)
