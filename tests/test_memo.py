"""What was computed from the very same inputs is read back; anything else is computed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, BrokenBarrierError
from typing import Any

import numpy as np
import pytest

from topwork.memo import MAX_BYTES, Arrays, Input, remembered


class Counter:
    """A computation that counts how often it is asked."""

    def __init__(self, result: Arrays) -> None:
        self.result, self.calls = result, 0

    def __call__(self) -> Arrays:
        self.calls += 1
        return self.result


RESULT: Arrays = {
    "scores": np.linspace(0, 1, 6, dtype=np.float32).reshape(2, 3),
    "correct": np.array([[True, False]]),
    "best": np.array(3),
    "none": np.zeros((4, 0)),
}
INPUTS: list[Input] = ["1", "layer3", np.arange(4), np.array([0.5])]


def test_the_second_answer_is_the_first_one_read_back(tmp_path: Path) -> None:
    compute = Counter(RESULT)
    remembered(tmp_path / "new", INPUTS, compute)
    again = remembered(tmp_path / "new", INPUTS, compute)
    assert compute.calls == 1
    assert again.keys() == RESULT.keys()
    for name, array in RESULT.items():
        np.testing.assert_array_equal(again[name], array)
        assert again[name].dtype == array.dtype


OTHERS: list[list[Input]] = [
    ["2", "layer3", np.arange(4), np.array([0.5])],
    ["1layer3", np.arange(4), np.array([0.5])],
    ["1", "layer3", np.arange(5), np.array([0.5])],
    ["1", "layer3", np.arange(4)[::-1], np.array([0.5])],
    ["1", "layer3", np.arange(4).reshape(2, 2), np.array([0.5])],
    ["1", "layer3", np.arange(4).astype(np.int32), np.array([0.5])],
    ["1", "layer3", np.arange(4)],
]


@pytest.mark.parametrize("other", OTHERS, ids=range(len(OTHERS)))
def test_any_other_input_is_another_question(tmp_path: Path, other: list[Input]) -> None:
    compute = Counter(RESULT)
    remembered(tmp_path, INPUTS, compute)
    remembered(tmp_path, other, compute)
    assert compute.calls == 2


@pytest.mark.parametrize("damage", [b"", b"no archive", None])
def test_a_damaged_file_is_computed_anew_and_mended(tmp_path: Path, damage: bytes | None) -> None:
    compute = Counter(RESULT)
    remembered(tmp_path, INPUTS, compute)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-40] if damage is None else damage)
    remembered(tmp_path, INPUTS, compute)
    remembered(tmp_path, INPUTS, compute)
    assert compute.calls == 2


def test_objects_are_not_read_back(tmp_path: Path) -> None:
    """They would have to be unpickled, which runs whatever the file says."""
    compute = Counter(RESULT)
    remembered(tmp_path, INPUTS, compute)
    (file,) = tmp_path.iterdir()
    np.savez(file, scores=np.array([{"a": 1}], dtype=object))
    np.testing.assert_array_equal(remembered(tmp_path, INPUTS, compute)["best"], 3)
    assert compute.calls == 2


def test_a_folder_that_cannot_be_written_costs_only_the_time(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    compute = Counter(RESULT)
    for _ in range(2):
        assert remembered(tmp_path / "file" / "below", INPUTS, compute) is RESULT
    assert compute.calls == 2


def test_results_too_large_to_be_worth_it_are_not_kept(tmp_path: Path) -> None:
    compute = Counter({"large": np.broadcast_to(np.zeros(1, np.uint8), MAX_BYTES + 1)})
    remembered(tmp_path, INPUTS, compute)
    assert list(tmp_path.iterdir()) == []


def test_threads_read_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each reader waits for a second one to be inside with it; none comes."""
    remembered(tmp_path, INPUTS, Counter(RESULT))
    meeting, met, real = Barrier(2), [], np.load

    def load(*given: Any, **options: Any) -> Any:
        try:
            meeting.wait(timeout=0.2)
        except BrokenBarrierError:
            return real(*given, **options)
        met.append(1)
        return real(*given, **options)

    monkeypatch.setattr(np, "load", load)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: remembered(tmp_path, INPUTS, Counter({})), range(4)))
    assert not met
    assert all(np.array_equal(each["scores"], RESULT["scores"]) for each in found)
