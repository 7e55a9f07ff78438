"""How do stored activations get to where the network learns from them?

On the CPU a batch is read from the mapped file when it is wanted. On an accelerator nothing may wait for that: views
that fit its memory are copied there once and taken apart there; of others the next batch is read and on its way while
this one is learnt from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Ints = NDArray[np.int64]
Mapped = NDArray[np.generic]

HELD_SHARE = 0.25
"""Of an accelerator's free memory that views may take: training itself wants the rest."""

PIECE = 64 * 2**20
"""Bytes that are copied to an accelerator at a time, so that a view needs no second place in memory."""


class Feed:
    """The views of one training: `view(number)` gives the mapped activations of all images (n, h, w, c)."""

    def __init__(self, view: Callable[[int], Mapped], labels: Ints, device: torch.device) -> None:
        self._view, self._device = view, device
        self._apart = device.type != "cpu"  # its memory is not the one that files are mapped into
        self._labels = torch.from_numpy(labels)  # (n,)
        self._labels_there = self._labels.to(device)
        self._room = int(HELD_SHARE * free_bytes(device))
        self._held: dict[int, Tensor] = {}

    def batches(self, number: int, batches: Sequence[Ints]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Of view `number` each batch of rows: activations (b, h, w, c) and labels (b,) on the device, and the labels
        once more on the CPU, so that nobody has to ask the device for them.
        """
        if not self._apart:
            stored = self._view(number)
            for rows in batches:
                yield torch.from_numpy(stored[rows]), self._labels[rows], self._labels[rows]
            return
        held = self._hold(number)
        for (rows, there), x in zip(self._rows_there(batches), self._streamed(number, batches, held), strict=True):
            yield held[there] if held is not None else x, self._labels_there[there], self._labels[rows]

    def _rows_there(self, batches: Sequence[Ints]) -> Iterator[tuple[Ints, Tensor]]:
        every = torch.from_numpy(np.concatenate([*batches, np.zeros(0, np.int64)])).to(self._device)
        return zip(batches, torch.split(every, [len(rows) for rows in batches]), strict=True)

    def _streamed(self, number: int, batches: Sequence[Ints], held: Tensor | None) -> Iterator[Tensor]:
        """Batches read one ahead, in a thread; nothing where the view is on the device."""
        if held is not None:
            yield from (held[:0] for _ in batches)
            return
        stored = self._view(number)

        def read(rows: Ints) -> Tensor:
            x = torch.from_numpy(stored[rows])
            return x.pin_memory() if self._device.type == "cuda" else x

        with ThreadPoolExecutor(1) as reader:
            ahead = [reader.submit(read, rows) for rows in batches[:1]]
            for i in range(len(batches)):
                now = ahead.pop().result()
                ahead += [reader.submit(read, rows) for rows in batches[i + 1 : i + 2]]
                yield now.to(self._device, non_blocking=True)

    def _hold(self, number: int) -> Tensor | None:
        """The whole view on the device; those held longest give way. None where it does not fit there at all."""
        if number in self._held:
            return self._held[number]
        stored = self._view(number)
        if stored.nbytes > self._room:
            return None
        while self._held and stored.nbytes * (1 + len(self._held)) > self._room:
            del self._held[next(iter(self._held))]
        try:
            there = torch.empty(stored.shape, dtype=torch.from_numpy(stored[:0].copy()).dtype, device=self._device)
        except torch.OutOfMemoryError:  # the training, or another program, has taken what was free
            self._held, self._room = {}, 0
            return None
        step = max(1, PIECE * len(stored) // max(1, stored.nbytes))
        for i in range(0, len(stored), step):
            there[i : i + step].copy_(torch.from_numpy(stored[i : i + step].copy()))
        self._held[number] = there
        return there


def free_bytes(device: torch.device) -> int:
    """Free memory of an accelerator of its own; 0 where it has none, or does not say."""
    if device.type == "cpu":
        return 0
    ask = getattr(torch.get_device_module(device), "mem_get_info", None)
    return int(ask(device)[0]) if ask is not None else 0
