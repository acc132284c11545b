"""Losses of the parent method against values and gradients of the released code, and against the formulas."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ssl_medseg.losses.contrastive import Regions, global_d, global_d_minus, grid_regions, local_regions

Recorded = np.lib.npyio.NpzFile
Golden = Callable[[str], Recorded]


def compare(loss: Callable[[Tensor], Tensor], x: Tensor, value: Any, grad: Any) -> None:
    for dtype in (torch.float64, torch.float32):
        leaf = x.to(dtype).requires_grad_()
        ours = loss(leaf)
        ours.backward()
        assert ours.dtype == dtype
        np.testing.assert_allclose(ours.item(), value, rtol=1e-6)
        assert leaf.grad is not None
        np.testing.assert_allclose(leaf.grad.numpy(), grad, rtol=0, atol=5e-7)


def test_global_d_minus(golden: Golden) -> None:
    recorded = golden("medseg")
    z, part = torch.from_numpy(recorded["glob_GDminus/z"]), torch.arange(8) % 4
    compare(lambda x: global_d_minus(x, part), z, recorded["glob_GDminus/loss"], recorded["glob_GDminus/grad"])


def test_global_d(golden: Golden) -> None:
    """Recorded in blocks of four partitions: slices of a volume, their views, slices of the next volume, ..."""
    recorded = golden("medseg")
    order = torch.arange(48).view(6, 2, 4).transpose(0, 1).flatten()
    ring = (torch.arange(24) + 4) % 24
    compare(
        lambda x: global_d(x[order], torch.arange(24) % 4, ring),
        torch.from_numpy(recorded["glob_GD/z"]), recorded["glob_GD/loss"], recorded["glob_GD/grad"],
    )  # fmt: skip


@pytest.mark.parametrize("case", ["loc_LR_3x3", "loc_LR_1x1"])
def test_local_regions(golden: Golden, case: str) -> None:
    recorded = golden("medseg")
    corners, around = (torch.from_numpy(recorded[f"{case}/{name}"].astype(int)) for name in ("regions", "neg_regions"))
    regions = Regions(corners, around, int(case[-1]))
    pairs = torch.tensor([[0, 1], [2, 3]])
    compare(
        lambda x: local_regions(x.permute(0, 3, 1, 2), pairs, regions),
        torch.from_numpy(recorded[f"{case}/fmap"]), recorded[f"{case}/loss"], recorded[f"{case}/grad"],
    )  # fmt: skip
    if case == "loc_LR_1x1":
        ours = grid_regions(16, 16, size=1)
        assert torch.equal(ours.corners, corners)
    else:
        # On this map the released grid leaves the last row and column out: its lines are 3 apart.
        ours = grid_regions(15, 15, size=3)
        assert torch.equal(ours.corners, corners)
        assert torch.equal(ours.neighbours, around)


def pair_terms(z: Tensor, part: Tensor, temperature: float) -> Callable[[int, int], Tensor]:
    def term(a: int, b: int) -> Tensor:
        s = torch.stack([torch.cosine_similarity(z[a], other, dim=0) for other in z]) / temperature
        return -torch.log(s[b].exp() / (s[b].exp() + s[part != part[a]].exp().sum()))

    return term


def test_global_losses_are_their_formulas() -> None:
    z = torch.randn(12, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    part, partner = torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor([1, 0, 3, 2, 4, 5])
    term = pair_terms(z, part.repeat(2), 0.5)
    n = len(part)
    twice = [(i, n + i) for i in range(n)]
    expected = sum((term(a, b) + term(b, a) for a, b in twice), torch.tensor(0.0)) / len(z)
    torch.testing.assert_close(global_d_minus(z, part, temperature=0.5), expected)
    pairs = [pair for i, p in enumerate(partner.tolist()) for pair in ((i, n + i), (i, p), (p, n + p), (n + i, n + p))]
    expected = sum((term(a, b) + term(b, a) for a, b in pairs), torch.tensor(0.0)) / len(z)
    torch.testing.assert_close(global_d(z, part, partner, temperature=0.5), expected)


def test_without_negatives_the_global_losses_are_zero() -> None:
    z = torch.randn(8, 3, requires_grad=True)
    loss = global_d_minus(z, torch.zeros(4, dtype=torch.long)) + global_d(
        z, torch.zeros(4, dtype=torch.long), torch.tensor([1, 2, 3, 0])
    )
    loss.backward()
    assert loss == 0
    assert z.grad is not None
    assert (z.grad == 0).all()


def test_local_regions_is_its_formula_and_projects() -> None:
    features = torch.randn(3, 2, 9, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    regions, pairs = grid_regions(9, 11, size=2, neighbours=4), torch.tensor([[0, 1], [2, 0]])
    weight = torch.randn(2 * 2 * 2, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def vector(image: int, corner: Tensor) -> Tensor:
        row, column = corner.tolist()
        return features[image, :, row : row + 2, column : column + 2].permute(1, 2, 0).flatten() @ weight

    terms = []
    for a, b in itertools.chain.from_iterable([(p, p[::-1]) for p in pairs.tolist()]):
        for corner, around in zip(*regions[:2], strict=True):
            own = vector(a, corner)
            others = [vector(b, corner), *(vector(image, c) for image in (a, b) for c in around)]
            s = torch.stack([torch.cosine_similarity(own, other, dim=0) for other in others]) / 0.3
            terms.append(s.logsumexp(0) - s[0])
    ours = local_regions(features, pairs, regions, temperature=0.3, project=lambda x: x @ weight)
    torch.testing.assert_close(ours, torch.stack(terms).mean())


def test_grid_regions_differ_and_stay_inside() -> None:
    for height, width, size in ((7, 7, 3), (24, 48, 3), (5, 9, 1)):
        regions = grid_regions(height, width, size=size)
        assert len(regions.corners.unique(dim=0)) == 13
        for corner, around in zip(*regions[:2], strict=True):
            assert len(around.unique(dim=0)) == 5
            assert not (around == corner).all(1).any()
        last = regions.neighbours.flatten(0, 1).amax(0) + size
        assert last.tolist() == [height, width]


PART = torch.arange(4)
WRONG: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "rows": (lambda: global_d_minus(torch.ones(9, 2), PART), ValueError, "z has 9 rows and partition has"),
    "one group": (lambda: global_d_minus(torch.ones(4, 2), PART), ValueError, "two or more groups"),
    "float parts": (lambda: global_d_minus(torch.ones(8, 2), PART.float()), TypeError, "partition is torch.float32"),
    "temperature": (lambda: global_d_minus(torch.ones(8, 2), PART, temperature=0), ValueError, "temperature is 0"),
    "three groups": (lambda: global_d(torch.ones(12, 2), PART, PART), ValueError, "expected 8, for the slices"),
    "partner outside": (lambda: global_d(torch.ones(8, 2), PART, PART + 1), ValueError, "indices of slices, 0 to 3"),
    "other part": (lambda: global_d(torch.ones(8, 2), PART, PART.flip(0)), ValueError, "lie in different partitions"),
    "small map": (lambda: grid_regions(6, 20), ValueError, "at least 7 elements per side"),
    "neighbours": (lambda: grid_regions(20, 20, neighbours=6), ValueError, "neighbours is 6"),
    "features": (
        lambda: local_regions(torch.ones(2, 9, 9), PART[None, :2], grid_regions(9, 9)), ValueError, r"\[N, F, h, w\]"
    ),
    "pairs": (
        lambda: local_regions(torch.ones(2, 1, 9, 9), PART[None, 1:3], grid_regions(9, 9)), ValueError, "indices 1 to 2"
    ),
    "another map": (
        lambda: local_regions(torch.ones(2, 1, 8, 9), PART[None, :2], grid_regions(9, 9)), ValueError, "extend to"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_inputs_say_what_was_expected(case: str) -> None:
    call, error, message = WRONG[case]
    with pytest.raises(error, match=message):
        call()
