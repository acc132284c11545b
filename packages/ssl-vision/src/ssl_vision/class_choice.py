"""Random choices of images that are balanced over the classes, as functions of a seed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from contrastive_core.errors import UserError
from ssl_vision.splits import shuffled_by_class


def choose_per_class(labels: Tensor, classes: Sequence[str], count: int, *, seed: int) -> Tensor:
    """Indices of `count` random images of every class; a larger choice of the same seed holds the smaller one.

    Raises:
        UserError: a class has fewer.
    """
    members = shuffled_by_class(labels, classes, seed=seed)
    for name, indices in members.items():
        if len(indices) < count:
            raise UserError(f"class {name} has {len(indices)} images, expected at least {count}")
    chosen = [index for indices in members.values() for index in indices[:count]]
    return torch.tensor(chosen, dtype=torch.int64, device=labels.device)


def hold_out(labels: Tensor, classes: Sequence[str], share: float, *, seed: int) -> tuple[Tensor, Tensor]:
    """Indices, ascending, of the images that stay and of those held out: a share of every class, drawn at random.

    Of each class at least one image is held out and at least one stays.

    Raises:
        UserError: a class has a single image, or the share is none.
    """
    if not 0 < share < 1:
        raise UserError(f"the share held out must lie between 0 and 1, got {share}")
    held = torch.zeros(len(labels), dtype=torch.bool, device=labels.device)
    for name, indices in shuffled_by_class(labels, classes, seed=seed).items():
        if len(indices) < 2:
            raise UserError(
                f"class {name} has a single labelled image, expected at least 2: one to learn from and one to validate "
                "on"
            )
        held[indices[: min(max(1, round(share * len(indices))), len(indices) - 1)]] = True
    return (~held).nonzero()[:, 0], held.nonzero()[:, 0]
