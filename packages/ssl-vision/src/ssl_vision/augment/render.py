"""Render the views that were drawn: crops, blur and colours of a batch, with separate parameters for every image.

Large views are rendered one by one. Small ones are rendered in blocks that fit into the processor's cache while the
operations are applied one after another; on a GPU the block is the whole batch. The four colour operations have a
different order in every image. Before each of the four stages, a block is therefore rearranged, at the cost of a copy,
so that images with the same operation are adjacent and each operation runs once, in place, on its run of images. The
result for an image does not depend on the other images of its block.

Colour operations work on planes: [3, n, P] float32, channel first, P pixels in any order, one parameter per image. They
avoid comparisons and selections, because `where` costs as much as twenty additions, and use correctly rounded
arithmetic only, so that the result for a pixel does not depend on its place in memory, its batch or its thread. They do
not clip.

Resampling is separable (bicubic, antialiased, Gaussian). Every output row is a weighted sum of K input rows, its taps,
computed by the fused kernel `embedding_bag`. It sums the taps of a row in order for any batch and any number of
threads, so that the result for an image is bit-identical in any batch. The horizontal direction is the vertical one of
the transposed image: a crop yields *transposed planes* [3, n, W, H], which does not matter to colour operations, and
they are transposed back when the result is written.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, reduce
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from contrastive_core.synchronization import free_to_read
from ssl_vision.augment.draws import Draws, Sizes


def check_images(images: Tensor, *, channels: int | None = 3) -> None:
    """Check that images are uint8 or float [N, 3, H, W], or with any number of channels if `channels` is None."""
    if not isinstance(images, Tensor):
        raise TypeError(f"images must be a tensor [N, 3, H, W], got {type(images).__name__}")
    if images.ndim != 4 or (channels is not None and images.shape[1] != channels) or 0 in images.shape[1:]:
        raise ValueError(
            f"images must be [N, 3, H, W] (RGB), got {tuple(images.shape)}: "
            "add the batch dimension to a single image, repeat the channel of grey images"
        )
    if images.dtype != torch.uint8 and not images.dtype.is_floating_point:
        raise TypeError(f"images must be uint8 (0..255) or floating point (0..1), got {images.dtype}")


def check_batch(images: Tensor | Sequence[Tensor], ids: Tensor | None = None) -> None:
    """Check a batch of images, that float images are in [0, 1], and that there is one id per image.

    Only the values of the first image are read: the usual mistakes, the range 0..255 or normalised values, show in any
    image.
    """
    if isinstance(images, Tensor):
        check_images(images, channels=None)
    else:
        for image in images:
            check_images(image[None] if isinstance(image, Tensor) else image, channels=None)
        if len({(image.dtype, image.device, len(image)) for image in images}) > 1:
            raise ValueError("the images of a list must have one dtype, one number of channels and one device")
    if ids is not None and (not isinstance(ids, Tensor) or ids.dtype != torch.int64 or ids.shape != (len(images),)):
        kind = f"{ids.dtype} {tuple(ids.shape)}" if isinstance(ids, Tensor) else type(ids).__name__
        raise ValueError(f"ids must be an int64 tensor [{len(images)}], one number per image, got {kind}")
    if len(images) and images[0].dtype.is_floating_point:
        low, high = images[0].aminmax()
        if not (low >= -0.01 and high <= 1.01):
            raise ValueError(
                f"float images must have values in [0, 1], got {float(low):.3g}..{float(high):.3g}: "
                "divide 0..255 by 255 (or pass uint8), and normalise by mean and deviation after augmenting"
            )


def check_boxes(boxes: Tensor, images: Tensor) -> NDArray[np.int64]:
    """Copy the boxes to the host, and check that they are int64 [N, 4] and lie within their images."""
    n, _, h, w = images.shape
    if boxes.dtype != torch.int64 or boxes.shape != (n, 4):
        raise ValueError(f"boxes must be int64 [{n}, 4], got {boxes.dtype} {tuple(boxes.shape)}")
    cuts: NDArray[np.int64] = boxes.cpu().numpy()
    top, left, height, width = cuts.T
    bad = (cuts[:, :2] < 0).any(1) | (cuts[:, 2:] < 1).any(1) | (top + height > h) | (left + width > w)
    if bad.any():
        first = int(bad.argmax())
        raise ValueError(
            f"box {first} is empty or leaves its {h} x {w} image: "
            f"(top, left, height, width) = {tuple(cuts[first].tolist())}"
        )
    return cuts


def per_image(name: str, value: float | Tensor, images: Tensor) -> Tensor:
    """Expand a parameter to float32 [N, 1]."""
    x = torch.as_tensor(value, dtype=torch.float32, device=images.device)
    if x.ndim > 1 or (x.ndim == 1 and len(x) != len(images)):
        raise ValueError(f"{name} must be a number or a tensor [{len(images)}], one per image, got {tuple(x.shape)}")
    return x.expand(len(images))[:, None]


def on_planes(op: Callable[..., Tensor], images: Tensor, **parameter: float | Tensor) -> Tensor:
    """Apply an in-place operation on planes to a float32 copy of images."""
    check_images(images)
    amounts = [per_image(name, value, images) for name, value in parameter.items()]
    n, c, h, w = images.shape
    x = _to_unit(images.transpose(0, 1), images.dtype)
    op(x.view(c, n, h * w), *amounts)
    return x.transpose(0, 1).contiguous()


def transposed_planes(images: Tensor) -> Tensor:
    """Return a float32 copy [3, N, W, H]."""
    return _to_unit(images.permute(1, 0, 3, 2), images.dtype)


def _to_unit(x: Tensor, dtype: torch.dtype) -> Tensor:
    x = x.detach().to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    return x.mul_(1 / 255) if dtype == torch.uint8 else x


def sizes(images: Tensor | Sequence[Tensor]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the heights and widths of the images, [N] each."""
    if isinstance(images, Tensor):
        n, _, h, w = images.shape
        return np.full(n, h), np.full(n, w)
    height, width = np.array([image.shape[1:] for image in images], np.int64).reshape(-1, 2).T
    return height, width


def check_size(size: int) -> None:
    """Check that a size is a positive number of pixels."""
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"size must be a number of pixels per side, at least 1, got {size!r}")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Check that a value is one of the choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


GREY = (0.2989, 0.587, 0.114)
_TINY = torch.finfo(torch.float32).tiny
_CENTRES = (0.0, 2.0, 4.0)  # hues of red, green and blue, in sixths of a turn


def scale_(x: Tensor, factor: Tensor) -> Tensor:
    """Multiply by factor [n, 1]: brightness in torchvision, and in SimCLR since the second paper."""
    return x.mul_(factor)


def shift_(x: Tensor, delta: Tensor) -> Tensor:
    """Add delta [n, 1]: brightness in the first SimCLR paper."""
    return x.add_(delta)


def channel_contrast_(x: Tensor, factor: Tensor) -> Tensor:
    """Scale the distance to the mean of each channel by factor [n, 1]: TensorFlow's contrast."""
    return _contrast_(x, x.mean(-1, keepdim=True), factor)


def grey_contrast_(x: Tensor, factor: Tensor) -> Tensor:
    """Scale the distance to the mean of the grey image by factor [n, 1]: torchvision's contrast."""
    # The mean of the grey image is the grey of the means. The mean of a single row would be split over the threads, so
    # that its last bits depend on their number.
    means = x.mean(-1, keepdim=True)
    if len(x) != 3:  # without red, green and blue
        return _contrast_(x, means.mean(0), factor)
    red, green, blue = means.unbind(0)
    return _contrast_(x, red * GREY[0] + green * GREY[1] + blue * GREY[2], factor)


def _contrast_(x: Tensor, mean: Tensor, factor: Tensor) -> Tensor:
    return x.mul_(factor).add_(mean.mul_(1 - factor))


def hsv_saturation_(x: Tensor, factor: Tensor) -> Tensor:
    """Multiply the S of HSV by factor [n, 1] and clip it to [0, 1]: TensorFlow's saturation.

    With V the largest and d the range of a pixel's channels, S = d / V, and scaling S by k takes a channel c to
    V + (c - V) k. The clip, k S <= 1, is k <= V / d. Where the bicubic crop made V negative, TensorFlow uses S = 0;
    here the channels stay negative too, and clipping makes both black.
    """
    value = x.amax(0)
    k = value - x.amin(0)
    torch.div(value, k.clamp_min_(_TINY), out=k)
    torch.minimum(k, factor, out=k)
    return x.sub_(value).mul_(k).add_(value)


def grey_saturation_(x: Tensor, factor: Tensor) -> Tensor:
    """Scale the distance to the grey image by factor [n, 1]: torchvision's saturation."""
    grey = _grey(x)
    return x.mul_(factor).add_(grey.mul_(1 - factor))


def hue_(x: Tensor, delta: Tensor) -> Tensor:
    """Turn the H of HSV by delta [n, 1] turns: hue of both libraries."""
    return hue_sixths_(x, hue_shifts(delta))


def hue_shifts(delta: Tensor) -> Tensor:
    """Return the distance of hue delta [n, 1] from each channel: [3, n, 1] sixths of a turn in [-3, 3)."""
    centres = torch.tensor(_CENTRES, dtype=torch.float32, device=delta.device)[:, None, None]
    return torch.remainder(6 * delta - centres + 3, 6) - 3


def hue_sixths_(x: Tensor, shifts: Tensor) -> Tensor:
    """Turn the hue by `hue_shifts(delta)`.

    Measure hue in sixths of a turn from red. With a the channels scaled to [0, 1] within the pixel, its distance from
    red is 1 - a_R + a_G + a_B, on the side of green when G > B. A channel whose own hue is at distance y from the new
    hue is then clip(| |y| - 3 | - 1, 0, 1) of the pixel's range above its lowest channel, for y within a turn either
    way.
    """
    low = x.amin(0)
    spread = x.sub_(low).amax(0)
    red, green, blue = x.unbind(0)
    hue = torch.sub(spread, red).add_(green).add_(blue)
    hue.div_(torch.clamp_min(spread, _TINY, out=red))
    torch.copysign(hue, green.sub_(blue), out=hue)
    torch.add(hue, shifts, out=x)
    # clip(w, 1, 2) * spread + (low - spread) is (clip(w, 1, 2) - 1) * spread + low with one pass less.
    return x.abs_().sub_(3).abs_().clamp_(1, 2).mul_(spread).add_(low.sub_(spread))


def grayscale_(x: Tensor) -> Tensor:
    """0.2989 R + 0.587 G + 0.114 B in every channel: grey of both libraries."""
    return x.copy_(_grey(x).expand_as(x))


def _grey(x: Tensor) -> Tensor:
    red, green, blue = x.unbind(0)
    grey = torch.mul(red, GREY[0])
    rest = torch.mul(green, GREY[1])
    grey.add_(rest)
    return grey.add_(torch.mul(blue, GREY[2], out=rest))


Padding = Literal["zero", "reflect"]

_KEYS_STEPS = 1024


class Taps(NamedTuple):
    """Input rows of each output row: `row` int64 and `weight` float32, both [N, out, K]."""

    row: Tensor
    weight: Tensor

    def pick(self, which: Tensor | slice) -> Taps:
        """Return the taps of some of the images."""
        return Taps(self.row[which], self.weight[which])


def keys_taps(length: Tensor, *, out: int, flip: Tensor | None = None, longest: int | None = None) -> Taps:
    """Compute bicubic taps as in `tf.image.resize` (Keys, a = -1/2, half-pixel centres, no antialias) along one axis.

    Output position i reads row (i + 1/2) * length / out - 1/2 of the crop. As in TensorFlow, the four weights come from
    a table of 1024 steps, taps outside the crop have weight 0, and the others are normalised to sum 1.

    Args:
        length: Number of rows of each crop, int64 [N].
        out: Number of output rows.
        flip: Crops to mirror along this axis, bool [N].
        longest: As in `antialias_taps`; not needed.
    """
    source = output_places(out, flip, device=length.device).add(0.5) * (length.to(torch.float32) / out)[:, None] - 0.5
    left = source.floor()
    step = source.sub_(left).mul_(_KEYS_STEPS).round_().long()
    weight = _keys_table().to(length.device, non_blocking=True).index_select(0, step.view(-1)).view(*step.shape, 4)
    row = left.long()[..., None] + torch.arange(-1, 3, device=length.device)
    index = row.clamp_min(0).minimum((length - 1)[:, None, None])
    weight.mul_(index == row)
    weight.div_(_total(weight))
    return Taps(index, weight)


def output_places(out: int, flip: Tensor | None, *, device: torch.device) -> Tensor:
    """Return output positions [1 or N, out], counted from the other end in flipped images."""
    position = torch.arange(out, dtype=torch.float32, device=device)[None]
    return position if flip is None else (position - (out - 1) * flip[:, None]).abs_()


@cache
def _keys_table() -> Tensor:
    """Tabulate Keys' cubic, a = -1/2, at distances 1 + t, t, 1 - t, 2 - t for t = 0, 1/1024, ..., 1 [1025, 4]."""
    near = torch.arange(_KEYS_STEPS + 1, dtype=torch.float32) / _KEYS_STEPS
    return _keys_cubic(torch.stack((near + 1, near, 1 - near, 2 - near), -1))


def _total(weight: Tensor) -> Tensor:
    """Sum over the taps [N, out, 1], one after the other.

    Trailing zeros, of which a batch with a larger image has more, then do not change any bit; in the order chosen by
    `sum` they could.
    """
    return reduce(torch.add, weight.unbind(-1))[..., None]


def antialias_taps(
    length: Tensor, *, out: int, flip: Tensor | None = None, cubic: bool = False, longest: int | None = None
) -> Taps:
    """Compute taps of PIL's and torchvision's antialiased resize along one axis: a triangle (or Keys' cubic, a = -1/2).

    The filter is stretched by length / out if the image becomes smaller. Arguments are those of `keys_taps`; K is the
    largest number of taps in the batch, and unused taps have weight 0. On a GPU, finding it would make the host wait:
    with `longest`, the largest length, K is an upper bound there.
    """
    scale = (length.to(torch.float32) / out)[:, None]
    stretch = scale.clamp_min(1)
    support = stretch * (2.0 if cubic else 1.0)
    centre = (output_places(out, flip, device=length.device) + 0.5) * scale
    low = (centre - support + 0.5).floor_().clamp_min_(0)
    high = torch.minimum((centre + support + 0.5).floor_(), length[:, None])
    if longest is not None and not free_to_read(length):
        most = math.ceil(2 * max(1.0, longest / out) * (2 if cubic else 1)) + 1
    else:
        most = max(1, int((high - low).max())) if len(length) else 1
    offset = torch.arange(most, device=length.device)
    row = low[..., None] + offset
    distance = ((row - centre[..., None] + 0.5) / stretch[..., None]).abs_()
    weight = _keys_cubic(distance) if cubic else (1 - distance).clamp_min_(0)
    weight.mul_(row < high[..., None])
    weight.div_(_total(weight))
    index = torch.minimum(row, high[..., None] - 1).long()
    return Taps(index, weight)


def _keys_cubic(d: Tensor, a: float = -0.5) -> Tensor:
    """Evaluate Keys' cubic at distances d >= 0."""
    inner = ((a + 2) * d - (a + 3)) * d * d + 1
    outer = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return torch.where(d <= 1, inner, outer * (d < 2))


def gaussian_kernel(sigma: NDArray[np.float32], *, radius: int) -> Tensor:
    """Compute exp(-k^2 / (2 sigma^2)), |k| <= radius, normalised to sum 1: sigma [N] in pixels -> [N, 1, taps]."""
    offset = np.arange(-radius, radius + 1, dtype=np.float64)
    kernel = np.exp(-(offset**2) / (2 * sigma[:, None].astype(np.float64) ** 2))
    return torch.from_numpy((kernel / kernel.sum(1, keepdims=True)).astype(np.float32)[:, None])


def gaussian_rows(length: int, *, radius: int, padding: Padding, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the rows of a blur's taps, int64 [length, taps], and 1 or 0 for their use, float32.

    Rows outside the image are zeros (`padding="zero"`) or mirrored rows without a repeated border row
    (`padding="reflect"`).
    """
    row = torch.arange(length, device=device)[:, None] + torch.arange(-radius, radius + 1, device=device)
    if padding == "zero":
        nearest = row.clamp(0, length - 1)
        return nearest, (nearest == row).float()
    if radius >= length:
        raise ValueError(
            f"a kernel of {2 * radius + 1} taps needs images of more than {radius} pixels a side to reflect, "
            f"got {length}: take a smaller kernel"
        )
    mirrored = (length - 1) - ((length - 1) - row.abs()).abs()
    return mirrored, torch.ones(length, 1, dtype=torch.float32, device=device)


_SMALL_IMAGE = 1 << 14  # pixels


def weighted_rows(table: Tensor, row: Tensor, weight: Tensor) -> Tensor:
    """Compute sums of weighted rows of `table` [R, D] (contiguous float32): row, weight [..., K] -> [..., D]."""
    bags = F.embedding_bag(
        row.reshape(-1),
        table,
        _starts(row.numel(), row.shape[-1], row.device),
        mode="sum",
        per_sample_weights=weight.reshape(-1),
    )
    return bags.view(*row.shape[:-1], table.shape[1])


@lru_cache(maxsize=16)
def _starts(count: int, step: int, device: torch.device) -> Tensor:
    """Return the start of each sum of `step` rows."""
    return torch.arange(0, count, step, device=device)


def crop_planes(
    images: Tensor | Sequence[Tensor],
    boxes: NDArray[np.int64],
    taps_y: Taps,
    taps_x: Taps,
    *,
    which: NDArray[np.int64] | None = None,
) -> Tensor:
    """Resample crops of uint8 or float images to transposed planes [3, n, out_x, out_y].

    Values keep their scale: `unit_taps` scales bytes to [0, 1].

    Args:
        images: Images [N, 3, H, W], or N images [3, H_i, W_i] of different sizes.
        boxes: Top, left, height and width of the crops, int64 [n, 4].
        taps_y: Rows of every view, counted within its crop.
        taps_x: Columns of every view.
        which: Image of every view, int64 [n]; by default all in order.
    """
    n, c = len(boxes), images[0].shape[0] if len(images) else 3
    source = np.arange(n) if which is None else which
    device = taps_x.row.device
    if isinstance(images, Tensor) and (device.type != "cpu" or images.shape[2] * images.shape[3] <= _SMALL_IMAGE):
        _, _, height, width = images.shape
        corner = torch.from_numpy(boxes[:, :2] + source[:, None] * [height, 0]).to(device, non_blocking=True)
        columns = _resample_rows(images, taps_y.row + corner[:, :1, None], taps_y.weight).flatten(0, 2)
        first = torch.arange(c * n, device=device).mul_(width).view(c, n) + corner[:, 1]
    else:
        # Large images: cutting first saves more than working on all images at once.
        parts = []
        for i, (top, left, height, width) in enumerate(boxes.tolist()):
            window = images[int(source[i])].narrow(1, top, height).narrow(2, left, width)[None]
            taps = taps_y if n == 1 else taps_y.pick(slice(i, i + 1))
            parts.append(_resample_rows(window, taps.row, taps.weight).flatten(0, 2))
        columns = torch.cat(parts) if n > 1 else parts[0]
        widths = boxes[:, 3]
        first = torch.from_numpy(np.arange(c)[:, None] * widths + c * (widths.cumsum() - widths)).to(device)
    return weighted_rows(columns, taps_x.row + first[..., None, None], taps_x.weight.expand(c, -1, -1, -1))


def unit_taps(taps: Taps, images: Tensor | Sequence[Tensor]) -> Taps:
    """Scale taps so that bytes 0..255 become [0, 1]."""
    is_bytes = len(images) > 0 and images[0].dtype == torch.uint8
    return Taps(taps.row, taps.weight * (1 / 255)) if is_bytes else taps


def _resample_rows(images: Tensor, row: Tensor, weight: Tensor) -> Tensor:
    """Resample the rows of a crop: [n, 3, H, W], rows counted over all images, to transposed planes [3, m, W, out]."""
    n, c, h, w = images.shape
    # A row of the table holds the three channels, padded to 16 values, because `embedding_bag` is compiled for every
    # row length. Rows a multiple of 128 values apart would compete for the same cache lines when they are transposed.
    width = -(-w // 16) * 16
    width += 16 if width % 128 == 0 else 0
    table = torch.empty(n, h, c, width, dtype=torch.float32, device=images.device)
    table.narrow(3, 0, w).copy_(images.permute(0, 2, 1, 3))  # the padding is never read
    rows = weighted_rows(table.view(n * h, c * width), row, weight)
    return rows.view(*row.shape[:2], c, width).narrow(3, 0, w).permute(2, 0, 3, 1).contiguous()


class Blur:
    """Gaussian blur of transposed planes of one size, with a kernel for each image."""

    def __init__(self, width: int, height: int, *, radius: int, padding: Padding, device: torch.device) -> None:
        self.across = gaussian_rows(width, radius=radius, padding=padding, device=device)
        self.down = self.across
        if height != width:
            self.down = gaussian_rows(height, radius=radius, padding=padding, device=device)

    def __call__(self, planes: Tensor, kernel: Tensor, *, which: Tensor | None = None) -> Tensor:
        """Blur images of planes [3, N, W, H] with their kernels [n, 1, taps]: across, then down.

        Args:
            planes: Transposed planes.
            kernel: Kernel of each image to blur.
            which: Images to blur, int64 [n]; by default all.

        Returns:
            Upright images [n, 3, H, W].
        """
        c, total, w, h = planes.shape
        n, device = len(kernel), planes.device
        row, inside = self.across
        first = torch.arange(c * total, device=device).mul_(w).view(c, total, 1, 1)
        first = first if which is None else first.index_select(1, which)
        x = weighted_rows(planes.view(-1, h), row + first, (kernel * inside).expand(c, -1, -1, -1))
        x = x.transpose(2, 3).contiguous()
        row, inside = self.down
        first = torch.arange(c * n, device=device).mul_(h).view(c, n, 1, 1).transpose(0, 1)
        return weighted_rows(x.view(-1, w), row + first, (kernel * inside)[:, None].expand(-1, c, -1, -1))


def blur_images(images: Tensor, sigma: float | Tensor, *, kernel_size: int, padding: Padding) -> Tensor:
    """Blur images [N, 3, H, W] with one sigma or one per image, over kernel_size pixels, rounded up to odd."""
    _, _, h, w = images.shape
    widths = per_image("sigma", sigma, images)[:, 0].cpu().numpy()
    if not (widths > 0).all():
        raise ValueError(f"sigma must be positive (in pixels), got {widths.min()}")
    if kernel_size < 1:
        raise ValueError(f"kernel_size must be at least 1, got {kernel_size}")
    radius = kernel_size // 2
    blur = Blur(w, h, radius=radius, padding=padding, device=images.device)
    return blur(transposed_planes(images), gaussian_kernel(widths, radius=radius).to(images.device))


def upright(planes: Tensor) -> Tensor:
    """Convert transposed planes [3, n, W, H] to images [n, 3, H, W]."""
    return planes.permute(1, 0, 3, 2).contiguous()


ColourOp = Callable[[Tensor, Tensor], Tensor]


class MakeBoxes(Protocol):
    """Function that draws the boxes of random crops."""

    def __call__(self, height: Sizes, width: Sizes, *, seed: int, ids: Tensor) -> Sizes: ...


class MakeTaps(Protocol):
    """Function that computes the input rows of each row of a resized crop."""

    def __call__(self, length: Tensor, *, out: int, flip: Tensor | None = None, longest: int | None = None) -> Taps: ...


@dataclass(frozen=True)
class Operations:
    """Operations of a library for `SimCLRAugment`; colour operations work in place on planes [3, n, P]."""

    boxes: MakeBoxes
    taps: MakeTaps
    contrast: ColourOp
    saturation: ColourOp
    padding: Padding


NOTHING = 4  # stands for no operation, in images without jitter


class Stage(NamedTuple):
    """One rearrangement of a block, and the operations after it."""

    move: NDArray[np.int64] | None
    """Current slot of the image for each new slot; None if all stay."""
    slot: NDArray[np.int64]
    """Image of the block in each slot afterwards."""
    runs: list[tuple[int, slice]]
    """Operation and slots of each run of images."""


def arrange(draws: Draws, block: slice) -> list[Stage]:
    """Plan four stages of jitter, and a fifth without operation that returns every image to its own slot."""
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


SATURATION, HUE = 2, 3  # numbers of colour operations
_BLOCK_VALUES = 1 << 20  # float32 values of a block on the CPU: 4 MiB
_LARGE_VIEW = 1 << 16  # values of a view that keeps the processor busy on its own


def render(
    images: Tensor | Sequence[Tensor],
    draws: Draws,
    *,
    size: int,
    ops: Operations,
    additive: bool = False,
    radius: int = 0,
) -> Tensor:
    """Render the views that `draws` describe.

    Args:
        images: uint8 or float images [N, C, H, W], or N images [C, H_i, W_i]. Saturation, hue and gray conversion
            apply to red, green and blue, and do not change images whose number of channels is not 3.
        draws: Random draws for each image.
        size: Side of the views in pixels.
        ops: Operations of a library.
        additive: Whether brightness is added.
        radius: Number of taps of the blur on either side.

    Returns:
        float32 [N, C, size, size] in [0, 1].
    """
    n = len(images)
    device = images[0].device if n else torch.device("cpu")
    channels = images[0].shape[0] if n else 3
    out = torch.empty(n, channels, size, size, dtype=torch.float32, device=device)
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
    """Copy a few numbers to the device without waiting."""
    return torch.as_tensor(numbers).to(device, non_blocking=True)


class _Work:
    """Values prepared once for a batch, and the two ways to make its views."""

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
        taps = ops.taps(length, out=size, flip=flip, longest=int(draws.boxes[:, 2:].max(initial=1)))
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
        """Apply one operation and clip. Changing the hue leaves [0, 1] only where the crop did before."""
        if len(x) == 3 or op < SATURATION:
            self.colour[op](x, amount)
        if first or op != HUE:
            x.clamp_(0, 1)

    def _crop(self, here: slice, first: Stage) -> Tensor:
        """Crop the images `here`, in the order of their first stage."""
        images, boxes = self.images[here], self.draws.boxes[here]
        taps_y, taps_x = self.taps_y.pick(here), self.taps_x.pick(here)
        if first.move is None:
            return crop_planes(images, boxes, taps_y, taps_x)
        slot = _send(first.slot, self.device)
        return crop_planes(images, boxes[first.slot], taps_y.pick(slot), taps_x.pick(slot), which=first.slot)
