"""Work in background threads, a bounded number of results ahead of whoever uses them."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_background(
    function: Callable[[Item], Result], items: Iterable[Item], ahead: int, workers: int
) -> Generator[Result, None, None]:
    """``function`` of each item, in order; at most ``ahead`` results are under way or waiting.

    The threads end after their current item when the iterator is exhausted, closed or dropped, or when
    ``function`` raises; its exception is raised here.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix="mf-deploy-background")
    pending: deque[Future[Result]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
