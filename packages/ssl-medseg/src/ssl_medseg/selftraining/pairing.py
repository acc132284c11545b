"""Which slices the local contrastive loss compares, as the released code pairs them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from contrastive_core.errors import UserError
from contrastive_core.losses.local_contrastive import Variant

PER_GROUP = 10
"""Pairs that ten slices make: five labelled (l0 .. l4 are 0 .. 4) and five unlabelled ones (u0 .. u4 are 5 .. 9)."""

# (l0,l0) (l1,u1) (l2,l2) (l3,u3) (l4,u4) (u0,u0) (u0,u1) (u2,u2) (u2,u3) (u3,u4): never two labelled slices.
_INTER = ((0, 0), (1, 6), (2, 2), (3, 8), (4, 9), (5, 5), (5, 6), (7, 7), (7, 8), (8, 9))


class Pairs(NamedTuple):
    """The slices of both sides of a step's pairs."""

    first: Tensor
    """int64 [B]: the slice on the first side of each pair."""
    second: Tensor
    """int64 [B]: that on the second side."""


def usable(presence: Tensor) -> Tensor:
    """Slices the loss can use: those that show every class, the background included; if none does, any structure.

    Args:
        presence: whether a class is in a slice, bool [N, C].

    Returns:
        int64 indices, ascending. Empty if no slice shows a structure.
    """
    every = presence.all(1)
    return torch.nonzero(every if bool(every.any()) else presence[:, 1:].any(1)).flatten()


def draw_pairs(
    labelled: Tensor, unlabelled: Tensor, *, pairs: int, variant: Variant, generator: torch.Generator
) -> Pairs:
    """Slices drawn with replacement, and paired as the released code pairs them.

    `inter`: of every ten pairs two join a labelled slice with itself, three a labelled with an unlabelled one, two an
    unlabelled one with itself and three two unlabelled ones. `intra`: each of the ten slices with itself. The sides of
    a pair differ by their augmentation.

    Args:
        labelled: usable labelled slices, int64.
        unlabelled: usable slices with pseudo-labels, int64; other numbers than `labelled`.
        pairs: B, a multiple of 10.
        variant: of the loss.
        generator: of the draws.

    Raises:
        UserError: a number of pairs that 10 does not divide, or no usable slice on one side.
    """
    if pairs < PER_GROUP or pairs % PER_GROUP:
        raise UserError(f"pairs is {pairs}; expected a multiple of {PER_GROUP}: five labelled, five unlabelled slices")
    for what, slices in (("labelled", labelled), ("unlabelled", unlabelled)):
        if len(slices) == 0:
            raise UserError(
                f"no {what} slice shows a structure, so the contrastive loss has nothing to compare; look at the "
                "labels (`ssl-medseg check`) or at the pseudo-labels of this round, or train without it "
                "(--contrast.weight 0)"
            )
    half = PER_GROUP // 2
    first, second = [], []
    for _ in range(pairs // PER_GROUP):
        ten = torch.cat(
            [slices[torch.randint(len(slices), (half,), generator=generator)] for slices in (labelled, unlabelled)]
        )
        pattern = torch.tensor(_INTER if variant == "inter" else [(i, i) for i in range(PER_GROUP)])
        first.append(ten[pattern[:, 0]])
        second.append(ten[pattern[:, 1]])
    return Pairs(torch.cat(first), torch.cat(second))
