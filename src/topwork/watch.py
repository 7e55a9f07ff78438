"""What is happening right now, and how long did it take? The one way in which rooms report progress.

Rooms call a `Watch`; the terminal draws it, tests record it, `SILENT` ignores it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol


class Watch(Protocol):
    """Receives progress. Calls come from one thread at a time."""

    def begin(self, stage: str, total: int) -> None:
        """A stage starts; `total` steps (images, cuts) are to come, 0 if unknown."""

    def advance(self, steps: int = 1) -> None:
        """`steps` more are done."""

    def end(self) -> None:
        """The stage is over."""

    def show(self, what: str, fact: object) -> None:
        """A finished fact: "data" a Dataset, "plan" a Plan, and so on (workflow.py names them)."""


class Silent:
    """A Watch that ignores everything."""

    def begin(self, stage: str, total: int) -> None:
        """Ignore."""

    def advance(self, steps: int = 1) -> None:
        """Ignore."""

    def end(self) -> None:
        """Ignore."""

    def show(self, what: str, fact: object) -> None:
        """Ignore."""


SILENT = Silent()


@dataclass
class Clock:
    """Wall-clock seconds per stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        """Add what happens inside to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start
