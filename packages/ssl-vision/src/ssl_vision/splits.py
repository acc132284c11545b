"""Which images get to keep their labels: class-balanced choices, nested from small to large."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor

from contrastive_core.errors import UserError
from contrastive_core.rng import derive, permutation

Balance = Literal["equal", "proportional"]


def shuffled_by_class(labels: Tensor, classes: Sequence[str], *, seed: int) -> dict[str, list[int]]:
    """Indices of every class that has any, in random order: a function of the seed, the class and its images alone.

    The first k of a class are a random choice of k, and those of a smaller k are among them.
    """
    shuffled = {}
    for label, name in enumerate(classes):
        members = torch.nonzero(labels == label).flatten()
        if len(members):
            shuffled[name] = members[permutation(derive(seed, "class", name), len(members))].tolist()
    return shuffled


def images_for(fraction: float, available: int) -> int:
    """How many images a fraction is: rounded down, as in the official lists (12,811 of ImageNet's 1,281,167).

    >>> images_for(0.01, 1_281_167), images_for(0.29, 100)
    (12811, 29)
    """
    return int(Fraction(repr(fraction)) * available)  # exact: 0.29 * 100 is 28.999999999999996


def share_out(
    total: int, sizes: Mapping[str, int], *, balance: Balance, at_least: Mapping[str, int], seed: int
) -> dict[str, int]:
    """How many images every class gives, `total` in all, by the method of largest remainders.

    ``equal``: as many of every class, to within one, but for classes that have no more. ``proportional``: by the size
    of the classes, to within one. Every class gives at least one. Between equal remainders the seed decides.

    Args:
        total: images to choose.
        sizes: of the classes.
        balance: see above.
        at_least: for every class, what a smaller choice took from it; this one then contains that one.
        seed: of this draw.

    Raises:
        UserError: fewer images than classes, or more than there are.
    """
    available = sum(sizes.values())
    if not len(sizes) <= total <= available:
        raise UserError(
            f"cannot choose {total} images: expected at least one of each of the {len(sizes)} classes, and no more "
            f"than the {available} that there are"
        )
    quota = {
        name: Fraction(total, len(sizes)) if balance == "equal" else Fraction(total * size, available)
        for name, size in sizes.items()
    }
    counts = {name: max(1, at_least.get(name, 0)) for name in sizes}
    turn = dict(zip(sizes, permutation(derive(seed, "turn"), len(sizes)).tolist(), strict=True))
    waiting = [(counts[name] - quota[name], turn[name], name) for name in sizes if counts[name] < sizes[name]]
    heapq.heapify(waiting)
    for _ in range(total - sum(counts.values())):
        _, _, name = heapq.heappop(waiting)  # the class that is furthest below its share
        counts[name] += 1
        if counts[name] < sizes[name]:
            heapq.heappush(waiting, (counts[name] - quota[name], turn[name], name))
    return counts
