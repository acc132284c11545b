"""Compute results in threads while the caller works on earlier ones."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event
from typing import TypeVar

S = TypeVar("S")
T = TypeVar("T")


def compute_ahead(
    function: Callable[[S], T], items: Iterable[S], *, threads: int = 1, ended: Event | None = None
) -> Generator[T, None, None]:
    """Yield ``function(item)`` for every item, in order, computed in threads while the caller uses earlier results.

    Decoders, resampling and networks release the interpreter's lock, so that reading and computing overlap. The threads
    end with the last result, and not later, because a command that follows in the same process may fork.

    Args:
        function: Function to call; it must be safe to call in several threads if there are several.
        items: Its arguments.
        threads: Number of threads, and of results that are computed ahead.
        ended: Set when the caller stops, also by Ctrl-C, which then waits for the calls that are running: a long
            `function` looks at it to stop early.

    Raises:
        Exception: An exception of `function` is raised in place of its result; later results are lost.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix="ahead")
    futures: deque[Future[T]] = deque()
    try:
        for item in items:
            futures.append(pool.submit(function, item))
            if len(futures) > threads:
                yield futures.popleft().result()
        while futures:
            result = futures.popleft().result()
            if not futures:
                pool.shutdown()
            yield result
    finally:
        if ended is not None:
            ended.set()
        pool.shutdown(cancel_futures=True)
