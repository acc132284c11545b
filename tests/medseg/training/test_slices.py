"""Which slices exist and are drawn: a function of seed and step, not of the number of processes."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from contrastive_core.errors import UserError
from ssl_medseg.training.slices import SliceDraws, slices_with, stack_slices
from tests.medseg.toy_cases import toy_case


def test_slices_know_their_case_place_and_classes() -> None:
    cases = [toy_case("a", slices=4), toy_case("b", slices=8, seed=1)]
    slices = stack_slices(cases)
    assert len(slices) == 12
    assert slices.names == ("a", "b")
    assert slices.case.tolist() == [0] * 4 + [1] * 8
    assert slices.number.tolist() == [*range(4), *range(8)]
    assert slices.partition(4).tolist() == [0, 1, 2, 3, 0, 0, 1, 1, 2, 2, 3, 3]
    for place in (0, 3, 4, 11):
        case, number = cases[int(slices.case[place])], int(slices.number[place])
        assert torch.equal(slices.images[place], case.slices[number])
        assert torch.equal(slices.truth[place], case.label[number])
    assert slices.presence(4).tolist()[:3] == [[True, True, False, False], [True] * 3 + [False], [True] * 3 + [False]]
    assert slices_with(slices, classes=3, least=3).tolist() == [1, 2, 5, 6, 7, 8, 9, 10]
    assert slices_with(slices, classes=3, least=2).tolist() == list(range(12))
    with pytest.raises(UserError, match="none of the 12 slices contains 4 classes or more; the maximum is 3"):
        slices_with(slices, classes=4, least=4)


def test_labels_can_be_replaced_and_may_be_absent() -> None:
    slices = stack_slices([toy_case("a"), toy_case("b", labelled=False)])
    assert slices.labels is None
    with pytest.raises(UserError, match="found no labels for a, b"):
        slices.presence(3)
    pseudo = torch.ones(12, 32, 32, dtype=torch.uint8)
    assert slices.with_labels(pseudo).presence(3).tolist() == [[False, True, False]] * 12
    with pytest.raises(UserError, match="no cases"):
        stack_slices([])


@pytest.mark.parametrize(("slices", "batch"), [(7, 3), (5, 20), (4, 4), (1, 6)])
def test_every_slice_is_drawn_as_often_as_every_other(slices: int, batch: int) -> None:
    pool = 10 + 3 * torch.arange(slices)
    draws = SliceDraws(pool, batch_size=batch, seed=4)
    seen = Counter(int(s) for step in range(slices) for s in draws.at(step).samples)
    assert set(seen.values()) == {batch}
    assert set(seen) == set(pool.tolist())
    for step in (0, 3):
        assert len(set(draws.at(step).ids.tolist())) == batch
    orders = {tuple(SliceDraws(pool, batch_size=slices, seed=4).at(step).samples.tolist()) for step in range(20)}
    assert len(orders) > 10 or slices == 1 or slices <= 4


def test_processes_share_the_batch_of_one_process() -> None:
    pool = torch.arange(5)
    alone = SliceDraws(pool, batch_size=6, seed=1)
    shared = [SliceDraws(pool, batch_size=6, seed=1, rank=rank, world_size=3) for rank in range(3)]
    for step in (9, 2):  # in any order
        together = [draws.at(step) for draws in shared]
        assert torch.equal(torch.cat([drawn.samples for drawn in together]), alone.at(step).samples)
        assert torch.equal(torch.cat([drawn.ids for drawn in together]), alone.at(step).ids)
    assert not torch.equal(SliceDraws(pool, batch_size=6, seed=2).at(0).samples, alone.at(0).samples)


@pytest.mark.parametrize(
    ("pool", "batch", "world", "said"), [(5, 0, 1, "0 on 1"), (5, 3, 2, "3 on 2"), (0, 2, 1, "no slices")]
)
def test_draws_that_cannot_be_are_refused(pool: int, batch: int, world: int, said: str) -> None:
    with pytest.raises(UserError, match=said):
        SliceDraws(torch.arange(pool), batch_size=batch, seed=0, world_size=world)
