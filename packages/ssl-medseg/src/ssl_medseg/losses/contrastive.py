"""Contrastive losses of pre-training: global losses on encoder features, local losses on decoder features.

Every volume is divided into the same number of partitions along the slice axis. Slices from the same partition of
different volumes show similar anatomy, so they are not used as negatives of each other; in G^D they are positives. The
global loss G^R, which ignores partitions, is `contrastive_core.nt_xent`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from contrastive_core.losses._inputs import check_floating, check_rows, check_temperature, result_dtype, unit_rows
from contrastive_core.similarity.precision import exact_dtype


def global_d_minus(z: Tensor, partition: Tensor, *, temperature: float = 0.1) -> Tensor:
    """Compute the global contrastive loss G^{D-}, with slices from other partitions as negatives.

    For a positive pair of rows (a, b), which are versions of the same slice,

        t(a, b) = -log( exp s_ab / (exp s_ab + sum over rows j of other partitions of exp s_aj) )
        s       = cosine similarity / temperature

    and the loss is the sum of t over all ordered positive pairs, divided by the number of rows. The computation is in
    float64 and uses a matrix ``[G n, G n]``.

    If all slices lie in the same partition, there are no negatives, and the loss and its gradient are 0. A row of zeros
    has similarity 0 with every other row.

    Args:
        z: Embeddings ``[G n, D]`` of G >= 2 versions of n slices (G = 3 in the released code: the slice and two
            augmented views). Row ``g n + i`` is version g of slice i. Rows are l2-normalised here.
        partition: Integers ``[n]``: the partition of each slice.
        temperature: Temperature of the similarities; 0.1 in the paper.

    Returns:
        Scalar, float64 if `z` is, otherwise float32.

    Raises:
        ValueError: The number of rows is not a multiple of n of at least 2 n, or the temperature is not positive and
            finite.
        TypeError: The embeddings are not floating point, or the partitions are not integers.

    References:
        Chaitanya et al., "Contrastive learning of global and local features for medical image segmentation with limited
        annotations", NeurIPS 2020, and its released code.

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
    """Compute the global contrastive loss G^D, with slices from the same partition of other volumes as positives.

    Let i be a slice with augmented view i', and p its partner, a slice from the same partition of another volume, with
    view p'. The pairs (i, i'), (i, p), (p, p') and (i', p') are positive in both directions. The loss is the sum of
    their terms t (see `global_d_minus`) over all i, divided by the number of rows, 2 n. In the released code, the
    volumes of a batch form a ring and the partner is the slice of the next volume, so that each pair (i, i') occurs
    twice.

    Args:
        z: Embeddings ``[2 n, D]``: n slices, followed by their n views. Rows are l2-normalised here.
        partition: Integers ``[n]``: the partition of each slice.
        partner: Integers ``[n]``: the index of the partner of each slice.
        temperature: Temperature of the similarities; 0.1 in the paper.

    Returns:
        Scalar, float64 if `z` is, otherwise float32; 0 if all slices lie in the same partition.

    Raises:
        ValueError: `z` does not have 2 n rows, a partner is outside the batch or in another partition, or the
            temperature is not positive and finite.
        TypeError: The embeddings are not floating point, or the partitions are not integers.

    References:
        Chaitanya et al., NeurIPS 2020, see `global_d_minus`.

    >>> import torch
    >>> ring = torch.tensor([2, 3, 0, 1])
    >>> global_d(torch.eye(2).repeat(4, 1), torch.tensor([0, 1, 0, 1]), ring, temperature=1.0)
    tensor(3.6193)
    """
    groups = _check_rows("global_d", z, partition, temperature)
    n = len(partition)
    if groups != 2:
        raise ValueError(
            f"global_d: z has {len(z)} rows for {n} slices; expected {2 * n}, for the slices and their views"
        )
    if (
        partner.shape != partition.shape
        or partner.is_floating_point()
        or not bool(((partner >= 0) & (partner < n)).all())
    ):
        raise ValueError(f"global_d: partner is {partner.tolist()}; expected {n} indices of slices, 0 to {n - 1}")
    if bool((partition[partner] != partition).any()):
        raise ValueError("global_d: a slice and its partner lie in different partitions; expected the same partition")
    own, partner = torch.arange(n, device=z.device), partner.to(z.device)
    pairs = [(own, own + n), (own, partner), (partner, partner + n), (own + n, partner + n)]
    first, second = (
        torch.cat([*(pair[side] for pair in pairs), *(pair[1 - side] for pair in pairs)]) for side in (0, 1)
    )
    return _loss(z, partition.repeat(2), first, second, temperature)


def _loss(z: Tensor, part: Tensor, first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Return the sum of t over the ordered pairs (first, second), divided by the number of rows."""
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
    """Check the arguments and return the number of versions of each slice."""
    check_temperature(name, temperature)
    check_rows(name, z=z)
    if partition.is_floating_point() or partition.is_complex():
        raise TypeError(f"{name}: partition is {partition.dtype}; expected integers")
    if partition.ndim != 1 or len(partition) == 0 or len(z) % len(partition) or len(z) < 2 * len(partition):
        raise ValueError(
            f"{name}: z has {len(z)} rows and partition has the shape {list(partition.shape)}; expected [n] and two or "
            "more groups of n rows"
        )
    return len(z) // len(partition)


class Regions(NamedTuple):
    """Square regions of a feature map, each with neighbouring regions that serve as negatives."""

    corners: Tensor
    """Top-left corners (row, column) of the R regions, int64 ``[R, 2]``."""
    neighbours: Tensor
    """Top-left corners of the K neighbours of each region, int64 ``[R, K, 2]``."""
    size: int
    """Side of a region in elements of the feature map."""


# Positions on a 5 x 5 grid (row and column digit): corners, centres of the edges, centre and quarter points, each with
# five neighbours, as the released code lists them for regions of 3 x 3.
_GRID = {
    "00": "02 11 12 20 21", "02": "00 04 11 13 22", "04": "02 12 13 23 24", "20": "00 11 22 40 31",
    "22": "11 13 31 33 20", "24": "04 22 44 13 33", "40": "20 21 42 31 32", "42": "22 40 44 31 33",
    "44": "23 24 42 33 32", "11": "00 02 20 22 13", "13": "02 04 11 22 24", "31": "20 22 40 42 33",
    "33": "22 24 42 44 31",
}  # fmt: skip


def grid_regions(height: int, width: int, *, size: int = 3, neighbours: int = 5) -> Regions:
    """Return the 13 regions of the released code for a feature map of any size.

    Args:
        height: Height of the feature map.
        width: Width of the feature map.
        size: Side of a region.
        neighbours: Number of neighbours of each region, 1 to 5; 5 in L^R and 4 in L^D.

    Raises:
        ValueError: The map is too small for 13 different regions, or the number of neighbours is out of range.
    """
    if min(height, width) < size + 4 or size < 1:
        raise ValueError(
            f"grid_regions: the map is {height} x {width}; expected at least {size + 4} elements per side for 13 "
            f"different regions of {size} x {size}"
        )
    if not 1 <= neighbours <= 5:
        raise ValueError(f"grid_regions: neighbours is {neighbours}; expected 1 to 5")

    def corner(cell: str) -> tuple[int, int]:
        row, column = (int(line) * (side - size) // 4 for line, side in zip(cell, (height, width), strict=True))
        return row, column

    around = [[corner(cell) for cell in cells.split()[:neighbours]] for cells in _GRID.values()]
    return Regions(torch.tensor([corner(cell) for cell in _GRID]), torch.tensor(around), size)


def local_regions(
    features: Tensor,
    pairs: Tensor,
    regions: Regions,
    *,
    temperature: float = 0.1,
    project: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Compute the local contrastive loss between regions of paired images, with neighbouring regions as negatives.

    Let a_r and b_r be the features of region r in the two images of a pair, as vectors:

        t(a, b, r) = -log( exp s(a_r, b_r) / ( exp s(a_r, b_r) + sum_k [ exp s(a_r, a_k) + exp s(a_r, b_k) ] ) )
        s          = cosine similarity / temperature

    where k runs over the K neighbours of r. The loss is the mean of t over pairs, regions and both directions. In L^R
    the images of a pair are two intensity-augmented views of the same slice. In L^D they may also be slices from the
    same partition of different volumes. L^R is compared with values of the released code; L^D has the same form, but no
    reference values are available.

    Args:
        features: Decoder features ``[N, F, h, w]``.
        pairs: Integers ``[Q, 2]``: indices of the two images of each pair, which must have the same geometric
            augmentation.
        regions: Regions, see `grid_regions`.
        temperature: Temperature of the similarities; 0.1 in the paper.
        project: Projection of the vectors ``[..., size * size * F]`` before the comparison, such as a linear layer. The
            elements of a vector are ordered by row, column, feature.

    Returns:
        Scalar, float64 if the features are, otherwise float32. The computation is in float64.

    Raises:
        ValueError: The features are not ``[N, F, h, w]``, a pair is outside the batch, a region is outside the map, or
            the temperature is not positive and finite.
        TypeError: The features are not floating point.

    References:
        Chaitanya et al., "Contrastive learning of global and local features for medical image segmentation with limited
        annotations", NeurIPS 2020, and its released code.

    >>> import torch
    >>> features = torch.randn(1, 4, 12, 12, generator=torch.Generator().manual_seed(0)).repeat(2, 1, 1, 1)
    >>> local_regions(features, torch.tensor([[0, 1]]), grid_regions(12, 12)) < 0.01
    tensor(True)
    """
    temperature = check_temperature("local_regions", temperature)
    check_floating("local_regions", features=features)
    _check_regions(features, pairs, regions)
    pairs = pairs.to(features.device)

    def vectors(corners: Tensor) -> Tensor:
        """Return the unit vectors ``[N, ..., size * size * F]`` of the regions at corners ``[..., 2]``."""
        windows = features.unfold(2, regions.size, 1).unfold(3, regions.size, 1)
        row, column = corners.flatten(0, -2).to(features.device).unbind(1)
        patches = windows[:, :, row, column].permute(0, 2, 3, 4, 1).flatten(2)  # [N, P, size * size * F]
        patches = patches if project is None else project(patches)
        return unit_rows(patches, exact_dtype(features)).reshape(len(features), *corners.shape[:-1], -1)

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
        raise ValueError(f"local_regions: features have the shape {list(features.shape)}; expected [N, F, h, w]")
    if pairs.ndim != 2 or pairs.shape[1] != 2 or len(pairs) == 0 or pairs.is_floating_point():
        raise ValueError(f"local_regions: pairs are {pairs.dtype} {list(pairs.shape)}; expected integers [Q, 2]")
    if not 0 <= int(pairs.min()) <= int(pairs.max()) < len(features):
        raise ValueError(
            f"local_regions: pairs contain indices {int(pairs.min())} to {int(pairs.max())}; expected indices of the "
            f"{len(features)} images, 0 to {len(features) - 1}"
        )
    last = torch.cat([regions.corners, regions.neighbours.flatten(0, 1)]).amax(0) + regions.size
    if bool((last > torch.tensor(features.shape[2:])).any()):
        raise ValueError(
            f"local_regions: the regions extend to {last.tolist()}, but the map has the shape "
            f"{list(features.shape[2:])}; create them for this map with grid_regions"
        )
