"""How are the cores shared among batches that are computed at once?

Several batches at once, each on few threads, instead of one batch on all of them: the threads of one operation wait for
each other after each of a network's hundreds of operations, and where another program takes a core for a moment, all
of them wait. Lanes share nothing, so nobody waits (bench/engine.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

MOST = 8
"""Lanes at most; on more cores each lane has several threads. Eight batches of VGG's first maps take 800 MB."""


@dataclass(frozen=True)
class Lanes:
    """How many batches are computed at once, on how many threads each."""

    count: int
    threads: int


def shared(cores: int) -> Lanes:
    """The lanes for so many cores."""
    count = min(cores, MOST)
    return Lanes(count, cores // count)


@contextmanager
def lanes(device: torch.device) -> Iterator[Lanes]:
    """Within it, PyTorch computes with a lane's threads; on an accelerator there is one lane, and nothing changes.

    PyTorch's number of threads is the process's own: whoever computes in another thread meanwhile is slowed down.
    """
    before = torch.get_num_threads()
    if device.type != "cpu":
        yield Lanes(1, before)
        return
    found = shared(before)
    torch.set_num_threads(found.threads)
    try:
        yield found
    finally:
        torch.set_num_threads(before)
