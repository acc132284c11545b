"""Random choices that are balanced over classes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from contrastive_core.errors import UserError
from ssl_vision.labels.choose import choose_per_class, hold_out

CLASSES = [f"class {i}" for i in range(10)]


def test_a_choice_has_as_many_of_every_class_and_holds_the_smaller_choice() -> None:
    labels = torch.arange(10).repeat_interleave(30)
    chosen = choose_per_class(labels, CLASSES, 7, seed=0)
    assert torch.equal(labels[chosen].bincount(), torch.full((10,), 7))
    assert len(chosen.unique()) == 70
    assert set(choose_per_class(labels, CLASSES, 3, seed=0).tolist()) < set(chosen.tolist())
    assert not torch.equal(choose_per_class(labels, CLASSES, 7, seed=1), chosen)


def test_a_class_with_too_few_images_is_named() -> None:
    with pytest.raises(UserError, match="class class 1 has 2 images, expected at least 3"):
        choose_per_class(torch.tensor([0, 0, 0, 1, 1]), CLASSES, 3, seed=0)


@given(
    counts=st.lists(st.integers(2, 30), min_size=1, max_size=5),
    share=st.floats(0.01, 0.99),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_what_is_held_out_is_a_share_of_every_class(counts: list[int], share: float, seed: int) -> None:
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    stays, held = hold_out(labels, CLASSES, share, seed=seed)
    assert sorted([*stays.tolist(), *held.tolist()]) == list(range(len(labels)))
    assert stays.tolist() == sorted(stays.tolist())
    for label, count in enumerate(counts):
        found = int((labels[held] == label).sum())
        assert 1 <= found <= count - 1
        assert abs(found - share * count) <= 1
    assert all(
        torch.equal(a, b) for a, b in zip(hold_out(labels, CLASSES, share, seed=seed), (stays, held), strict=True)
    )


def test_another_seed_holds_out_others() -> None:
    labels = torch.arange(4).repeat(25)
    assert not torch.equal(hold_out(labels, CLASSES, 0.2, seed=0)[1], hold_out(labels, CLASSES, 0.2, seed=1)[1])


def test_nothing_can_be_held_out_of_a_single_image() -> None:
    with pytest.raises(UserError, match="class class 1 has a single labelled image"):
        hold_out(torch.tensor([0, 0, 1]), CLASSES, 0.5, seed=0)
    with pytest.raises(UserError, match="between 0 and 1, got 1"):
        hold_out(torch.tensor([0, 0, 1, 1]), CLASSES, 1.0, seed=0)
