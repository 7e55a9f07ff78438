"""How is the next batch made ready, and how are several computed at once?

Threads serve: Pillow decodes and resizes, and networks compute, outside the interpreter's lock. They need nothing that
spawned processes would need on macOS and Windows, and nothing has to be started or copied.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import accumulate, pairwise
from typing import TypeVar

AHEAD = 3
"""Batches prepared ahead: enough that a slow file does not stall the network, bounded memory."""

T = TypeVar("T")
R = TypeVar("R")
W = TypeVar("W")


def batches(
    items: Sequence[T],
    make: Callable[[T], R],
    size: int,
    *,
    workers: int | None = None,
    ahead: int = AHEAD,
    at_once: bool = False,
) -> Generator[list[tuple[T, R]]]:
    """Items with what `make` gives for each, in order, in batches of `size`, prepared in threads.

    Begun when the first is asked for, `ahead` batches beyond it. One thread at first; twice as many whenever the caller
    had to wait for a batch, up to `workers` (by default one per processor); all of them from the start where the
    processor has nothing else to do (`at_once`). What `make` raises comes out here.
    """
    todo = [items[i : i + size] for i in range(0, len(items), size)]
    yield from _begun(todo, make, workers=workers, ahead=ahead, at_once=at_once)


def _begun(
    todo: Sequence[Sequence[T]], make: Callable[[T], R], *, workers: int | None, ahead: int, at_once: bool
) -> Generator[list[tuple[T, R]]]:
    """The same, begun when it is called."""
    most = workers or os.cpu_count() or 1
    gate = _Gate(most, most if at_once else 1)

    def passed(item: T) -> R:
        with gate:
            return make(item)

    pool = ThreadPoolExecutor(max_workers=most)

    def begun(group: Sequence[T]) -> tuple[Sequence[T], list[Future[R]]]:
        return group, [pool.submit(passed, item) for item in group]

    under_way = deque(begun(group) for group in todo[:ahead])

    def made() -> Generator[list[tuple[T, R]]]:
        try:
            for i in range(len(todo)):
                group, futures = under_way.popleft()
                if not all(future.done() for future in futures):
                    gate.widen()
                results = [future.result() for future in futures]
                if i + ahead < len(todo):
                    under_way.append(begun(todo[i + ahead]))
                yield list(zip(group, results, strict=True))
        finally:  # also when the caller is interrupted: what waits is dropped
            pool.shutdown(wait=False, cancel_futures=True)

    return made()


def flow(
    items: Sequence[T], make: Callable[[T], R], work: Callable[[list[tuple[T, R]]], W], size: int, *, lanes: int,
    ahead: int = AHEAD, at_once: bool = False,
) -> Iterator[tuple[list[tuple[T, R]], W]]:  # fmt: skip
    """Batches with what `work` gives for each, in order; `lanes` of them are worked on at once, beside the caller.

    They are of `size`, and smaller towards the end where there are several lanes (`shrinking`). Preparing begins when
    it is called, working when the first batch is asked for. What `make` or `work` raises comes out here.
    """
    ends = list(accumulate(shrinking(len(items), size, lanes), initial=0))
    todo = [items[start:end] for start, end in pairwise(ends)]
    prepared = _begun(todo, make, workers=None, ahead=ahead, at_once=at_once)

    def worked() -> Iterator[tuple[list[tuple[T, R]], W]]:
        under_way: deque[tuple[list[tuple[T, R]], Future[W]]] = deque()
        with ThreadPoolExecutor(max_workers=lanes) as pool:
            try:
                for batch in prepared:
                    under_way.append((batch, pool.submit(work, batch)))
                    if len(under_way) > lanes:  # one waits, so that a lane that ends has something to do
                        done, future = under_way.popleft()
                        yield done, future.result()
                while under_way:
                    done, future = under_way.popleft()
                    yield done, future.result()
            finally:
                prepared.close()
                pool.shutdown(wait=True, cancel_futures=True)

    return worked()


def shrinking(items: int, size: int, lanes: int) -> Iterator[int]:
    """How many of so many items each batch takes, so that no lane ends long before the others.

    Never more than half of each lane's share of what is left (half of guided self-scheduling: Polychronopoulos and
    Kuck, 1987); one lane has nobody to wait for.
    """
    while items > 0:
        batch = size if lanes == 1 else min(size, -(-items // (2 * lanes)))
        yield min(batch, items)
        items -= batch


class _Gate:
    """Lets few threads through at a time, later more."""

    def __init__(self, most: int, first: int = 1) -> None:
        self._most, self.width = most, first
        self._room = threading.Semaphore(first)

    def widen(self) -> None:
        more = min(self.width, self._most - self.width)
        self.width += more
        if more:
            self._room.release(more)

    def __enter__(self) -> None:
        self._room.acquire()

    def __exit__(self, *_: object) -> None:
        self._room.release()
