"""Where a random resized crop cuts: the distributions of the TensorFlow op and of torchvision, for a batch at once.

Boxes are int64 arrays [N, 4] = (top, left, height, width).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from contrastive_core.rng import derive, uniform

AREA = (0.08, 1.0)
RATIO = (3 / 4, 4 / 3)

Array = NDArray[np.float64]
Sizes = NDArray[np.int64]
_Attempt = Callable[[Array, Array, Array], tuple[tuple[Array, Array, Array, Array], NDArray[np.bool_]]]


def tensorflow_boxes(
    height: Sizes,
    width: Sizes,
    *,
    seed: int,
    ids: Tensor,
    area: tuple[float, float] = AREA,
    ratio: tuple[float, float] = RATIO,
    min_covered: float = 0.1,
) -> Sizes:
    """Boxes of `tf.image.sample_distorted_bounding_box` with the whole image as its object.

    An attempt draws the aspect ratio (width / height) uniformly, then the height uniformly among the whole numbers
    for which the area is in range, then the place. It counts when the crop covers at least `min_covered` of the
    image, which makes 0.1 and not 0.08 the smallest area of SimCLR's crops. After 100 failed attempts the whole image
    is taken.

    Args:
        height: heights of the images in pixels, int64 [N].
        width: widths of the images in pixels, int64 [N].
        seed: seed of this view.
        ids: identities of the images, int64 [N]; row i is a function of (seed, ids[i], height[i], width[i]).
        area: smallest and largest area as fractions of the image.
        ratio: smallest and largest width / height.
        min_covered: fraction of the image that a crop must cover.

    Returns:
        int64 [N, 4]: top, left, height, width.
    """

    def attempt(u: Array, h: Array, w: Array) -> tuple[tuple[Array, Array, Array, Array], NDArray[np.bool_]]:
        full = h * w
        smallest, largest = area[0] * full, area[1] * full
        aspect = ratio[0] + u[0] * (ratio[1] - ratio[0])
        low = np.rint(np.sqrt(smallest / aspect))
        high = np.rint(np.sqrt(largest / aspect))
        # The largest height whose rounded width still fits into the image.
        high = np.where(np.rint(high * aspect) > w, np.floor((w + 0.5 - 1e-7) / aspect), high)
        high -= np.rint(high * aspect) > w
        high = np.minimum(high, h)
        low = np.minimum(low, high)
        crop_h = low + np.floor(u[1] * (high - low + 1))
        # Rounding may have left the range by a pixel: the op tries one row more, then one row less.
        crop_h += crop_h * np.rint(crop_h * aspect) < smallest
        crop_h -= crop_h * np.rint(crop_h * aspect) > largest
        crop_w = np.rint(crop_h * aspect)
        size = crop_h * crop_w
        good = (size >= smallest) & (size <= largest) & (crop_w <= w) & (crop_h <= h) & (size > 0)
        good &= size >= min_covered * full
        # As in the op, the last possible place is never drawn: Uniform(n) is below n = H - h.
        return (np.floor(u[2] * (h - crop_h)), np.floor(u[3] * (w - crop_w)), crop_h, crop_w), good

    nowhere = np.zeros_like(height)
    whole = np.stack((nowhere, nowhere, height, width), 1)
    return _first_good(attempt, height, width, seed=seed, ids=ids, rounds=20, per_round=5, otherwise=whole)


def torchvision_boxes(
    height: Sizes,
    width: Sizes,
    *,
    seed: int,
    ids: Tensor,
    area: tuple[float, float] = AREA,
    ratio: tuple[float, float] = RATIO,
) -> Sizes:
    """Boxes of `torchvision.transforms.v2.RandomResizedCrop`: area and log of the aspect ratio uniform, 10 attempts.

    When no attempt fits into the image, the largest central crop with an aspect ratio in range is taken. Arguments and
    result as in `tensorflow_boxes`.
    """
    low, high = np.log(ratio)

    def attempt(u: Array, h: Array, w: Array) -> tuple[tuple[Array, Array, Array, Array], NDArray[np.bool_]]:
        target = h * w * (area[0] + u[0] * (area[1] - area[0]))
        aspect = np.exp(low + u[1] * (high - low))
        crop_h = np.rint(np.sqrt(target / aspect))
        crop_w = np.rint(np.sqrt(target * aspect))
        good = (crop_w > 0) & (crop_w <= w) & (crop_h > 0) & (crop_h <= h)
        return (np.floor(u[2] * (h - crop_h + 1)), np.floor(u[3] * (w - crop_w + 1)), crop_h, crop_w), good

    crop_h = np.where(width < ratio[0] * height, np.rint(width / ratio[0]), height).astype(np.int64)
    crop_w = np.where(width > ratio[1] * height, np.rint(height * ratio[1]), width).astype(np.int64)
    central = np.stack(((height - crop_h) // 2, (width - crop_w) // 2, crop_h, crop_w), 1)
    return _first_good(attempt, height, width, seed=seed, ids=ids, rounds=2, per_round=5, otherwise=central)


def _first_good(
    attempt: _Attempt,
    height: Sizes,
    width: Sizes,
    *,
    seed: int,
    ids: Tensor,
    rounds: int,
    per_round: int,
    otherwise: Sizes,
) -> Sizes:
    """The first accepted of rounds x per_round attempts per image; the first round settles nearly all."""
    boxes = otherwise.copy()
    sizes = (height.astype(np.float64), width.astype(np.float64))
    rows = np.arange(len(ids))
    for number in range(rounds):
        draws = uniform(derive(seed, "crop", number), ids[torch.from_numpy(rows)], 4 * per_round)
        u = draws.double().numpy().reshape(len(rows), per_round, 4).transpose(2, 0, 1)
        box, good = attempt(u, sizes[0][rows, None], sizes[1][rows, None])
        first = good.argmax(1)
        found = good.any(1)
        boxes[rows[found]] = np.stack(box, -1)[found, first[found]]
        rows = rows[~found]
        if not len(rows):
            break
    return boxes
