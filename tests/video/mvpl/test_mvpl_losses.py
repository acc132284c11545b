"""Targets and losses against hand-computed numbers and independent references."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from torch import Tensor

from contrastive_core.pseudo_label import fuse
from ssl_video.mvpl.losses import Targets, make_targets, other_views, pseudo_label_loss, supervised_loss
from ssl_video.mvpl.state import DistributionAlignment, ViewWeights

# Two views of three clips, three classes.
P = torch.tensor(
    [
        [[0.8, 0.1, 0.1], [0.2, 0.5, 0.3], [0.45, 0.35, 0.2]],
        [[0.6, 0.2, 0.2], [0.6, 0.2, 0.2], [0.1, 0.1, 0.8]],
    ],
    dtype=torch.float64,
)
# The second view of the last clip is missing.
PRESENT = torch.tensor([[True, True, True], [True, True, False]])


def test_fused_by_hand() -> None:
    exact = torch.tensor([[0.7, 0.15, 0.15], [0.4, 0.35, 0.25], [0.275, 0.225, 0.5]], dtype=torch.float64)
    assert torch.allclose(fuse(P), exact)
    assert torch.allclose(fuse(P, present=PRESENT)[2], P[0, 2])
    weighted = fuse(P, weights=torch.tensor([3.0, 1.0]))
    assert torch.allclose(weighted[0], torch.tensor([0.75, 0.125, 0.125], dtype=torch.float64))
    # The weights of the views that are there sum to 1.
    assert torch.allclose(fuse(P, weights=torch.tensor([3.0, 1.0]), present=PRESENT)[2], P[0, 2])
    assert fuse(P, present=torch.zeros(2, 3, dtype=torch.bool)).unique().tolist() == [0]


def test_targets_of_every_kind() -> None:
    logits = P.log() + 5.0
    assert torch.allclose(make_targets(logits, kind="self").probabilities, P)
    fused = make_targets(logits, kind="aggregated", present=PRESENT)
    assert torch.allclose(fused.probabilities, fuse(P, present=PRESENT).expand(2, 3, 3))
    assert fused.usable.all()
    # Without a view that counts there is no target, instead of class 0 or equal probabilities.
    for fuse_by in ("probabilities", "logits"):
        alone = make_targets(logits, fuse_by=fuse_by, weights=torch.tensor([0.0, 1.0]), present=PRESENT)
        assert alone.usable.tolist() == [[True, True, False]] * 2
    crossed = make_targets(logits, kind="cross", present=PRESENT, sources=other_views("cross", 2))
    assert torch.allclose(crossed.probabilities, P.flip(0))
    assert crossed.usable.tolist() == [[True, True, False], [True, True, True]]
    by_logits = make_targets(logits, fuse_by="logits").probabilities[0, 0]
    geometric = (P[0, 0] * P[1, 0]).sqrt()
    assert torch.allclose(by_logits, geometric / geometric.sum())
    with pytest.raises(ValueError, match="a source for each"):
        make_targets(logits, kind="random")
    with pytest.raises(ValueError, match="unknown target 'all'"):
        make_targets(logits, kind="all")


def test_targets_have_no_gradient_and_full_precision() -> None:
    logits = torch.randn(2, 3, 4, requires_grad=True)
    assert not make_targets(logits).probabilities.requires_grad
    assert make_targets(logits.to(torch.bfloat16)).probabilities.dtype == torch.float32


def test_other_views_are_others_all_of_them_and_drawn_by_step() -> None:
    drawn = [tuple(other_views("random", 3, seed=5, step=step)) for step in range(200)]
    assert drawn == [tuple(other_views("random", 3, seed=5, step=step)) for step in range(200)]
    assert all(source != view for sources in drawn for view, source in enumerate(sources))
    assert all(min(Counter(sources[view] for sources in drawn).values()) > 60 for view in range(3))
    assert other_views("random", 1) == [0]
    assert other_views("self", 3) == [0, 1, 2]


def hand(logits: Tensor, target: Tensor, mask: list[list[int]], present: list[list[int]]) -> float:
    """The loss of section 3.2 in plain Python: mean over clips of the mean over their views."""
    logp = (logits - logits.logsumexp(-1, keepdim=True)).tolist()
    total = 0.0
    clips = len(mask[0])
    for j in range(clips):
        views = [v for v in range(len(mask)) if present[v][j]]
        total += sum(-mask[v][j] * logp[v][j][int(target[v][j])] for v in views) / len(views)
    return total / clips


def test_loss_on_pseudo_labels_by_hand() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 3, dtype=torch.float64)
    targets = make_targets(P.log(), present=PRESENT)
    found = pseudo_label_loss(logits, targets, threshold=0.39, present=PRESENT)
    # Fused: 0.7 of class 0, 0.4 of class 0, and of the last clip its only view's 0.45 of class 0.
    assert found.labels.tolist() == [[0, 0, 0], [0, 0, 0]]
    mask = [[1, 1, 1], [1, 1, 0]]
    assert found.mask.int().tolist() == mask
    assert found.loss.item() == pytest.approx(hand(logits, found.labels, mask, PRESENT.int().tolist()), abs=1e-12)
    stricter = pseudo_label_loss(logits, targets, threshold=0.5, present=PRESENT)
    mask = [[1, 0, 0], [1, 0, 0]]
    assert stricter.mask.int().tolist() == mask
    assert stricter.loss.item() == pytest.approx(hand(logits, found.labels, mask, PRESENT.int().tolist()), abs=1e-12)


def test_each_view_learns_its_own_target_where_that_is_usable() -> None:
    logits = torch.randn(2, 3, 3, dtype=torch.float64)
    targets = make_targets(P.log(), kind="cross", present=PRESENT, sources=[1, 0])
    found = pseudo_label_loss(logits, targets, threshold=0.0, present=PRESENT)
    # View 0 of the last clip would learn what view 1 says, which is missing; view 1 is not there to learn.
    mask = [[1, 1, 0], [1, 1, 0]]
    assert found.mask.int().tolist() == mask
    assert found.labels[:, :2].tolist() == [[0, 0], [0, 1]]
    assert found.loss.item() == pytest.approx(hand(logits, found.labels, mask, PRESENT.int().tolist()), abs=1e-12)


def test_soft_targets_are_sharpened() -> None:
    logits = torch.randn(2, 3, 3, dtype=torch.float64)
    found = pseudo_label_loss(logits, Targets(P, PRESENT), threshold=0.0, soft=True, temperature=0.5)
    sharp = P.numpy() ** 2
    sharp = sharp / sharp.sum(-1, keepdims=True)
    logp = logits.log_softmax(-1).numpy()
    losses = -(sharp * logp).sum(-1) * PRESENT.numpy()
    assert found.loss.item() == pytest.approx(losses.mean(), abs=1e-12)


def test_supervised_loss_over_views() -> None:
    logits, labels = torch.randn(2, 3, 4, dtype=torch.float64), torch.tensor([3, 0, 1])
    loss, by_view = supervised_loss(logits, labels, present=PRESENT)
    ones = [[1, 1, 1], [1, 1, 1]]
    assert loss.item() == pytest.approx(hand(logits, labels.expand(2, 3), ones, PRESENT.int().tolist()), abs=1e-12)
    entropy = -logits.log_softmax(-1).gather(-1, labels.expand(2, 3)[..., None])[..., 0]
    assert by_view.tolist() == pytest.approx([entropy[0].mean().item(), entropy[1, :2].mean().item()])


def test_no_label_is_ignored() -> None:
    with pytest.raises(IndexError):  # -100 is what torch ignores by default
        supervised_loss(torch.randn(2, 3, 4), torch.tensor([3, -100, 1]))


def test_half_precision_is_not_used_for_losses() -> None:
    logits = torch.randn(1, 4, 5)
    full, _ = supervised_loss(logits, torch.arange(4))
    half, _ = supervised_loss(logits.to(torch.bfloat16), torch.arange(4))
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(full.item(), rel=0.05)


def test_adaptive_weights_follow_the_losses() -> None:
    weights = ViewWeights("adaptive", ("rgb", "tg"))
    torch.testing.assert_close(weights(), torch.tensor([0.5, 0.5]))
    weights.remember(torch.tensor([1.0, 2.0]))
    assert weights().tolist() == pytest.approx(np.exp([-1, -2]) / np.exp([-1, -2]).sum(), rel=1e-5)
    weights.remember(torch.tensor([3.0, 0.0]))
    means = [(0.99 * 1 + 3) / 1.99, 0.99 * 2 / 1.99]
    expected = [math.exp(-m) for m in means]
    assert weights().tolist() == pytest.approx([e / sum(expected) for e in expected], rel=1e-4)
    copy = ViewWeights("adaptive", ("rgb", "tg"))
    copy.load_state_dict(weights.state_dict())
    assert torch.equal(copy(), weights())
    assert ViewWeights([3, 1], ("rgb", "tg"))().tolist() == [0.75, 0.25]
    assert ViewWeights("exact", ("rgb", "tg"))() is None


def test_a_view_that_no_labelled_clip_has_gains_no_weight() -> None:
    weights = ViewWeights("adaptive", ("rgb", "tg", "audio"))
    given = [((2.0, 1.0, 0.0), (4, 4, 0)), ((2.0, 1.0, 3.0), (4, 4, 1)), ((1.0, math.nan, 0.0), (4, 4, 0))]
    for losses, clips in given:
        weights.remember(torch.tensor(losses), torch.tensor(clips))
    decayed = [0.99**2, 0.99, 1]
    # Audio begins with the mean of the others, 1.5; the loss that is not finite and the missing ones change nothing.
    audio = (0.99 * 1.5 + 3.0) / 1.99
    means = [np.average([2.0, 2.0, 1.0], weights=decayed), 1.0, audio]
    expected = np.exp(-np.array(means))
    assert weights().tolist() == pytest.approx(expected / expected.sum(), rel=1e-4)


@pytest.mark.parametrize("wrong", [[1.0], [1.0, -1.0], [0.0, 0.0], "equal"])
def test_wrong_weights_are_refused(wrong: object) -> None:
    with pytest.raises(ValueError, match="fusion is"):
        ViewWeights(wrong, ("rgb", "tg"))


def test_alignment_is_the_papers_formula() -> None:
    alignment = DistributionAlignment(2)
    alignment.count(torch.tensor([0, 0, 1, 0, 0, 0]))  # with the one each class starts from: 6 and 2
    q = torch.tensor([[[0.5, 0.5], [0.9, 0.1]]])
    usable = torch.tensor([[True, True]])
    aligned = alignment(q, usable)
    expected = q * torch.tensor([0.75, 0.25]) / torch.tensor([0.5, 0.5])
    assert torch.allclose(aligned, expected / expected.sum(-1, keepdim=True))
    assert torch.allclose(alignment.mean, 0.99 * torch.tensor([0.5, 0.5]) + 0.01 * torch.tensor([0.7, 0.3]))
    alignment.eval()
    before = alignment.mean.clone()
    alignment(q, usable)
    assert torch.equal(alignment.mean, before)
