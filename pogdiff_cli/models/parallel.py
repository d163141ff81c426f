"""Independent pieces of work on all cores, each piece on one.

Many small products that each spread over all cores wait for the slowest core every time; one piece a core does
not, and its result does not depend on how many cores there are.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def cores() -> int:
    """Cores that this process may use, as OMP_NUM_THREADS limits them."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return min(allowed, int(asked)) if asked.isdigit() and int(asked) else allowed


@contextmanager
def on_one_core() -> Iterator[None]:
    """Torch on one core: a chain of small steps loses more by waiting than it gains by spreading."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def one_core_each(work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """``work`` of each item, in order; only a few items ahead are held in memory."""
    import torch
    from threadpoolctl import threadpool_limits

    before, count = torch.get_num_threads(), cores()
    pending: deque[Future[R]] = deque()
    try:
        with (
            threadpool_limits(1, user_api="blas"),
            ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as pool,
        ):
            for item in items:
                pending.append(pool.submit(work, item))
                if len(pending) > 2 * count:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
    finally:
        torch.set_num_threads(before)
