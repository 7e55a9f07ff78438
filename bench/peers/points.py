"""What did a peer know, and when? The one file that every adapter imports: standard library alone.

An adapter is a program: `python ADAPTER TRAIN_DIR TEST_DIR WEIGHTS OUT [--mode default|best] [--size PX] [--seed N]
[--deadline S]`. It appends a JSON line to OUT whenever its method has an answer: seconds since the process was
started, and the class that it gives to every test image. Looking at the test images is not the peer's work: that
time, and that processor time, is taken off (`free`).
"""

from __future__ import annotations

import argparse
import json
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

BORN = float(os.environ.get("PEER_BORN", time.monotonic()))
"""When the process was started, told by who started it: an interpreter's start and every import count."""

STOPPED = 3  # exit status of a peer whose time was up


class Task:
    """The task of one run, and its clock."""

    def __init__(self, packages: Sequence[str]) -> None:
        parser = argparse.ArgumentParser()
        parser.add_argument("train", type=Path)
        parser.add_argument("test", type=Path)
        parser.add_argument("weights", type=Path)
        parser.add_argument("out", type=Path)
        parser.add_argument("--mode", default="default")
        parser.add_argument("--size", type=int, default=224)
        parser.add_argument("--seed", type=int, default=0)
        parser.add_argument("--deadline", type=float, default=float("inf"))
        asked = parser.parse_args()
        self.train, self.test, self.weights = asked.train, asked.test, asked.weights
        self.out, self.mode, self.size, self.seed = asked.out, asked.mode, asked.size, asked.seed
        self.deadline = asked.deadline
        self.classes = sorted(p.name for p in self.train.iterdir() if p.is_dir())
        self.train_files, self.train_labels = self._files(self.train)
        self.test_files, _ = self._files(self.test)
        self._lock, self._free, self._free_cpu, self._began = threading.Lock(), 0.0, 0.0, 0.0
        self._looking = False
        self._write({"versions": {name: version(name) for name in packages}})
        threading.Thread(target=self._watch, daemon=True).start()

    def seconds(self) -> float:
        """Charged so far."""
        now = self._began if self._looking else time.monotonic()
        return now - BORN - self._free

    def left(self) -> float:
        """Seconds until the time is up."""
        return self.deadline - self.seconds()

    @contextmanager
    def free(self) -> Iterator[None]:
        """What happens in here is the judge's work, not the peer's."""
        self.pause()
        try:
            yield
        finally:
            self.go_on()

    def pause(self) -> None:
        """From here on it is the judge's work."""
        with self._lock:
            self._began, self._cpu, self._looking = time.monotonic(), _cpu(), True

    def go_on(self) -> None:
        """From here on it is the peer's work again."""
        with self._lock:
            self._free += time.monotonic() - self._began
            self._free_cpu += _cpu() - self._cpu
            self._looking = False

    def point(self, predicted: Sequence[int] | Mapping[Path, int], note: str = "", **facts: object) -> None:
        """An answer: a class index for every test file, in the order of `test_files` or by path; not charged."""
        if isinstance(predicted, Mapping):
            predicted = [predicted[p] for p in self.test_files]
        if len(predicted) != len(self.test_files):
            raise ValueError(f"{len(predicted)} answers to {len(self.test_files)} images")
        self._write(
            {
                "seconds": self.seconds(), "free_s": self._free, "free_cpu_s": self._free_cpu, "note": note,
                "predicted": [int(i) for i in predicted], **facts,
            }
        )  # fmt: skip

    def _watch(self) -> None:
        """End the process when its time is up: the last point is what it is judged by."""
        while True:
            time.sleep(0.1)
            with self._lock:
                if not self._looking and self.left() <= 0:
                    self._write({"stopped": self.seconds(), "free_cpu_s": self._free_cpu})
                    os._exit(STOPPED)

    def _write(self, line: Mapping[str, object]) -> None:
        with self.out.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def _files(self, folder: Path) -> tuple[list[Path], list[int]]:
        pairs = [(p, i) for i, c in enumerate(self.classes) for p in sorted((folder / c).iterdir())]
        return [p for p, _ in pairs], [i for _, i in pairs]


def _cpu() -> float:
    """Processor seconds of this process and of its ended children."""
    t = os.times()
    return t.user + t.system + t.children_user + t.children_system
