"""How do images of different requests go through the model together?

What waits while the model computes is computed next, in one batch. Nobody waits for a batch to fill: an image that
comes alone is computed at once, alone; under load batches grow by themselves.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from topwork.answers import Seen

MOST = 8
"""Images in a batch at most: on a CPU larger ones gain nothing, and whoever is in one waits for all of it."""

LANES = 1
"""Batches of one model at once."""

See = Callable[[NDArray[np.uint8]], Seen]


class FullError(Exception):
    """No room for so many images."""


@dataclass(frozen=True)
class Batch:
    """What a batch was, for whoever keeps count."""

    images: int
    seconds: float


@dataclass(frozen=True)
class _Waiting:
    pixels: NDArray[np.uint8]  # (h, w, 3)
    answer: asyncio.Future[Seen]


class Batcher:
    """One model's queue. All methods but the model itself run in the event loop's thread."""

    def __init__(
        self, see: See, *, room: int, most: int = MOST, lanes: int = 1, told: Callable[[Batch], None] | None = None
    ) -> None:
        self._see, self._most, self._told = see, most, told or (lambda batch: None)
        self._lanes = lanes
        self._room = room
        self.taken = 0  # images that have a place: being decoded, waiting or being computed
        self._waiting: deque[_Waiting] = deque()
        self._some = asyncio.Event()
        self._workers = ThreadPoolExecutor(lanes, thread_name_prefix="model")
        self._runners: list[asyncio.Task[None]] = []

    def take(self, images: int) -> None:
        """Places for so many images, or FullError. `give_back` when their request is over, however it ends."""
        if self.taken + images > self._room:
            raise FullError
        self.taken += images

    def give_back(self, images: int) -> None:
        """The places are free again."""
        self.taken -= images

    async def see(self, pixels: NDArray[np.uint8]) -> Seen:  # (h, w, 3)
        """What the model sees in one image: a Seen of one row. Whatever the model raises is raised here."""
        if not self._runners:
            self._runners = [asyncio.create_task(self._run()) for _ in range(self._lanes)]
        waiting = _Waiting(pixels, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._some.set()
        return await waiting.answer

    async def close(self) -> None:
        """End the threads; what still waits is given up."""
        for runner in self._runners:
            runner.cancel()
        await asyncio.gather(*self._runners, return_exceptions=True)
        self._workers.shutdown(wait=True)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._some.wait()
            batch = self._next()
            if not batch:
                self._some.clear()
                continue
            start = time.perf_counter()
            try:
                seen = await loop.run_in_executor(self._workers, self._see, np.stack([w.pixels for w in batch]))
            except Exception as error:
                for w in batch:
                    if not w.answer.done():
                        w.answer.set_exception(error)
                continue
            self._told(Batch(len(batch), time.perf_counter() - start))
            for i, w in enumerate(batch):
                if not w.answer.done():  # whoever asked may have gone meanwhile
                    w.answer.set_result(_row(seen, i))

    def _next(self) -> list[_Waiting]:
        """The oldest ones that are still asked for, at most a batch, and no more than leaves the other lanes theirs."""
        found: list[_Waiting] = []
        share = min(self._most, -(-len(self._waiting) // self._lanes))
        while self._waiting and len(found) < share:
            w = self._waiting.popleft()
            if not w.answer.done():  # else its request has ended: nobody would read it
                found.append(w)
        return found


def _row(seen: Seen, i: int) -> Seen:
    one = slice(i, i + 1)
    return Seen(seen.scores[one], seen.pooled[one], tuple(m[one] for m in seen.maps))
