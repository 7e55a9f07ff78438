"""How is the next batch made ready while this one is worked on?"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

AHEAD = 3
"""Batches prepared ahead: enough that a slow file does not stall the network, bounded memory."""

T = TypeVar("T")
R = TypeVar("R")


def batches(items: Sequence[T], make: Callable[[T], R], size: int) -> Iterator[list[tuple[T, R]]]:
    """Items with what `make` gives for each, in order, in batches of `size`, prepared in threads.

    Threads serve because Pillow decodes and resizes outside the interpreter's lock. What `make` raises
    comes out here.
    """
    todo = [items[i : i + size] for i in range(0, len(items), size)]
    ahead: deque[tuple[Sequence[T], list[Future[R]]]] = deque()
    with ThreadPoolExecutor(max_workers=max(1, (os.cpu_count() or 2) // 2)) as pool:
        try:
            for group in todo[:AHEAD]:
                ahead.append((group, [pool.submit(make, item) for item in group]))
            for i in range(len(todo)):
                group, futures = ahead.popleft()
                results = [future.result() for future in futures]
                if i + AHEAD < len(todo):
                    ahead.append((todo[i + AHEAD], [pool.submit(make, item) for item in todo[i + AHEAD]]))
                yield list(zip(group, results, strict=True))
        finally:  # also when the caller is interrupted: what waits is dropped
            pool.shutdown(wait=False, cancel_futures=True)
