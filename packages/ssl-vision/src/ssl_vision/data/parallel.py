"""Work on every image of a set, by several threads: decoding and hashing leave Python's lock alone."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_T = TypeVar("_T")


def map_images(function: Callable[[int], _T], count: int, *, chunk: int = 64) -> Iterator[_T]:
    """Yield ``function(0) .. function(count - 1)``, in order, computed by as many threads as there are cores.

    The first exception in this order is raised, and what has not begun by then is left undone. A thread computes
    `chunk` results before it takes others on.
    """
    threads = min(32, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)

    def compute(start: int) -> list[_T]:
        return [function(index) for index in range(start, min(start + chunk, count))]

    with ThreadPoolExecutor(threads) as pool:
        for results in pool.map(compute, range(0, count, chunk)):  # left early, it cancels what has not begun
            yield from results
