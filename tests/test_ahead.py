"""What is made ready ahead and worked on side by side comes out in order, whole, and fails where it should."""

from __future__ import annotations

import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from topwork import ahead
from topwork.ahead import batches, flow, shrinking


@settings(max_examples=40, deadline=None)
@given(n=st.integers(0, 40), size=st.integers(1, 7), workers=st.integers(1, 5), lanes=st.integers(1, 5))
def test_everything_comes_out_once_and_in_order(n: int, size: int, workers: int, lanes: int) -> None:
    expected = [[(i, i * i) for i in range(start, min(n, start + size))] for start in range(0, n, size)]
    assert list(batches(range(n), lambda i: i * i, size, workers=workers)) == expected
    found = list(flow(range(n), lambda i: i * i, lambda b: sum(x for _, x in b), size, lanes=lanes))
    assert [pair for b, _ in found for pair in b] == [pair for b in expected for pair in b]
    if lanes == 1:
        assert [b for b, _ in found] == expected
    assert [total for _, total in found] == [sum(x for _, x in b) for b, _ in found]


@given(n=st.integers(0, 400), size=st.integers(1, 16), lanes=st.integers(2, 16))
def test_no_lane_ends_long_before_the_others(n: int, size: int, lanes: int) -> None:
    """Each image taking as long as any other, all is done as soon as it can be, but for one image."""
    sizes = list(shrinking(n, size, lanes))
    assert sum(sizes) == n
    assert all(1 <= s <= size for s in sizes)
    assert sizes == sorted(sizes, reverse=True)
    busy = [0] * lanes  # until when each lane is at work
    for s in sizes:
        busy.sort()
        busy[0] += s
    assert max(busy) - min(busy) <= 1
    if n >= 2 * lanes * size:
        assert sizes[0] == size


def test_a_batch_is_made_ready_while_others_are_worked_on_and_written() -> None:
    """Three places meet at once: one that makes, one that works, and the caller; a barrier would wait for ever else."""
    meeting = threading.Barrier(3, timeout=30)
    made, worked = iter(range(100)), iter(range(100))

    def make(i: int) -> int:
        if next(made) == 2:  # the first batches are on their way
            meeting.wait()
        return i

    def work(batch: list[tuple[int, int]]) -> int:
        if next(worked) == 1:
            meeting.wait()
        return len(batch)

    for number, _ in enumerate(flow(range(20), make, work, 1, lanes=1)):
        if number == 0:
            meeting.wait()
    assert not meeting.broken


def test_lanes_work_at_once_and_no_more_of_them_than_were_asked_for() -> None:
    meeting, lock = threading.Barrier(3, timeout=30), threading.Lock()
    now, most = 0, 0

    def work(_: object) -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        meeting.wait()
        with lock:
            now -= 1

    assert len(list(flow(range(9), lambda i: i, work, 1, lanes=3))) == 9
    assert most == 3


def test_little_is_made_ahead_of_a_caller_who_is_slow() -> None:
    """Memory does not grow with the number of images: what is made, is worked on, or waits, is bounded."""
    made = []
    for number, _ in enumerate(flow(range(200), made.append, len, 2, lanes=2)):
        if number == 10:
            time.sleep(0.1)  # time enough to run away
            assert len(made) <= 2 * (10 + 1 + 3 + ahead.AHEAD)
            break


def test_preparing_begins_before_the_first_batch_is_asked_for() -> None:
    there = threading.Event()

    def make(i: int) -> int:
        if i == 11:
            there.set()
        return i

    passed = flow(range(40), make, len, 2, lanes=1, ahead=6)
    assert there.wait(30)
    assert [n for _, n in passed] == [2] * 20


@pytest.mark.parametrize("where", ["make", "work"])
def test_what_goes_wrong_comes_out_and_what_waits_is_dropped(where: str) -> None:
    done = []

    def fails(i: int) -> int:
        if i == 7:
            raise RuntimeError("seven")
        done.append(i)
        return i

    make = fails if where == "make" else int
    work = len if where == "make" else lambda batch: [fails(i) for i, _ in batch]
    before = threading.active_count()
    with pytest.raises(RuntimeError, match="seven"):
        list(flow(range(1000), make, work, 1, lanes=2))
    assert len(done) < 100
    for _ in range(100):
        if threading.active_count() <= before:
            break
        time.sleep(0.05)
    assert threading.active_count() <= before


def test_threads_come_where_the_caller_has_to_wait() -> None:
    """One is enough where everything is there in time; a slow source gets up to as many as there may be."""
    gate = ahead._Gate(6)
    assert gate.width == 1
    widths = []
    for _ in range(4):
        gate.widen()
        widths.append(gate.width)
    assert widths == [2, 4, 6, 6]
    inside, most, lock = 0, 0, threading.Lock()

    def make(i: int) -> int:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        time.sleep(0.002)
        with lock:
            inside -= 1
        return i

    list(batches(range(120), make, 10, workers=4))
    assert most == 4
    most = 0
    for _ in batches(range(40), make, 2, workers=4):
        time.sleep(0.03)  # the caller is the slow one
    assert most <= 2  # one, and one more for the very first batch


def test_all_threads_begin_where_the_processor_has_nothing_else_to_do() -> None:
    together = threading.Barrier(4)  # broken unless four are inside at once, before anybody has waited for a batch

    def make(i: int) -> int:
        together.wait(20)
        return i

    assert [x for batch in batches(range(4), make, 4, workers=4, at_once=True) for _, x in batch] == [0, 1, 2, 3]
