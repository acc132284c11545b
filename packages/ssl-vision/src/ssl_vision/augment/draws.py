"""Draw the random numbers of one view of a batch, each a function of (seed, id of the image) alone.

They are NumPy arrays on the host for images on any device, a few numbers per image from which the work is planned, so
that one seed draws the same view everywhere. Crops follow the distribution of the TensorFlow op or of torchvision; a
box is int64 (top, left, height, width).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

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
    """Draw boxes as `tf.image.sample_distorted_bounding_box` with the whole image as its object.

    An attempt draws the aspect ratio (width / height) uniformly, then the height uniformly from the whole numbers for
    which the area is in range, then the position. It succeeds if the crop covers at least `min_covered` of the image,
    so that the smallest area of SimCLR's crops is 0.1, not 0.08. After 100 failed attempts the whole image is used.

    Args:
        height: Heights of the images in pixels, int64 [N].
        width: Widths of the images in pixels, int64 [N].
        seed: Seed of this view.
        ids: Identities of the images, int64 [N]; row i is a function of (seed, ids[i], height[i], width[i]).
        area: Smallest and largest area as fractions of the image.
        ratio: Smallest and largest width / height.
        min_covered: Fraction of the image that a crop must cover.

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
        # Rounding may leave the range by a pixel: the op tries one row more, then one row less.
        crop_h += crop_h * np.rint(crop_h * aspect) < smallest
        crop_h -= crop_h * np.rint(crop_h * aspect) > largest
        crop_w = np.rint(crop_h * aspect)
        size = crop_h * crop_w
        good = (size >= smallest) & (size <= largest) & (crop_w <= w) & (crop_h <= h) & (size > 0)
        good &= size >= min_covered * full
        # As in the op, the last possible place is never drawn: Uniform(n) is below n = H - h.
        return (np.floor(u[2] * (h - crop_h)), np.floor(u[3] * (w - crop_w)), crop_h, crop_w), good

    origin = np.zeros_like(height)
    whole = np.stack((origin, origin, height, width), 1)
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
    """Draw boxes as `torchvision.transforms.v2.RandomResizedCrop`: uniform area and log aspect ratio, 10 attempts.

    If no attempt fits into the image, the largest central crop with an aspect ratio in range is used. Arguments and
    result are those of `tensorflow_boxes`.
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
    """Return the first accepted of rounds x per_round attempts per image; the first round is enough for nearly all."""
    boxes = otherwise.copy()
    sizes = (height.astype(np.float64), width.astype(np.float64))
    rows = np.arange(len(ids))
    for number in range(rounds):
        draws = uniform(derive(seed, "crop", number), ids[torch.from_numpy(rows)], 4 * per_round)
        u = draws.double().numpy().reshape(len(rows), per_round, 4).transpose(2, 0, 1)
        box, good = attempt(u, sizes[0][rows, None], sizes[1][rows, None])
        first = good.argmax(1)
        is_accepted = good.any(1)
        boxes[rows[is_accepted]] = np.stack(box, -1)[is_accepted, first[is_accepted]]
        rows = rows[~is_accepted]
        if not len(rows):
            break
    return boxes


ORDERS = np.array(list(itertools.permutations(range(4))))  # orders of (brightness, contrast, saturation, hue)

Flags = NDArray[np.bool_]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Draws:
    """Random draws for each of N images."""

    boxes: NDArray[np.int64]
    """Crop: top, left, height, width; [N, 4]."""
    flip: Flags
    """Mirror left to right; [N]."""
    jitter: Flags
    """Whether to jitter colours; [N]."""
    order: NDArray[np.int64]
    """Operations of the jitter in order: 0 brightness, 1 contrast, 2 saturation, 3 hue; [N, 4]."""
    amounts: Floats
    """Factors of brightness (or its addend), contrast and saturation, and shift of hue in turns; [4, N]."""
    gray: Flags
    """Whether to convert to gray; [N]."""
    blur: Flags
    """Whether to blur; [N]."""
    sigma: Floats
    """Width of the blur in pixels; [N]."""


@dataclass(frozen=True)
class Family:
    """Distribution of SimCLR's views (paper, appendix A).

    Factors of brightness, contrast and saturation are uniform in [max(0, 1 - 0.8 s), 1 + 0.8 s] for strength s,
    additive brightness in [-0.8 s, 0.8 s], the shift of hue in [-0.2 s, 0.2 s] turns, sigma in [0.1, 2] pixels.
    """

    strength: float
    additive: bool
    flip: float
    jitter: float
    gray: float
    blur: float
    one_sigma: bool

    def draw(self, boxes: NDArray[np.int64], *, seed: int, ids: Tensor) -> Draws:
        """Draw everything except the boxes."""
        u = uniform(derive(seed, "augment"), ids, 10).numpy().T
        wide, least = 0.8 * self.strength, max(0.0, 1 - 0.8 * self.strength)
        ranges = [(-wide, wide) if self.additive else (least, 1 + wide), (least, 1 + wide), (least, 1 + wide)]
        low, high = np.array([*ranges, (-0.2 * self.strength, 0.2 * self.strength)], np.float32).T
        width = u[9]
        if self.one_sigma:
            one = uniform(derive(seed, "sigma"), torch.zeros(1, dtype=torch.int64), 1)
            width = np.full_like(width, one.item())
        return Draws(
            boxes=boxes,
            flip=u[0] < self.flip,
            jitter=u[1] < self.jitter,
            order=ORDERS[(u[2] * len(ORDERS)).astype(np.int64)],
            amounts=low[:, None] + u[3:7] * (high - low)[:, None],
            gray=u[7] < self.gray,
            blur=u[8] < self.blur,
            sigma=np.float32(0.1) + np.float32(1.9) * width,
        )


PLAIN = Family(strength=0.0, additive=False, flip=0.5, jitter=0.0, gray=0.0, blur=0.0, one_sigma=False)


def still(boxes: NDArray[np.int64]) -> Draws:
    """Return draws with crops only."""
    n = len(boxes)
    no = np.zeros(n, np.bool_)
    return Draws(
        boxes,
        flip=no,
        jitter=no,
        order=np.tile(ORDERS[0], (n, 1)),
        amounts=np.zeros((4, n), np.float32),
        gray=no,
        blur=no,
        sigma=np.ones(n, np.float32),
    )
