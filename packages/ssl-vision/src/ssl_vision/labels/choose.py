"""Draw class-balanced subsets of images, nested from small to large, as functions of a seed."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor

from contrastive_core.errors import UserError
from contrastive_core.rng import derive, permutation
from contrastive_core.text import several

Balance = Literal["equal", "proportional"]


def shuffled_by_class(labels: Tensor, classes: Sequence[str], *, seed: int) -> dict[str, list[int]]:
    """Shuffle the indices of every class with images, as a function of the seed, the class and its images.

    The first k of a class are a random draw of k, which contains the draws of smaller k.
    """
    groups = {}
    for label, name in enumerate(classes):
        members = torch.nonzero(labels == label).flatten()
        if len(members):
            groups[name] = members[permutation(derive(seed, "class", name), len(members))].tolist()
    return groups


def images_for(fraction: float, available: int) -> int:
    """Convert a fraction to a number of images, rounded down as in the official lists (12,811 of ImageNet's 1,281,167).

    >>> images_for(0.01, 1_281_167), images_for(0.29, 100)
    (12811, 29)
    """
    return int(Fraction(repr(fraction)) * available)  # exact: 0.29 * 100 is 28.999999999999996


def share_out(
    total: int, sizes: Mapping[str, int], *, balance: Balance, at_least: Mapping[str, int], seed: int
) -> dict[str, int]:
    """Distribute `total` images over the classes by the method of largest remainders.

    ``equal``: the same number for every class, to within one, except for classes with fewer images. ``proportional``:
    by the size of the classes, to within one. Every class has at least one image. The seed breaks ties.

    Args:
        total: Number of images to draw.
        sizes: Number of images of each class.
        balance: Balance of the classes, see above.
        at_least: Number of images of each class in a smaller draw, which this one then contains.
        seed: Seed of this draw.

    Raises:
        UserError: There are fewer images than classes, or than `total`.
    """
    available = sum(sizes.values())
    if not len(sizes) <= total <= available:
        raise UserError(
            f"cannot choose {total} images: expected at least one of each of the {len(sizes)} classes, and no more "
            f"than the {available} images available"
        )
    quota = {
        name: Fraction(total, len(sizes)) if balance == "equal" else Fraction(total * size, available)
        for name, size in sizes.items()
    }
    counts = {name: max(1, at_least.get(name, 0)) for name in sizes}
    turn = dict(zip(sizes, permutation(derive(seed, "turn"), len(sizes)).tolist(), strict=True))
    candidates = [(counts[name] - quota[name], turn[name], name) for name in sizes if counts[name] < sizes[name]]
    heapq.heapify(candidates)
    for _ in range(total - sum(counts.values())):
        _, _, name = heapq.heappop(candidates)  # the class furthest below its share
        counts[name] += 1
        if counts[name] < sizes[name]:
            heapq.heappush(candidates, (counts[name] - quota[name], turn[name], name))
    return counts


def choose_per_class(labels: Tensor, classes: Sequence[str], count: int, *, seed: int) -> Tensor:
    """Draw `count` images of every class and return their indices; a larger draw with the same seed contains them.

    Raises:
        UserError: A class has fewer images.
    """
    members = shuffled_by_class(labels, classes, seed=seed)
    for name, indices in members.items():
        if len(indices) < count:
            raise UserError(f"class {name} has {several(len(indices), 'image')}, expected at least {count}")
    selection = [index for indices in members.values() for index in indices[:count]]
    return torch.tensor(selection, dtype=torch.int64, device=labels.device)


def hold_out(labels: Tensor, classes: Sequence[str], share: float, *, seed: int) -> tuple[Tensor, Tensor]:
    """Hold out a random share of every class; return the sorted indices of remaining and held-out images.

    At least one image of each class is held out, and at least one remains.

    Raises:
        UserError: A class has a single image, or the share is out of range.
    """
    if not 0 < share < 1:
        raise UserError(f"the share held out must be between 0 and 1, got {share}")
    is_held_out = torch.zeros(len(labels), dtype=torch.bool, device=labels.device)
    for name, indices in shuffled_by_class(labels, classes, seed=seed).items():
        if len(indices) < 2:
            raise UserError(
                f"class {name} has a single labelled image, expected at least 2: one to train on and one to validate on"
            )
        is_held_out[indices[: min(max(1, round(share * len(indices))), len(indices) - 1)]] = True
    return (~is_held_out).nonzero()[:, 0], is_held_out.nonzero()[:, 0]
