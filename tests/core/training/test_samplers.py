"""Which samples each step uses."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from itertools import chain

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset, TensorDataset

from contrastive_core.errors import UserError
from contrastive_core.rng import derive, permutation
from contrastive_core.training import Batches, make_loader
from contrastive_core.training.samplers import StepLoader


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 7), st.integers(1, 4), st.integers(0, 40), st.integers(0, 30), st.integers(0, 2**40))
def test_any_start_and_world_size_sees_the_same_global_batches(
    batch: int, world: int, spare: int, start: int, seed: int
) -> None:
    n, total = batch * world + spare, 31
    steps_per_epoch = n // (batch * world)
    reference = []
    for epoch in itertools.count():
        order = permutation(derive(seed, "order", epoch), n).tolist()
        reference += [order[i * batch * world : (i + 1) * batch * world] for i in range(steps_per_epoch)]
        if len(reference) >= total:
            break
    parts = [
        Batches(n, batch_size=batch, seed=seed, rank=r, world_size=world, start_step=start, total_steps=total)
        for r in range(world)
    ]
    assert {part.steps_per_epoch for part in parts} == {steps_per_epoch}
    assert {len(part) for part in parts} == {total - start}
    found = [list(chain.from_iterable(step)) for step in zip(*parts, strict=True)]
    assert found == reference[start:total]
    assert torch.cat([part.at(start) for part in parts]).tolist() == reference[start]


def test_an_epoch_sees_every_sample_once_and_the_next_another_order() -> None:
    batches = Batches(12, batch_size=4, seed=3, total_steps=6)
    steps = list(batches)
    assert sorted(chain.from_iterable(steps[:3])) == list(range(12))
    assert sorted(chain.from_iterable(steps[3:])) == list(range(12))
    assert steps[:3] != steps[3:]
    assert batches.at(5).tolist() == steps[5]
    assert batches.at(0).tolist() == steps[0]  # back again
    assert list(batches) == steps
    assert list(Batches(12, batch_size=4, seed=4, total_steps=6)) != steps


@pytest.mark.parametrize("workers", [0, 2])
def test_loader(workers: int) -> None:
    data = TensorDataset(torch.arange(10))
    batches = Batches(10, batch_size=3, seed=1, start_step=1, total_steps=7)
    before = torch.random.get_rng_state()
    found = [x.tolist() for (x,) in make_loader(data, batches, workers=workers)]
    assert found == list(batches)
    assert torch.equal(torch.random.get_rng_state(), before)  # the loader leaves the global generator alone
    assert [x.tolist() for (x,) in DataLoader(data, batch_sampler=batches)] == found


@pytest.mark.parametrize(
    ("keywords", "kind", "message"),
    [
        ({"batch_size": 11}, UserError, r"found 10 samples, but one step needs 11 .*Lower batch_size"),
        ({"batch_size": 4, "world_size": 3}, UserError, r"one step needs 12 \(batch_size 4 on 3"),
        ({"batch_size": 0}, UserError, "expected at least 1"),
        ({"batch_size": 1, "rank": 2, "world_size": 2}, ValueError, "0 <= rank < world_size = 2"),
        ({"batch_size": 1, "start_step": 6}, ValueError, "start_step is 6"),
    ],
)
def test_errors(keywords: dict[str, int], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        Batches(10, seed=0, total_steps=5, **keywords)


class Squares(Dataset[int | UserError]):
    """The square of every step, or an error."""

    def __init__(self, bad: int) -> None:
        self.bad, self.read = bad, list[int]()

    def __getitem__(self, step: int) -> int | UserError:
        self.read.append(step)
        return UserError(f"step {step} is damaged") if step == self.bad else step**2


@pytest.mark.parametrize("workers", [0, 2])
def test_steps_are_loaded_from_any_of_them(workers: int) -> None:
    data = Squares(bad=5)
    loader: StepLoader[int] = StepLoader(data, total_steps=8, workers=workers)
    before = torch.random.get_rng_state()
    steps = [2, 3, 4, 7, 0, 1]  # forward, on, and back
    assert [next(loader.at(step, pin_memory=False)) for step in steps] == [step**2 for step in steps]
    assert torch.equal(torch.random.get_rng_state(), before)
    with pytest.raises(UserError, match="step 5 is damaged"):
        next(loader.at(5, pin_memory=False))
    with pytest.raises(StopIteration):
        next(loader.at(8, pin_memory=False))
    if not workers:
        ahead = [2, 3, 4, 5, 7, 0, 1, 2, 5, 6]  # 5, 2 and 6 are given up if they have not begun
        assert Counter(data.read) <= Counter(ahead), "one batch ahead, and nothing twice"


class Meeting(Dataset[int]):
    """Tells when the loading of a step begins; the one of step 2 fails."""

    def __init__(self) -> None:
        self.begun = [threading.Event() for _ in range(4)]

    def __getitem__(self, step: int) -> int:
        self.begun[step].set()
        if step == 2:
            raise OSError("step 2")
        return step


def loading() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]


def test_a_step_is_loaded_while_the_one_before_is_trained() -> None:
    data = Meeting()
    loader: StepLoader[int] = StepLoader(data, total_steps=2, workers=0)
    assert next(loader.at(0, pin_memory=False)) == 0
    assert data.begun[1].wait(60)
    assert next(loader.at(1, pin_memory=False)) == 1
    assert not loading(), "the thread ends with the last batch"
    loader = StepLoader(data, total_steps=4, workers=0)
    assert [next(loader.at(step, pin_memory=False)) for step in (0, 1)] == [0, 1]
    assert data.begun[2].wait(60)
    with pytest.raises(OSError, match="step 2"):  # in its own step
        next(loader.at(2, pin_memory=False))
    assert not loading()
    loader = StepLoader(data, total_steps=4, workers=0)
    next(loader.at(0, pin_memory=False))
    del loader
    assert not loading(), "the thread ends with a run that is stopped"
