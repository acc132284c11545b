"""Contrastive losses of pre-training: global ones on encoder features, local ones on decoder features.

Volumes are cut into equally many parts along the slice axis. Slices of the same part of different volumes show much the
same anatomy, so they are no negatives of each other; in G^D they are positives. The global loss G^R is
`contrastive_core.nt_xent`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from contrastive_core.losses._inputs import check_floating, check_rows, check_temperature, result_dtype, unit_rows
from contrastive_core.similarity.precision import exact_dtype


def global_d_minus(z: Tensor, partition: Tensor, *, temperature: float = 0.1) -> Tensor:
    """Versions of a slice are alike, slices of other parts of the volumes are not: G^{D-}.

    For a positive pair of rows (a, b), both of them versions of a slice in part p,

        t(a, b) = -log( exp s_ab / (exp s_ab + sum over rows j of other parts of exp s_aj) ),   s = cos / temperature

    and the loss is the sum of t over all ordered pairs, divided by the number of rows. Computed in float64, with a
    matrix of [rows, rows]: a batch is some tens of slices.

    Args:
        z: embeddings [G n, D] in G >= 2 groups of the same n slices (in the released code three: the slice and two
            views of it), so that row g n + i is version g of slice i; l2-normalised here.
        partition: integers [n], the part of its volume that slice i lies in.
        temperature: positive; 0.1 in the paper.

    Returns:
        Scalar, float64 if z is, else float32.

    Edges: where all slices lie in one part there are no negatives and the loss is 0, with zero gradient. A row of zeros
    has similarity 0 with everything.

    Raises:
        ValueError: rows that are not two or more groups of n, a temperature that is not positive and finite.
        TypeError: embeddings that are not floating point, parts that are not integers.

    Reference: Chaitanya et al. 2020, "Contrastive learning of global and local features for medical image segmentation
    with limited annotations", and its released code.

    >>> import torch
    >>> global_d_minus(torch.eye(2)[[0, 1, 0, 1]], torch.tensor([0, 1]), temperature=1.0)
    tensor(0.5514)
    """
    groups = _check_rows("global_d_minus", z, partition, temperature)
    pairs = [(a, b) for a in range(groups) for b in range(groups) if a != b]
    own = torch.arange(len(partition), device=z.device)
    first, second = (torch.cat([len(own) * pair[side] + own for pair in pairs]) for side in (0, 1))
    return _loss(z, partition.repeat(groups), first, second, temperature)


def global_d(z: Tensor, partition: Tensor, partner: Tensor, *, temperature: float = 0.1) -> Tensor:
    """Slices of the same part of different volumes are alike too: G^D.

    With slice i of one volume, its view i', the slice p of the same part of another volume and its view p', the pairs
    (i, i'), (i, p), (p, p') and (i', p') are positive, both directions. Their t (see `global_d_minus`) are summed over
    all i and divided by the number of rows, 2n. In the released code the volumes of a batch stand in a ring and p is
    the slice of the next one, so that a slice and its view meet twice.

    Args:
        z: embeddings [2n, D]: n slices, then their n views; l2-normalised here.
        partition: integers [n], the part of its volume that slice i lies in.
        partner: integers [n], a slice of the same part for each i.
        temperature: positive; 0.1 in the paper.

    Returns, edges, errors: as `global_d_minus`; ValueError too for a partner outside the batch or in another part.

    >>> import torch
    >>> ring = torch.tensor([2, 3, 0, 1])
    >>> global_d(torch.eye(2).repeat(4, 1), torch.tensor([0, 1, 0, 1]), ring, temperature=1.0)
    tensor(3.6193)
    """
    groups = _check_rows("global_d", z, partition, temperature)
    n = len(partition)
    if groups != 2:
        raise ValueError(f"global_d: z has {len(z)} rows for {n} slices, expected {2 * n}: the slices and their views")
    if (
        partner.shape != partition.shape
        or partner.is_floating_point()
        or not bool(((partner >= 0) & (partner < n)).all())
    ):
        raise ValueError(f"global_d: partner is {partner.tolist()}, expected {n} indices of slices, 0 to {n - 1}")
    if bool((partition[partner] != partition).any()):
        raise ValueError("global_d: a slice and its partner lie in different parts, expected the same part")
    own, partner = torch.arange(n, device=z.device), partner.to(z.device)
    pairs = [(own, own + n), (own, partner), (partner, partner + n), (own + n, partner + n)]
    first, second = (
        torch.cat([*(pair[side] for pair in pairs), *(pair[1 - side] for pair in pairs)]) for side in (0, 1)
    )
    return _loss(z, partition.repeat(2), first, second, temperature)


def _loss(z: Tensor, part: Tensor, first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Sum of t over the ordered pairs (first, second), divided by the number of rows."""
    rows = unit_rows(z, exact_dtype(z))
    similarity = rows @ rows.mT / temperature
    part = part.to(z.device)
    negative = part[:, None] != part
    if not bool(negative.any()):
        return (similarity.sum() * 0).to(result_dtype(z))
    against = similarity.masked_fill(~negative, -torch.inf).logsumexp(1)
    pair = similarity[first, second]
    return ((torch.logaddexp(pair, against[first]) - pair).sum() / len(z)).to(result_dtype(z))


def _check_rows(name: str, z: Tensor, partition: Tensor, temperature: float) -> int:
    """The number of groups."""
    check_temperature(name, temperature)
    check_rows(name, z=z)
    if partition.is_floating_point() or partition.is_complex():
        raise TypeError(f"{name}: partition is {partition.dtype}, expected integers")
    if partition.ndim != 1 or len(partition) == 0 or len(z) % len(partition) or len(z) < 2 * len(partition):
        raise ValueError(
            f"{name}: z has {len(z)} rows and partition is {list(partition.shape)}, expected [n] and two or more "
            "groups of n rows"
        )
    return len(z) // len(partition)


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
