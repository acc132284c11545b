"""Class-balanced batches: which labelled samples each step uses."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from contrastive_core.errors import UserError
from contrastive_core.training import ClassBatches

LABELS = torch.tensor([7, 3, 7, 3, 5, 7, 3, 5, 7, 3, 5, 7, 7, 9, 3, 9, 5, 9, 9, 3])  # 6 x 3, 4 x 5, 6 x 7, 4 x 9


def batches(labels: Tensor = LABELS, *, classes: int = 2, samples: int = 2, **keywords: int) -> ClassBatches:
    return ClassBatches(labels, classes_per_batch=classes, samples_per_class=samples, **{"seed": 1, **keywords})


def test_every_batch_holds_as_many_different_samples_of_each_of_its_classes() -> None:
    source = batches(classes=3, samples=4)
    for step in range(20):
        samples, copies = source.at(step)
        assert sorted(Counter(LABELS[samples].tolist()).values()) == [4, 4, 4]
        assert len(set(samples.tolist())) == len(samples) == source.batch_size == 12
        assert not copies.any()


def test_classes_and_samples_take_turns() -> None:
    source = batches()
    assert source.steps_per_round == 2
    classes: Counter[int] = Counter()
    seen: Counter[int] = Counter()
    for turn in range(12):
        in_round = [int(c) for step in (0, 1) for c in LABELS[source.at(2 * turn + step).samples].unique()]
        assert sorted(in_round) == [3, 5, 7, 9]
        classes.update(in_round)
        for step in (0, 1):
            seen.update(source.at(2 * turn + step).samples.tolist())
    assert set(classes.values()) == {12}
    counts = [(LABELS[i], n) for i, n in seen.items()]
    # 24 samples were drawn of a class: each of its 6, or 4, equally often.
    assert {(int((label == LABELS).sum()), n) for label, n in counts} == {(6, 4), (4, 6)}
    assert len(seen) == len(LABELS)


def test_the_order_is_random_and_a_function_of_the_seed() -> None:
    first, again, other = batches(), batches(), batches(seed=2)
    steps = [first.at(step).samples.tolist() for step in range(8)]
    assert [again.at(step).samples.tolist() for step in (7, 3, 0)] == [steps[7], steps[3], steps[0]]
    assert [other.at(step).samples.tolist() for step in range(8)] != steps
    assert len({tuple(step) for step in steps}) == 8


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(0, 50), st.integers(0, 2**40))
def test_processes_share_a_batch(world: int, share: int, step: int, seed: int) -> None:
    samples = max(2, world * share)
    samples += -samples % world
    whole = batches(classes=3, samples=samples, seed=seed).at(step)
    parts = [
        batches(classes=3, samples=samples, seed=seed, rank=rank, world_size=world).at(step) for rank in range(world)
    ]
    by_class = [torch.cat(rows).tolist() for rows in zip(*(p.samples.chunk(3) for p in parts), strict=True)]
    assert by_class == [rows.tolist() for rows in whole.samples.chunk(3)]
    assert [torch.cat(rows).tolist() for rows in zip(*(p.copy.chunk(3) for p in parts), strict=True)] == [
        rows.tolist() for rows in whole.copy.chunk(3)
    ]
    for part in parts:
        assert LABELS[part.samples].tolist() == LABELS[parts[0].samples].tolist()


def test_a_class_with_too_few_samples_repeats_them() -> None:
    source = batches(torch.tensor([0, 0, 0, 1, 1, 1, 1, 1]), samples=5)
    for step in range(6):
        samples, copies = source.at(step)
        few = samples < 3
        assert sorted(zip(samples[few].tolist(), copies[few].tolist(), strict=True))[::1] == sorted(
            (i, k) for k in range(2) for i in samples[few][k * 3 : k * 3 + 3].tolist()
        )
        assert sorted(copies[few].tolist()) == [0, 0, 0, 1, 1]
        assert sorted(samples[~few].tolist()) == [3, 4, 5, 6, 7]
        assert not copies[~few].any()


def test_only_equality_and_order_of_labels_matter() -> None:
    assert [batches(3 * LABELS - 40).at(step).samples.tolist() for step in range(5)] == [
        batches().at(step).samples.tolist() for step in range(5)
    ]


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"classes": 5}, "found labelled samples of 4 classes, but batches of 5 classes"),
        ({"classes": 1}, "expected at least 2"),
        ({"samples": 1}, "1 samples per class were requested on 1 process.*at least 2"),
        ({"samples": 3, "world_size": 2}, "3 samples per class were requested on 2 process.*multiple"),
    ],
)
def test_batches_that_cannot_be_made_are_refused(keywords: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        batches(**keywords)


def test_a_rank_out_of_its_range_is_refused() -> None:
    with pytest.raises(ValueError, match="rank is 2"):
        batches(rank=2, world_size=2)
