"""How does a training get into a tracker's log? A watch in front of another one, that writes along."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from topwork.errors import MissingError
from topwork.records import Trial
from topwork.watch import SILENT, Watch


class TensorBoardWatch:
    """Writes the loss of every epoch and the accuracy of every training for TensorBoard, and passes all on."""

    def __init__(self, folder: Path, behind: Watch = SILENT) -> None:
        """Events go to `folder`. Raises MissingError where TensorBoard is not installed."""
        try:
            from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 (an optional package)
        except ImportError as error:
            raise MissingError(
                "--tensorboard needs a package that is not installed: pip install 'topwork[tensorboard]'"
            ) from error
        self._writer: Any = SummaryWriter(str(folder))
        self._behind = behind
        self._trials = 0
        self._first: tuple[str, int] | None = None  # the backbone that is trained first, and its input size

    def begin(self, stage: str, total: int) -> None:
        """Pass on."""
        self._behind.begin(stage, total)

    def advance(self, steps: int = 1) -> None:
        """Pass on."""
        self._behind.advance(steps)

    def end(self) -> None:
        """Pass on."""
        self._behind.end()

    def show(self, what: str, fact: object) -> None:
        """Write what a training gave; pass everything on."""
        if isinstance(fact, Trial):
            r = fact.recipe
            name = f"{fact.rung}/{r.strategy} {r.unfreeze} to {r.cut} at {r.lr:g}, fold {fact.fold}"
            self._first = self._first or (fact.backbone, fact.size_px)
            if (fact.backbone, fact.size_px) != self._first:  # one backbone at two sizes has the same names of cuts
                name += f", {fact.backbone} at {fact.size_px} px"
            for epoch, loss in enumerate(fact.losses):
                self._writer.add_scalar(f"loss/{name}", loss, epoch)
            self._writer.add_scalar(f"accuracy/{name}", fact.accuracy, r.epochs)
            self._writer.add_scalar("accuracy/in order of trial", fact.accuracy, self._trials)
            self._trials += 1
        if what == "run":
            self._writer.close()
        else:
            self._writer.flush()
        self._behind.show(what, fact)
