"""The parent method's global losses G^{D-} and G^D on encoder features; its G^R is `contrastive_core.nt_xent`.

Volumes are cut into equally many parts along the slice axis. Slices of the same part of different volumes show much the
same anatomy, so they are no negatives of each other; in G^D they are positives.
"""

from __future__ import annotations

import torch
from torch import Tensor

from contrastive_core.losses._inputs import check_rows, check_temperature, result_dtype, unit_rows
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
