"""What is happening right now? The one way in which rooms report progress.

Rooms call a `Watch`; the terminal draws it, tests record it, `SILENT` ignores it.
"""

from __future__ import annotations

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
