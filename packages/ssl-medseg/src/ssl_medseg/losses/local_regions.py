"""The parent method's local losses L^R and L^D on decoder features: regions alike in two images, neighbours not."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from contrastive_core.losses._inputs import check_floating, check_temperature, result_dtype, unit_rows
from contrastive_core.similarity.precision import exact_dtype


class Regions(NamedTuple):
    """Square regions of a feature map by their top-left corners, and which count as neighbours of each."""

    corners: Tensor
    """int64 [R, 2], (row, col)."""
    neighbours: Tensor
    """int64 [R, K, 2]."""
    size: int
    """Side of a region in elements of the map."""


# Corners, edge middles, centre and quarter points on a grid of 5 x 5, and five neighbours of each (a digit is a grid
# line), as the released code lists them for regions of 3 x 3.
_GRID = {
    "00": "02 11 12 20 21", "02": "00 04 11 13 22", "04": "02 12 13 23 24", "20": "00 11 22 40 31",
    "22": "11 13 31 33 20", "24": "04 22 44 13 33", "40": "20 21 42 31 32", "42": "22 40 44 31 33",
    "44": "23 24 42 33 32", "11": "00 02 20 22 13", "13": "02 04 11 22 24", "31": "20 22 40 42 33",
    "33": "22 24 42 44 31",
}  # fmt: skip


def grid_regions(height: int, width: int, *, size: int = 3, neighbours: int = 5) -> Regions:
    """The 13 regions of the released code on a map of any size, with 1 to 5 neighbours each (L^R takes 5, L^D 4).

    Raises:
        ValueError: a map too small for regions on five different grid lines; a number of neighbours out of range.
    """
    if min(height, width) < size + 4 or size < 1:
        raise ValueError(
            f"grid_regions: the map is {height} x {width}, expected at least {size + 4} elements a side for 13 "
            f"different regions of {size} x {size}"
        )
    if not 1 <= neighbours <= 5:
        raise ValueError(f"grid_regions: neighbours is {neighbours}, expected 1 to 5")

    def corner(cell: str) -> tuple[int, int]:
        row, column = (int(line) * (side - size) // 4 for line, side in zip(cell, (height, width), strict=True))
        return row, column

    around = [[corner(cell) for cell in listed.split()[:neighbours]] for listed in _GRID.values()]
    return Regions(torch.tensor([corner(cell) for cell in _GRID]), torch.tensor(around), size)


def local_regions(
    features: Tensor,
    pairs: Tensor,
    regions: Regions,
    *,
    temperature: float = 0.1,
    project: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """A region is to be like the same region of the other image of its pair, unlike its neighbours in both.

    With a_r the region r of one image as a vector, b_r that of the other, s = cos / temperature:

        t(a, b) = -log( exp s(a_r, b_r) / ( exp s(a_r, b_r) + sum_k [ exp s(a_r, a_rk) + exp s(a_r, b_rk) ] ) )

    over the K neighbours rk of r; the loss is the mean of t over pairs, regions and both directions. L^R: the pairs are
    two intensity views of the same slice. L^D: also slices of the same part of different volumes (the released code's
    value for it was not recorded; the form is that of L^R with such pairs added).

    Args:
        features: decoder features [N, F, h, w].
        pairs: integers [Q, 2], indices of images; their geometry must agree.
        regions: see `grid_regions`.
        temperature: positive; 0.1 in the paper.
        project: what is done to the vectors [..., size * size * F] before they are compared, such as a dense layer; the
            elements of a vector are ordered by row, column, feature.

    Returns:
        Scalar, float64 if the features are, else float32. Computed in float64.

    Raises:
        ValueError: features that are not [N, F, h, w], pairs outside the batch, regions outside the map.
        TypeError: features that are not floating point.

    Reference: Chaitanya et al. 2020, "Contrastive learning of global and local features for medical image segmentation
    with limited annotations", and its released code.

    >>> import torch
    >>> features = torch.randn(1, 4, 12, 12, generator=torch.Generator().manual_seed(0)).repeat(2, 1, 1, 1)
    >>> local_regions(features, torch.tensor([[0, 1]]), grid_regions(12, 12)) < 0.01
    tensor(True)
    """
    check_temperature("local_regions", temperature)
    check_floating("local_regions", features=features)
    _check_regions(features, pairs, regions)
    pairs = pairs.to(features.device)

    def vectors(corners: Tensor) -> Tensor:
        """[N, ..., size * size * F] at corners [..., 2]."""
        windows = features.unfold(2, regions.size, 1).unfold(3, regions.size, 1)
        row, column = corners.flatten(0, -2).to(features.device).unbind(1)
        found = windows[:, :, row, column].permute(0, 2, 3, 4, 1).flatten(2)  # [N, P, size * size * F]
        found = found if project is None else project(found)
        return unit_rows(found, exact_dtype(features)).reshape(len(features), *corners.shape[:-1], -1)

    own, around = vectors(regions.corners), vectors(regions.neighbours)
    total = own.new_zeros(())
    for a, b in (pairs.unbind(1), pairs.flip(1).unbind(1)):
        positive = (own[a] * own[b]).sum(-1, keepdim=True)
        negatives = [torch.einsum("qrd,qrkd->qrk", own[a], around[other]) for other in (a, b)]
        logits = torch.cat([positive, *negatives], -1) / temperature
        total = total + (logits.logsumexp(-1) - logits[..., 0]).mean() / 2
    return total.to(result_dtype(features))


def _check_regions(features: Tensor, pairs: Tensor, regions: Regions) -> None:
    if features.ndim != 4 or len(features) == 0:
        raise ValueError(f"local_regions: features are {list(features.shape)}, expected [N, F, h, w]")
    if pairs.ndim != 2 or pairs.shape[1] != 2 or len(pairs) == 0 or pairs.is_floating_point():
        raise ValueError(f"local_regions: pairs are {pairs.dtype} {list(pairs.shape)}, expected integers [Q, 2]")
    if not 0 <= int(pairs.min()) <= int(pairs.max()) < len(features):
        raise ValueError(f"local_regions: pairs name other images than the {len(features)} there are")
    last = torch.cat([regions.corners, regions.neighbours.flatten(0, 1)]).amax(0) + regions.size
    if bool((last > torch.tensor(features.shape[2:])).any()):
        raise ValueError(
            f"local_regions: regions reach to {last.tolist()}, the map is {list(features.shape[2:])}; make them with "
            "grid_regions for this map"
        )
