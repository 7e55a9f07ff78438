"""Whichever way activations take to the device, the same images arrive with the same labels, in order."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from topwork import feed
from topwork.feed import Feed, free_bytes

CPU = torch.device("cpu")


def views(numbers: int, n: int, dtype: type = np.float16) -> list[NDArray[np.generic]]:
    rng = np.random.default_rng(n)
    return [rng.integers(0, 200, (n, 2, 3, 4)).astype(dtype) for _ in range(numbers)]


@given(st.integers(1, 12), st.integers(1, 5), st.integers(0, 6), st.sampled_from([np.float16, np.uint8]))
def test_an_accelerators_ways_give_what_the_cpus_way_gives(n: int, size: int, fit: int, dtype: type) -> None:
    """`fit`: how many of four views have room on the device; with none each batch is read ahead of its turn."""
    stored = views(4, n, dtype)
    labels = np.arange(n) % 3
    plain, apart = Feed(stored.__getitem__, labels, CPU), Feed(stored.__getitem__, labels, CPU)
    apart._apart, apart._room = True, fit * stored[0].nbytes
    order = np.random.default_rng(size).permutation(n)
    batches = [order[i : i + size] for i in range(0, n, size)]
    for number in (1, 2, 3, 1, 0):
        expected, found = list(plain.batches(number, batches)), list(apart.batches(number, batches))
        assert len(found) == len(expected) == len(batches)
        for rows, one, other in zip(batches, expected, found, strict=True):
            np.testing.assert_array_equal(one[0].numpy(), stored[number][rows])
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
        assert len(apart._held) <= min(fit, 4)
    assert bool(apart._held) == (fit > 0)
    assert list(apart.batches(0, [])) == []


def test_a_view_is_copied_in_pieces_once(monkeypatch: pytest.MonkeyPatch) -> None:
    stored, asked = views(1, 10), 0
    monkeypatch.setattr(feed, "PIECE", stored[0].nbytes // 3)

    def view(number: int) -> NDArray[np.generic]:
        nonlocal asked
        asked += 1
        return stored[number]

    found = Feed(view, np.zeros(10, np.int64), CPU)
    found._apart, found._room = True, stored[0].nbytes
    for _ in range(3):
        (x, _, _), = found.batches(0, [np.arange(10)])  # fmt: skip
        np.testing.assert_array_equal(x.numpy(), stored[0])
    assert asked == 1


def test_a_mapped_file_is_read_as_it_is(tmp_path: Path) -> None:
    stored = views(1, 6)[0]
    stored.tofile(tmp_path / "view")
    mapped = np.memmap(tmp_path / "view", dtype=np.float16, mode="r", shape=stored.shape)
    for room in (0, stored.nbytes):
        found = Feed(lambda _: mapped, np.arange(6), CPU)
        found._apart, found._room = True, room
        (x, y, labels), = found.batches(0, [np.array([4, 1])])  # fmt: skip
        np.testing.assert_array_equal(x.numpy(), stored[[4, 1]])
        assert y.tolist() == labels.tolist() == [4, 1]


def test_an_interrupted_reader_ends() -> None:
    stored = views(1, 6)
    found = Feed(stored.__getitem__, np.arange(6), CPU)
    found._apart, found._room = True, 0
    batches = found.batches(0, [np.array([i]) for i in range(6)])
    before = threading.active_count()
    next(batches)
    assert threading.active_count() == before + 1
    batches.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_the_cpu_has_no_memory_of_its_own() -> None:
    assert free_bytes(CPU) == 0


def test_a_view_that_no_longer_fits_is_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The training, or another program, may take the memory that was free at first."""
    stored = views(2, 6)
    found = Feed(stored.__getitem__, np.arange(6), CPU)
    found._apart, found._room = True, 2 * stored[0].nbytes
    rows = [np.array([3, 1]), np.array([5])]
    before = [x.numpy() for x, _, _ in found.batches(0, rows)]

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "empty", full)
    after = [x.numpy() for x, _, _ in found.batches(1, rows)]
    for part, one, other in zip(rows, before, after, strict=True):
        np.testing.assert_array_equal(one, stored[0][part])
        np.testing.assert_array_equal(other, stored[1][part])
    assert found._held == {} and found._room == 0
