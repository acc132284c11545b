"""Where a random resized crop cuts: the distributions of the TensorFlow op and of torchvision, for a batch at once.

Boxes are integer tensors [N, 4] = (top, left, height, width) on the CPU. They are drawn there even when the images are on a
GPU: it is a few numbers per image, and the same seed then cuts the same boxes on every device.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from contrastive_core.random import derive, uniform

AREA = (0.08, 1.0)
RATIO = (3 / 4, 4 / 3)
_ATTEMPTS_PER_ROUND = 10


def tensorflow_boxes(
    height: Tensor,
    width: Tensor,
    *,
    seed: int,
    ids: Tensor,
    area: tuple[float, float] = AREA,
    ratio: tuple[float, float] = RATIO,
    min_covered: float = 0.1,
) -> Tensor:
    """Boxes of `tf.image.sample_distorted_bounding_box` with the whole image as its object.

    An attempt draws the aspect ratio (width / height) uniformly, then the height uniformly among the whole numbers for which
    the area is in range, then the place. It counts when the crop covers at least `min_covered` of the image, which makes 0.1
    and not 0.08 the smallest area of SimCLR's crops. After 100 failed attempts the whole image is taken.

    Args:
        height: heights of the images in pixels, [N].
        width: widths of the images in pixels, [N].
        seed: seed of this view.
        ids: identities of the images, int64 [N]; row i is a function of (seed, ids[i], height[i], width[i]).
        area: smallest and largest area as fractions of the image.
        ratio: smallest and largest width / height.
        min_covered: fraction of the image that a crop must cover.

    Returns:
        int64 [N, 4]: top, left, height, width.
    """

    def attempt(u: Tensor, h: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        full = h * w
        smallest, largest = area[0] * full, area[1] * full
        aspect = ratio[0] + u[..., 0] * (ratio[1] - ratio[0])
        low = (smallest / aspect).sqrt().round()
        high = (largest / aspect).sqrt().round()
        # The largest height whose rounded width still fits into the image.
        high = torch.where((high * aspect).round() > w, ((w + 0.5 - 1e-7) / aspect).floor(), high)
        high = torch.where((high * aspect).round() > w, high - 1, high)
        high = torch.minimum(high, h)
        low = torch.minimum(low, high)
        crop_h = low + (u[..., 1] * (high - low + 1)).floor()
        crop_w = (crop_h * aspect).round()
        # Rounding may have left the range by a pixel: the op tries one row more, then one row less.
        crop_h = torch.where(crop_h * crop_w < smallest, crop_h + 1, crop_h)
        crop_w = (crop_h * aspect).round()
        crop_h = torch.where(crop_h * crop_w > largest, crop_h - 1, crop_h)
        crop_w = (crop_h * aspect).round()
        size = crop_h * crop_w
        good = (size >= smallest) & (size <= largest) & (crop_w <= w) & (crop_h <= h) & (crop_w > 0) & (crop_h > 0)
        good &= size >= min_covered * full
        # As in the op, the last possible place is never drawn: Uniform(n) is below n = H - h.
        top = (u[..., 2] * (h - crop_h).clamp_min(0)).floor()
        left = (u[..., 3] * (w - crop_w).clamp_min(0)).floor()
        return torch.stack((top, left, crop_h, crop_w), -1), good

    whole = torch.stack((torch.zeros_like(height), torch.zeros_like(width), height, width), -1)
    return _first_good(attempt, height, width, seed=seed, ids=ids, rounds=10, otherwise=whole)


def torchvision_boxes(
    height: Tensor,
    width: Tensor,
    *,
    seed: int,
    ids: Tensor,
    area: tuple[float, float] = AREA,
    ratio: tuple[float, float] = RATIO,
) -> Tensor:
    """Boxes of `torchvision.transforms.v2.RandomResizedCrop`: area uniform, log of the aspect ratio uniform, 10 attempts.

    When no attempt fits into the image, the largest central crop with an aspect ratio in range is taken. Arguments and result
    as in `tensorflow_boxes`.
    """
    log_low, log_high = torch.tensor(ratio, dtype=torch.float64).log().tolist()

    def attempt(u: Tensor, h: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        target = h * w * (area[0] + u[..., 0] * (area[1] - area[0]))
        aspect = (log_low + u[..., 1] * (log_high - log_low)).exp()
        crop_w = (target * aspect).sqrt().round()
        crop_h = (target / aspect).sqrt().round()
        good = (crop_w > 0) & (crop_w <= w) & (crop_h > 0) & (crop_h <= h)
        top = (u[..., 2] * (h - crop_h + 1).clamp_min(0)).floor()
        left = (u[..., 3] * (w - crop_w + 1).clamp_min(0)).floor()
        return torch.stack((top, left, crop_h, crop_w), -1), good

    h, w = height.double(), width.double()
    crop_h = torch.where(w / h < ratio[0], (w / ratio[0]).round(), h)
    crop_w = torch.where(w / h > ratio[1], (h * ratio[1]).round(), w)
    central = torch.stack(((h - crop_h).div(2).floor(), (w - crop_w).div(2).floor(), crop_h, crop_w), -1).long()
    return _first_good(attempt, height, width, seed=seed, ids=ids, rounds=1, otherwise=central)


def _first_good(
    attempt: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]],
    height: Tensor,
    width: Tensor,
    *,
    seed: int,
    ids: Tensor,
    rounds: int,
    otherwise: Tensor,
) -> Tensor:
    """The first accepted of `rounds` x 10 attempts per image; nearly always the first round settles every image."""
    boxes = otherwise.clone()
    open_rows = torch.arange(len(ids))
    for number in range(rounds):
        draws = uniform(derive(seed, "crop", number), ids[open_rows], 4 * _ATTEMPTS_PER_ROUND)
        draws = draws.view(len(open_rows), _ATTEMPTS_PER_ROUND, 4).double()
        size = (height[open_rows, None].double(), width[open_rows, None].double())
        box, good = attempt(draws, *size)
        found, first = good.max(dim=1)
        boxes[open_rows[found]] = box[found, first[found]].long()
        open_rows = open_rows[~found]
        if not len(open_rows):
            break
    return boxes
