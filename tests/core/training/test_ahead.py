"""Results that are computed in threads, in order, and how the threads end."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from contrastive_core.training.ahead import compute_ahead


def running() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]


@pytest.mark.parametrize("threads", [1, 3])
def test_results_come_in_order_and_a_few_ahead(threads: int) -> None:
    begun: list[int] = []
    ready = [threading.Event() for _ in range(8)]

    def square(number: int) -> int:
        begun.append(number)
        ready[number].set()
        return number**2

    results = compute_ahead(square, iter(range(8)), threads=threads)
    assert not begun
    for number in range(8):
        assert next(results) == number**2
        for later in range(number + 1, min(8, number + threads + 1)):
            assert ready[later].wait(60), "computed while the caller works"
        assert max(begun) <= number + threads, "no more results are held"
    assert not running(), "the threads end with the last result"
    assert list(results) == []
    assert list(compute_ahead(square, [], threads=threads)) == []


def test_computations_overlap() -> None:
    both = threading.Barrier(2, timeout=60)
    assert list(compute_ahead(lambda number: both.wait() >= 0 and number, range(4), threads=2)) == [0, 1, 2, 3]


def test_an_error_takes_the_place_of_its_result() -> None:
    def inverse(number: int) -> float:
        return 1 / number

    results = compute_ahead(inverse, [2, 1, 0, 4])
    assert [next(results), next(results)] == [0.5, 1.0]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert not running()
    last = compute_ahead(inverse, [2, 0])
    assert next(last) == 0.5
    with pytest.raises(ZeroDivisionError):
        next(last)


def test_threads_end_if_the_results_are_no_longer_wanted() -> None:
    def endless() -> Iterator[int]:
        number = 0
        while True:
            yield number
            number += 1

    results = compute_ahead(str, endless(), threads=2)
    assert next(results) == "0"
    results.close()
    assert not running()


def test_a_long_call_learns_that_nobody_waits_for_it() -> None:
    ended, waiting = threading.Event(), threading.Event()

    def long(number: int) -> bool:
        if number == 0:
            return True
        waiting.set()
        return ended.wait(60)

    results = compute_ahead(long, range(9), threads=2, ended=ended)
    assert next(results)
    assert waiting.wait(60)
    results.close()
    assert ended.is_set()
    assert not running()
