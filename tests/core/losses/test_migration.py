"""The migration table of docs/contrastive-core: what it calls the same value is, at the same temperature.

Each library's loss is written out here from its formula; where the library is installed, it is called as well.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contrastive_core import MemoryBank, ProjectionHead, info_nce, nt_xent, supcon

PAGE = Path(__file__).resolve().parents[3] / "docs" / "contrastive-core" / "migration.md"
T = 0.3
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 2, 1])


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


Z0, Z1 = randn(8, 5), randn(8, 5, seed=1)


def lightly_nt_xent(z0: Tensor, z1: Tensor, t: float) -> Tensor:
    """Four blocks of logits, the diagonals of two of them dropped, cross-entropy with the other view's column."""
    z0, z1 = F.normalize(z0, dim=1), F.normalize(z1, dim=1)
    n = len(z0)
    off = ~torch.eye(n, dtype=torch.bool)
    blocks = {(a, b): x @ y.T / t for a, x in ((0, z0), (1, z1)) for b, y in ((0, z0), (1, z1))}
    within = [blocks[0, 0][off].view(n, -1), blocks[1, 1][off].view(n, -1)]
    logits = torch.cat(
        [torch.cat([blocks[0, 1], within[0]], 1), torch.cat([blocks[1, 0], within[1]], 1)]
    )  # fmt: skip
    return F.cross_entropy(logits, torch.arange(n).repeat(2))


def lightly_with_memory_bank(z0: Tensor, z1: Tensor, rows: Tensor, t: float) -> Tensor:
    """The positive against the rows of the bank alone."""
    z0, z1 = F.normalize(z0, dim=1), F.normalize(z1, dim=1)
    logits = torch.cat([(z0 * z1).sum(1, keepdim=True), z0 @ rows.T], 1) / t
    return F.cross_entropy(logits, torch.zeros(len(z0), dtype=torch.long))


def supcontrast(features: Tensor, labels: Tensor | None, t: float, base_temperature: float) -> Tensor:
    """Loss of features [N, V, D], normalised by the model; all views are anchors."""
    n, views = features.shape[:2]
    contrast = torch.cat(torch.unbind(features, 1))
    same = torch.eye(n) if labels is None else (labels[:, None] == labels).double()
    itself = torch.eye(n * views)
    positive = same.repeat(views, views) * (1 - itself)
    logits = contrast @ contrast.T / t
    logits = logits - logits.max(1, keepdim=True).values.detach()
    log_p = logits - ((1 - itself) * logits.exp()).sum(1, keepdim=True).log()
    return (-(t / base_temperature) * (positive * log_p).sum(1) / positive.sum(1)).mean()


def pml_supcon(z: Tensor, labels: Tensor, t: float) -> Tensor:
    z = F.normalize(z, dim=1)
    s = (z @ z.T / t).fill_diagonal_(-torch.inf)
    positive = (labels[:, None] == labels).fill_diagonal_(False)
    mean = torch.where(positive, s, 0.0).sum(1) / positive.sum(1)
    return (s.logsumexp(1) - mean).mean()


def pml_nt_xent(z: Tensor, labels: Tensor, t: float) -> Tensor:
    """Mean over positive pairs, each compared with itself and its anchor's negatives."""
    z = F.normalize(z, dim=1)
    s = z @ z.T / t
    same = labels[:, None] == labels
    losses = []
    for i in range(len(z)):
        negatives = s[i][~same[i]]
        positives = [j for j in range(len(z)) if i != j and same[i, j]]
        losses += [torch.cat([s[i, j : j + 1], negatives]).logsumexp(0) - s[i, j] for j in positives]
    return torch.stack(losses).mean()


def both_views(labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
    return torch.cat([Z0, Z1]), (torch.arange(8) if labels is None else labels).repeat(2)


def lightly() -> Tensor:
    module = pytest.importorskip("lightly.loss")
    return module.NTXentLoss(temperature=T)(Z0, Z1)


def pml(name: str, z: Tensor, labels: Tensor) -> Tensor:
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    return getattr(losses, name)(temperature=T)(z, labels)


def pml_self_supervised() -> Tensor:
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    return losses.SelfSupervisedLoss(losses.NTXentLoss(T))(Z0, Z1)


features = torch.stack([F.normalize(Z0, dim=1), F.normalize(Z1, dim=1)], 1)
NT_XENT: Callable[[], Tensor] = lambda: nt_xent(Z0, Z1, temperature=T)  # noqa: E731
SUPCON: Callable[[], Tensor] = lambda: supcon(torch.cat([Z0, Z1]), LABELS.repeat(2), temperature=T)  # noqa: E731

# First cell of a row of the page: our call, their formula, their library.
SAME: dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor], Callable[[], Tensor] | None]] = {
    "lightly.loss.NTXentLoss(temperature=0.5)": (NT_XENT, lambda: lightly_nt_xent(Z0, Z1, T), lightly),
    "SupConLoss(temperature=0.07)(features, labels)": (SUPCON, lambda: supcontrast(features, LABELS, T, T), None),
    "SupConLoss()(features)": (NT_XENT, lambda: supcontrast(features, None, T, T), None),
    "losses.SupConLoss(temperature=0.1)(z, labels)": (
        SUPCON,
        lambda: pml_supcon(*both_views(LABELS), T),
        lambda: pml("SupConLoss", *both_views(LABELS)),
    ),
    "losses.SelfSupervisedLoss(losses.NTXentLoss(0.1))(z0, z1)": (
        NT_XENT,
        lambda: pml_nt_xent(*both_views(), T),
        pml_self_supervised,
    ),
}


@pytest.mark.parametrize("row", SAME)
def test_same_value_as_the_formula(row: str) -> None:
    ours, formula, _ = SAME[row]
    torch.testing.assert_close(ours(), formula(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("row", [row for row, (_, _, library) in SAME.items() if library])
def test_same_value_as_the_library(row: str) -> None:
    ours, _, library = SAME[row]
    assert library is not None
    torch.testing.assert_close(ours(), library(), rtol=1e-6, atol=0)


def test_every_row_of_the_page_that_says_so_is_checked() -> None:
    claims = []
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if line.startswith("| ") and "same value" in cells[-1]:
            (name,) = re.findall(r"`([^`]+)`", cells[0])[:1]
            claims.append(name)
    assert set(claims) == set(SAME)


def test_what_the_page_says_of_base_temperature() -> None:
    """SupContrast's default scales the loss by temperature / base_temperature."""
    assert supcontrast(features, LABELS, T, 0.07) / SUPCON() == pytest.approx(T / 0.07)


def test_what_the_page_says_of_memory_banks() -> None:
    """lightly's negatives are the bank's rows; ours are those and the other keys of the batch."""
    bank = MemoryBank(6, 5, dtype=torch.float64)
    bank.add(randn(6, 5, seed=2))
    theirs = lightly_with_memory_bank(Z0, Z1, bank.rows, T)
    assert info_nce(Z0, Z1, bank.rows, temperature=T) > theirs
    alone = [info_nce(Z0[i : i + 1], Z1[i : i + 1], bank.rows, temperature=T) for i in range(8)]
    torch.testing.assert_close(torch.stack(alone).mean(), theirs)


def test_what_the_page_says_of_labels_in_nt_xent() -> None:
    """pytorch-metric-learning's NTXentLoss with labels is neither `suncet` nor `supcon`."""
    z, labels = both_views(LABELS)
    theirs = pml_nt_xent(z, labels, T)
    assert abs(theirs - supcon(z, labels, temperature=T)) > 0.01
    torch.testing.assert_close(pml("NTXentLoss", z, labels), theirs, rtol=1e-6, atol=0)


def test_what_the_page_says_of_the_projection_head() -> None:
    """lightly's SimCLRProjectionHead, whose last normalisation has a shift that starts at 0."""
    ours = ProjectionHead(6, 3, hidden_features=4)
    theirs = nn.Sequential(
        nn.Linear(6, 4, bias=False), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3, bias=False), nn.BatchNorm1d(3)
    )
    theirs[0].weight, theirs[3].weight = ours.layers[0].linear.weight, ours.layers[1].linear.weight
    x = torch.randn(9, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours(x), theirs(x))
    assert sum(p.numel() for p in theirs.parameters()) - sum(p.numel() for p in ours.parameters()) == 3
